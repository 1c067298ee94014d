"""From a JSON file and the command line's overrides to one resolved, frozen configuration.

Precedence: defaults < JSON < command line. Every value has one owner; nothing is changed after it
is resolved.
"""

import copy
import json
from pathlib import Path

import yaml

from gpt.config import deepspeed_keys
from gpt.config.batch import BatchPlan, plan_batch
from gpt.config.checks import check, contradictions
from gpt.config.keys import REQUIRED, Key, nearest
from gpt.config.options import GPT_KEYS, Options
from gpt.config.run_config import Config
from gpt.config.schedule import CosineSchedule
from gpt.config.shape import SHAPE, ModelConfig, load_presets
from gpt.errors import UserError

BATCH = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"


def read_file(path):
    """(tree, the run's name, {dotted path: line}) of a run's JSON file, or of the config.yaml of an
    earlier run, whose tree it holds. A duplicated key is a mistake."""
    try:
        # some editors put a byte order mark in front
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read the config {path}: {reason}") from error
    if Path(path).suffix in (".yaml", ".yml"):
        try:
            saved = yaml.safe_load(text)
        except yaml.YAMLError:
            saved = None
        if not isinstance(saved, dict) or not isinstance(saved.get("run"), dict):
            raise UserError(
                f"{path} is not the config.yaml of a run: give a .json file, or a run's own"
                " config.yaml"
            )
        found = _lines(yaml.compose(text))
        lines = {path[len("run.") :]: line for path, line in found if path.startswith("run.")}
        return _as_asked(saved), str(saved.get("name")), lines
    try:
        tree = json.loads(text, object_pairs_hook=lambda pairs: _no_duplicates(pairs, path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a run's JSON ({error})") from error
    try:
        lines = dict(_lines(yaml.compose(text.replace("\t", " "))))
    # JSON that this YAML reader does not take: messages go without line numbers
    except yaml.YAMLError:
        lines = {}
    return tree, Path(path).stem, lines


def _as_asked(saved):
    """The run's JSON of a config.yaml, its micro batch to be solved again for the present ranks."""
    run, batch = saved["run"], saved.get("batch")
    run.pop(MICRO, None)
    limit = batch.get("micro_limit") if isinstance(batch, dict) else None
    if limit is not None:
        run.pop(ACCUMULATION, None)
        run[MICRO] = limit
    return run


def replace_batch(tree, overrides):
    """Take out of a run's JSON what the command line's `overrides` replace of the batch's keys."""
    given = {MICRO, ACCUMULATION} & overrides.keys()
    if given:  # the other follows from the batch, unless the batch is what the two make
        replaced = {MICRO, ACCUMULATION} - given if BATCH in tree or BATCH in overrides else ()
    else:  # another batch in as many passes, or in passes as large
        replaced = {MICRO} if BATCH in overrides and ACCUMULATION in tree else ()
    for key in replaced:
        tree.pop(key, None)


def _no_duplicates(pairs, path):
    for index, (key, _) in enumerate(pairs):
        if key in (earlier for earlier, _ in pairs[:index]):
            raise UserError(f"{path}: the key {key!r} stands twice in one block")
    return dict(pairs)


def _lines(node, path=""):
    """(dotted path, line) of every key. JSON is YAML, whose parser tells where things stand."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = f"{path}.{key.value}" if path else key.value
            yield where, key.start_mark.line + 1
            yield from _lines(value, where)


class _Resolution:
    """A tree on its way to a Config: values, where they come from, and the mistakes found
    so far."""

    def __init__(self, tree, file, lines):
        self.tree = _without_nulls(tree)
        self.file = file
        self.sources = {path: f"{file}:{line}" for path, line in lines.items()}
        self.mistakes = []  # (path, what is wrong with it)
        self.notices = []  # sentences about what was decided otherwise than asked

    def mistake(self, path, text):
        self.mistakes.append((path, text))

    def get(self, path):
        """The value at a dotted path; None where it is absent, or part of a mistake."""
        if any(path == bad or path.startswith(f"{bad}.") for bad, _ in self.mistakes):
            return None
        value = self.tree
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def set(self, path, value, source):
        block = self.tree
        *parents, last = path.split(".")
        for name in parents:
            block = block.setdefault(name, {}) if isinstance(block, dict) else None
        if isinstance(block, dict):  # where it is not, the check of the whole tree says so
            block[last] = value
            self.sources[path] = source

    def override(self, overrides):
        replace_batch(self.tree, overrides)
        for path, value in overrides.items():
            kind = self.get("scheduler.type")
            if path.startswith("scheduler.") and kind != deepspeed_keys.COSINE:
                self.mistake(
                    f"--{path.rpartition('.')[2]}",
                    f"sets a parameter of {deepspeed_keys.COSINE}, but the file's "
                    f"scheduler is {kind}: set its own parameters in the file",
                )
                continue
            self.set(path, value, "command line")

    def fill(self, keys, path=""):
        """Defaults for what is absent."""
        block = self.get(path) if path else self.tree
        for name, key in keys.items():
            where = f"{path}.{name}" if path else name
            if isinstance(key, Key) and key.default not in (None, REQUIRED) and name not in block:
                self.set(where, copy.copy(key.default), "default")

    def report(self):
        """All mistakes as one UserError."""
        texts = []
        for path, text in self.mistakes:
            where = next((self.sources[p] for p in _upwards(path) if p in self.sources), self.file)
            if path.startswith("--"):
                where = "command line"
            texts.append(f"{where}: {path} {text}" if path else text)
        if len(texts) == 1:
            raise UserError(texts[0])
        raise UserError(
            f"{self.file}: {len(texts)} mistakes\n"
            + "\n".join(f"  {i}. {t}" for i, t in enumerate(texts, 1))
        )


def _upwards(path):
    while path:
        yield path
        path = path.rpartition(".")[0]


def _without_nulls(tree):
    """A copy in which what is null is absent."""
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return copy.deepcopy(tree)


def _shape(found: _Resolution):
    presets, name = load_presets(), found.get("gpt.preset")
    if name is not None and name not in presets:
        found.mistake(
            "gpt.preset",
            f"is {name!r}{nearest(name, presets)}: the presets are {', '.join(presets)}",
        )
        return None
    given = {key: found.get(f"gpt.{key}") for key in SHAPE}
    mistaken = {path for path, _ in found.mistakes}
    for key, value in presets.get(name, {}).items():
        if given[key] is None:
            given[key] = value
            if f"gpt.{key}" not in mistaken:
                found.sources[f"gpt.{key}"] = f"preset {name}"
    missing = [key for key in SHAPE if given[key] is None]
    if missing and not mistaken & {"gpt", "gpt.preset", *(f"gpt.{key}" for key in SHAPE)}:
        found.mistake(
            "gpt.preset",
            f"is missing, and so is {', '.join(missing)}: name a preset ({', '.join(presets)}) "
            "or give the whole shape",
        )
    sizes = found.get("gpt.vocab_size"), found.get("gpt.seq_len")
    return (
        None
        if missing or None in sizes
        else ModelConfig(**given, vocab_size=sizes[0], seq_len=sizes[1])
    )


def _batch(found: _Resolution, world_size):
    keys = (BATCH, MICRO, ACCUMULATION)
    if any(path in keys for path, _ in found.mistakes):
        return None
    try:
        plan = plan_batch(*map(found.get, keys), world_size)
    except UserError as error:
        found.mistake(BATCH, str(error).removeprefix(f"{BATCH} "))
        return None
    asked = found.sources.get(MICRO, found.file)
    for key, value in zip(keys, (plan.train_batch_size, plan.micro_size, plan.accumulation)):
        if found.get(key) is None:
            others = " and ".join(other for other in keys if other != key)
            found.set(key, value, f"derived: from {others}, {world_size} rank(s)")
    if plan.micro_limit is not None:
        source = (
            f"derived: at most {plan.micro_limit} asked for ({asked}), of the {plan.share} a "
            f"step that each of {world_size} rank(s) has"
        )
        found.set(MICRO, plan.micro_size, source)
        if 2 * plan.micro_size < plan.micro_limit:
            found.notices.append(_smaller_than_asked(plan))
    return plan


def _smaller_than_asked(plan: BatchPlan) -> str:
    told = (
        f"{MICRO} allows {plan.micro_limit} sequences per forward pass, but each of "
        f"{plan.world_size} rank(s) takes {plan.micro_size}"
    )
    if plan.accumulation == 1:
        return (
            f"{told}, its whole share of {BATCH} {plan.train_batch_size}: fewer GPUs, or a larger "
            "batch, would fill them better"
        )
    return (
        f"{told}, the largest divisor of its {plan.share} of {BATCH} {plan.train_batch_size}: "
        "another number of GPUs, or another batch, would divide better"
    )


def resolve(
    tree, name: str, world_size: int = 1, overrides=None, lines=None, file=None, look_further=None
) -> Config:
    """Check and resolve the parsed JSON of a run for `world_size` ranks; `tree` itself is left as
    it is.

    overrides: {dotted path: value} from the command line. lines: {dotted path: line} in `file`, for
    messages. look_further: called with the valid options of the "gpt" block and the batch size,
    returns more mistakes as sentences. Raises UserError with all mistakes that were found, in one
    report.
    """
    found = _Resolution(tree, file or name, lines or {})
    if not isinstance(found.tree, dict):
        raise UserError(f"{found.file}: the file is {tree!r}, not a block {{…}}")
    found.override(overrides or {})
    for path, default in (
        ("gpt", {}),
        ("optimizer", {"type": "Adam"}),
        ("fp16", {}),
        ("bf16", {}),
        ("zero_optimization", {}),
    ):
        found.tree.setdefault(path, default)
    for block in ("optimizer", "scheduler"):
        if isinstance(found.tree.get(block), dict):
            found.tree[block].setdefault("params", {})
    found.mistakes += check(found.tree, deepspeed_keys.TOP_KEYS)
    found.fill(deepspeed_keys.TOP_KEYS)
    for block in ("gpt", "fp16", "bf16", "zero_optimization"):
        if isinstance(found.get(block), dict):
            found.fill(deepspeed_keys.TOP_KEYS[block], block)
    for block, variants in (
        ("optimizer", deepspeed_keys.OPTIMIZERS),
        ("scheduler", deepspeed_keys.SCHEDULERS),
    ):
        if (
            isinstance(found.get(f"{block}.params"), dict)
            and found.get(f"{block}.type") in variants
        ):
            found.fill(variants[found.get(f"{block}.type")], f"{block}.params")
    if found.get("gpt.last_n") is None and found.get("gpt.seq_len") is not None:
        if not any(path == "gpt.last_n" for path, _ in found.mistakes):
            found.set("gpt.last_n", min(128, found.get("gpt.seq_len")), "derived: from gpt.seq_len")
    contradictions(found)
    model, batch = _shape(found), _batch(found, world_size)
    if look_further is not None:
        options = {key: found.get(f"gpt.{key}") for key in GPT_KEYS}
        found.mistakes += [
            ("", text) for text in look_further(options, found.get("train_batch_size"))
        ]
    if found.mistakes:
        found.report()
    return _freeze(found, name, model, batch)


def _freeze(found: _Resolution, name, model, batch) -> Config:
    tree = found.tree
    options = Options(**found.tree.pop("gpt"))
    schedule = None
    if tree.get("scheduler", {}).get("type") == deepspeed_keys.COSINE:
        schedule = CosineSchedule(**tree.pop("scheduler")["params"])
    optimizer, params = tree["optimizer"], tree["optimizer"]["params"]
    # element by element, so it may work on stretches of parameters
    if optimizer["type"] == "SGD":
        found.set("zero_allow_untested_optimizer", True, "derived: from optimizer.type")
    accumulates = batch.accumulation > 1 and tree["bf16"]["enabled"]
    # bf16 keeps 8 bits of a sum
    if accumulates and found.get("data_types.grad_accum_dtype") is None:
        found.set(
            "data_types.grad_accum_dtype",
            "fp32",
            "derived: from bf16 and gradient_accumulation_steps",
        )
    if "offload_optimizer" in tree["zero_optimization"] and params.get("torch_adam"):
        found.set("zero_force_ds_cpu_optimizer", False, "derived: from optimizer.params.torch_adam")
    if params.get("torch_adam") is False:
        for word in ("fused", "torch_adam"):  # torch's own; DeepSpeed's Adams do not know it
            params.pop(word, None)
    return Config(
        name=name,
        options=options,
        model=model,
        batch=batch,
        schedule=schedule,
        deepspeed=tree,
        sources=found.sources,
        notices=tuple(found.notices),
    )


def load(path, world_size: int = 1, overrides=None, look_further=None) -> Config:
    """Read and resolve a run's JSON file, or its config.yaml. Raises UserError with all mistakes in
    one report."""
    tree, name, lines = read_file(path)
    return resolve(tree, name, world_size, overrides, lines, Path(path).name, look_further)

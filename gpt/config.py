"""From a JSON file and the command line's overrides to one resolved, frozen configuration.

Precedence: defaults < JSON < command line. Every value has one owner; nothing is changed after it
is resolved.
"""

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from gpt import schema
from gpt.errors import UserError
from gpt.plan import BatchPlan, CosineSchedule, ModelConfig, plan_batch

SHAPE = ("n_layers", "h_dim", "mlp_dim", "n_heads", "head_dim")
BATCH = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"


@dataclass(frozen=True)
class Config:
    """A resolved run. `engine` is what DeepSpeed gets, the "gpt" block and our own schedule taken
    out."""

    name: str  # the JSON file's name without its ending
    options: schema.Options
    model: ModelConfig
    batch: BatchPlan
    # None: DeepSpeed's own scheduler, or a constant learning rate
    schedule: CosineSchedule | None
    engine: dict
    sources: dict  # {dotted path of a value: where it comes from}
    notices: tuple = ()  # what was decided otherwise than asked, and why

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16: the type that weights and activations have in the hot loop."""
        return next((name for name in ("fp16", "bf16") if self.engine[name]["enabled"]), "fp32")

    @property
    def moments(self) -> int:
        """Numbers per parameter that the optimizer keeps beside the weight."""
        if self.engine["optimizer"]["type"] != "SGD":
            return 2
        return 1 if self.engine["optimizer"]["params"].get("momentum") else 0

    @property
    def fp32_sums(self) -> bool:
        """Whether 16-bit gradients of a step's micro-batches are summed in fp32."""
        return (
            self.engine.get("data_types", {}).get("grad_accum_dtype") == "fp32"
            and self.precision != "fp32"
        )

    @property
    def run_dir(self) -> Path:
        return Path(self.options.run_dir or f"runs/{self.name}")

    def without_fp16(self, reason: str) -> "Config":
        """The same run in fp32, with a notice that says why."""
        engine = {**self.engine, "fp16": {**self.engine["fp16"], "enabled": False}}
        return dataclasses.replace(
            self,
            engine=engine,
            sources={**self.sources, "fp16.enabled": f"derived: {reason}"},
            notices=(*self.notices, reason),
        )

    def tree(self) -> dict:
        """The run as one JSON tree of resolved values, which resolves to this Config again."""
        ours = (
            {"type": schema.COSINE, "params": dataclasses.asdict(self.schedule)}
            if self.schedule
            else None
        )
        gpt = {
            **dataclasses.asdict(self.options),
            **{name: getattr(self.model, name) for name in SHAPE},
        }
        return {**self.engine, **({"scheduler": ours} if ours else {}), "gpt": gpt}

    def values(self) -> list:
        """(dotted path, value, source) of every resolved value, in the order of the tree."""
        return [
            (path, value, self.sources.get(path, "default")) for path, value in leaves(self.tree())
        ]

    @property
    def fingerprint(self) -> str:
        """The same for two runs of the same configuration, whatever their values' sources."""
        text = json.dumps([self.precision, self.tree()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict:
        """Plain values for config.yaml: all that a reader needs to know what was run, and where
        each value is from."""
        return {
            "name": self.name,
            "precision": self.precision,
            "model": dataclasses.asdict(self.model),
            "batch": dataclasses.asdict(self.batch),
            "run": self.tree(),
            "sources": {path: source for path, _, source in self.values()},
        }


def leaves(tree, path=""):
    """(dotted path, value) of everything in a tree that is no block."""
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from leaves(value, where)
        else:
            yield where, value


def curve_settings(tree: dict) -> dict:
    """Of a config.yaml, the settings that make a curve another curve: shape, data, batch, schedule,
    precision, optimizer, seed, first weights."""
    run = tree["run"]
    gpt = run.get("gpt") or {}
    return {
        "model": tree["model"],
        "precision": tree.get("precision"),
        "scheduler": run.get("scheduler"),
        "optimizer": run.get("optimizer"),
        "gradient_clipping": run.get("gradient_clipping"),
        "train_batch_size": run.get("train_batch_size"),
        "seed": gpt.get("seed"),
        "init_from": gpt.get("init_from"),
        "dataset": (tree.get("dataset") or {}).get("fingerprint"),
    }


def load_presets() -> dict:
    """Model shapes by name: {preset: {n_layers, h_dim, mlp_dim, n_heads, head_dim}}."""
    return yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))


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
            if path.startswith("scheduler.") and kind != schema.COSINE:
                self.mistake(
                    f"--{path.rpartition('.')[2]}",
                    f"sets a parameter of {schema.COSINE}, but the file's "
                    f"scheduler is {kind}: set its own parameters in the file",
                )
                continue
            self.set(path, value, "command line")

    def fill(self, keys, path=""):
        """Defaults for what is absent."""
        block = self.get(path) if path else self.tree
        for name, key in keys.items():
            where = f"{path}.{name}" if path else name
            if (
                isinstance(key, schema.Key)
                and key.default not in (None, schema.REQUIRED)
                and name not in block
            ):
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


def _contradictions(found: _Resolution):
    """Values that are right one by one and wrong together. What is part of a mistake already is
    left alone."""
    get = found.get
    stage = get("zero_optimization.stage")
    if get("fp16.enabled") and get("bf16.enabled"):
        found.mistake("fp16.enabled", "and bf16.enabled are both true: choose one")
    elif stage == 0 and (get("fp16.enabled") or get("bf16.enabled")):
        found.mistake(
            "zero_optimization.stage",
            "is 0 with 16-bit training, where DeepSpeed does not scale the loss "
            "rightly: use stage 1, 2 or 3",
        )
    sums = get("data_types.grad_accum_dtype")
    precision = next((name for name in ("fp16", "bf16") if get(f"{name}.enabled")), "fp32")
    if sums not in (None, "fp32", precision):
        found.mistake(
            "data_types.grad_accum_dtype",
            f"is {sums}, and the run is in {precision}: give fp32, or leave it out",
        )
    for block, needed in (("offload_optimizer", 1), ("offload_param", 3)):
        device = get(f"zero_optimization.{block}.device")
        if device not in (None, "none") and stage is not None and stage < needed:
            found.mistake(
                f"zero_optimization.{block}",
                f"needs stage {needed} or more, and the stage is {stage}",
            )
        if device == "nvme" and not get(f"zero_optimization.{block}.nvme_path"):
            found.mistake(
                f"zero_optimization.{block}.nvme_path", "is missing: the folder on the NVMe disk"
            )
    if get("optimizer.params.nesterov") and not get("optimizer.params.momentum"):
        found.mistake("optimizer.params.nesterov", "needs optimizer.params.momentum above 0")
    if get("gpt.max_eval_steps") == 0:
        found.mistake(
            "gpt.max_eval_steps",
            "is 0, which scores nothing: give -1 for the whole split, or turn evaluation "
            "off with eval_every 0",
        )
    kind, lr = get("scheduler.type"), get("optimizer.params.lr")
    if kind == schema.COSINE and lr is not None:
        found.mistake(
            "optimizer.params.lr",
            f"is set beside {schema.COSINE}, which owns the learning rate: leave it out "
            "and set scheduler.params.max_lr",
        )
    if kind == "OneCycle" and get("scheduler.params.cycle_momentum") is not False:
        found.mistake(
            "scheduler.params.cycle_momentum",
            "must be false: it would replace optimizer.params, where the decay of the "
            "moments is set",
        )
    peak = {
        "WarmupCosineLR": "lr",
        "WarmupLR": "warmup_max_lr",
        "WarmupDecayLR": "warmup_max_lr",
    }.get(kind)
    if peak and lr is None and get(f"scheduler.params.{peak}") is None:
        found.mistake(
            "optimizer.params.lr" if peak == "lr" else f"scheduler.params.{peak}",
            "is missing: the peak of the learning rate, which DeepSpeed would choose by itself",
        )
    if "scheduler" not in found.tree and lr is None and get("optimizer.params") is not None:
        found.mistake(
            "scheduler",
            "is missing, and so is the learning rate: give a scheduler, or optimizer.params.lr "
            "for a constant one",
        )
    pairs = [("gpt.last_n", "gpt.seq_len")]
    if kind == schema.COSINE:
        pairs += [
            ("scheduler.params.min_lr", "scheduler.params.max_lr"),
            ("scheduler.params.warmup_steps", "scheduler.params.decay_steps"),
        ]
    for low, high in pairs:
        if get(low) is not None and get(high) is not None and get(low) > get(high):
            found.mistake(low, f"is {get(low)}, more than {high} {get(high)}")


def _shape(found: _Resolution):
    presets, name = load_presets(), found.get("gpt.preset")
    if name is not None and name not in presets:
        found.mistake(
            "gpt.preset",
            f"is {name!r}{schema.nearest(name, presets)}: the presets are {', '.join(presets)}",
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
    for key, value in zip(keys, (plan.global_size, plan.micro_size, plan.accumulation)):
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
            f"{told}, its whole share of {BATCH} {plan.global_size}: fewer GPUs, or a larger "
            "batch, would fill them better"
        )
    return (
        f"{told}, the largest divisor of its {plan.share} of {BATCH} {plan.global_size}: "
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
    found.mistakes += schema.check(found.tree, schema.TOP_KEYS)
    found.fill(schema.TOP_KEYS)
    for block in ("gpt", "fp16", "bf16", "zero_optimization"):
        if isinstance(found.get(block), dict):
            found.fill(schema.TOP_KEYS[block], block)
    for block, variants in (("optimizer", schema.OPTIMIZERS), ("scheduler", schema.SCHEDULERS)):
        if (
            isinstance(found.get(f"{block}.params"), dict)
            and found.get(f"{block}.type") in variants
        ):
            found.fill(variants[found.get(f"{block}.type")], f"{block}.params")
    if found.get("gpt.last_n") is None and found.get("gpt.seq_len") is not None:
        if not any(path == "gpt.last_n" for path, _ in found.mistakes):
            found.set("gpt.last_n", min(128, found.get("gpt.seq_len")), "derived: from gpt.seq_len")
    _contradictions(found)
    model, batch = _shape(found), _batch(found, world_size)
    if look_further is not None:
        options = {key: found.get(f"gpt.{key}") for key in schema.GPT_KEYS}
        found.mistakes += [
            ("", text) for text in look_further(options, found.get("train_batch_size"))
        ]
    if found.mistakes:
        found.report()
    return _freeze(found, name, model, batch)


def _freeze(found: _Resolution, name, model, batch) -> Config:
    tree = found.tree
    options = schema.Options(**found.tree.pop("gpt"))
    schedule = None
    if tree.get("scheduler", {}).get("type") == schema.COSINE:
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
        engine=tree,
        sources=found.sources,
        notices=tuple(found.notices),
    )


def load(path, world_size: int = 1, overrides=None, look_further=None) -> Config:
    """Read and resolve a run's JSON file, or its config.yaml. Raises UserError with all mistakes in
    one report."""
    tree, name, lines = read_file(path)
    return resolve(tree, name, world_size, overrides, lines, Path(path).name, look_further)

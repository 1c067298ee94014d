"""From a run's JSON and the command line's overrides to a draft of its configuration, and to one
frozen Config.

    draft = read(path, world_size, overrides)   every value, and every mistake in the file
    draft.add(data.mistakes())                  those of the dataset, in the same report
    config = draft.settle()                     frozen, or a UserError with all mistakes

Precedence: defaults < JSON < command line. Every value has one owner; nothing is changed after it
is settled.
"""

import copy
from pathlib import Path
from typing import Any

from gpt.config.batch import ACCUMULATION, BATCH, MICRO, BatchPlan, plan_batch
from gpt.config.checks import check
from gpt.config.contradictions import contradictions, contradictions_of_the_batch
from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.draft import COMMAND_LINE, Draft, Mistake
from gpt.config.identity import MODEL_FILE, MODEL_OPTIONS
from gpt.config.keys import REQUIRED, Key, in_json
from gpt.config.normal_form import normalise
from gpt.config.notices import notices
from gpt.config.optimizer_keys import COOLDOWN, COSINE, OPTIMIZERS, OWN_SCHEDULERS, SCHEDULERS
from gpt.config.option_names import is_of_arguments, key_at, option_of
from gpt.config.options import LAST_N, OPTIMIZER_FILE_KEY, OPTIMIZER_OPTIONS_KEY
from gpt.config.own_code import OwnCode, read_own_code
from gpt.config.reference import precision_of, settle_reference
from gpt.config.run_config import Config
from gpt.config.run_file import read_file
from gpt.config.shape import PRESET_KEYS, SHAPE_KEYS, load_presets
from gpt.errors import UserError
from gpt.wording import nearest


def load(path: str | Path, world_size: int = 1, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration in a run's JSON file or config.yaml, for `world_size` ranks.

    overrides: {dotted path: value} from the command line. Raises UserError with all mistakes in one
    report.
    """
    return read(path, world_size, overrides).settle()


def resolve(
    tree: Any, name: str, world_size: int = 1, overrides: dict[str, Any] | None = None
) -> Config:
    """The configuration in the parsed JSON of a run, which is left as it is; else like `load`."""
    return complete(Draft(tree, name, world_size), overrides).settle()


def read(path: str | Path, world_size: int = 1, overrides: dict[str, Any] | None = None) -> Draft:
    """The draft of the configuration in a run's JSON file or config.yaml. Raises UserError where
    the file holds no configuration at all."""
    tree, name, lines = read_file(path, overrides or {})
    return complete(Draft(tree, name, world_size, Path(path).name, lines), overrides)


def complete(draft: Draft, overrides: dict[str, Any] | None = None) -> Draft:
    """The draft with the command line's values, defaults, and what follows from them; each mistake
    is noted in it. Raises UserError where its tree is no block."""
    if not isinstance(draft.tree, dict):
        raise UserError(f"{draft.file}: the file is {in_json(draft.tree)}, not a block {{…}}")
    of_file = _model_and_precision(draft)
    override(draft, overrides or {})
    draft.reshaped = _differing(of_file, _model_and_precision(draft))
    _add_blocks(draft.tree)
    normalise(draft)
    draft.mistakes += check(draft.tree, TOP_KEYS)
    _fill_in_defaults(draft)
    _derive_last_n(draft)
    _fill_in_shape(draft)
    _read_code(draft)
    draft.mistakes += contradictions(draft)
    draft.batch = _batch(draft)
    draft.mistakes += contradictions_of_the_batch(draft)
    draft.notices += notices(draft)
    settle_reference(draft)
    return draft


def _model_and_precision(draft: Draft) -> dict[str, Any]:
    """{name: value} of what a throughput depends on, as the draft has it by now; a value that is
    mistaken is told later."""
    preset = draft.get("gpt.preset")
    shape = load_presets().get(preset, {}) if isinstance(preset, str) else {}
    values: dict[str, Any] = {"precision": precision_of(draft)}
    for name, key in SHAPE_KEYS.items():
        value = draft.get(f"gpt.{name}")
        default = None if key.default is REQUIRED else key.default
        values[name] = shape.get(name, default) if value is None else value
    for name in (MODEL_FILE, MODEL_OPTIONS):
        values[name] = copy.deepcopy(draft.get(f"gpt.{name}"))
    return values


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the values that are others now."""
    return [name for name, value in before.items() if value != now[name]]


def take_vocabulary(draft: Draft, size: int) -> None:
    """Set the vocabulary size, where the draft lacks it, to that of its dataset."""
    if draft.lacks("gpt.vocab_size"):
        draft.put("gpt.vocab_size", size, "derived: from the dataset")
        settle_reference(draft)


def override(draft: Draft, overrides: dict[str, Any]) -> None:
    """Set a draft's values to the command line's, {dotted path: value}; None takes out what the
    file says. An option that has no place is a mistake, noted in the draft."""
    placed = {
        path: value for path, value in overrides.items() if not _is_below_a_value(draft, path)
    }
    for path, value in placed.items():
        if value is None:
            _take_out(draft, path)
    placed = {path: value for path, value in placed.items() if value is not None}
    _replace_optimizer(draft, placed)
    _replace_batch(draft.tree, placed)
    for block in ("optimizer", "scheduler"):
        if f"{block}.type" in placed:
            _change_type(draft, block, placed)
    for path, value in placed.items():
        if not _is_of_another_scheduler(draft, path):
            draft.put(path, value, COMMAND_LINE)


def _take_out(draft: Draft, path: str) -> None:
    is_argument = is_of_arguments(path.rpartition(".")[0])
    if key_at(path) is None and draft.get(path) is None and not is_argument:
        # whatever its value, the check of the whole tree tells that the key is unknown
        draft.put(path, "null", COMMAND_LINE)
        return
    draft.remove(path)
    # for a report that it is missing
    draft.sources[path] = COMMAND_LINE


def _is_below_a_value(draft: Draft, path: str) -> bool:
    """Whether a path of the command line goes on behind a value; noted as a mistake."""
    above = path.rpartition(".")[0]
    while above:
        if isinstance(key_at(above), Key) and not is_of_arguments(above):
            draft.mistake(f"--{path}", f"is not a known key: {above} is a value, and no block")
            return True
        above = above.rpartition(".")[0]
    return False


def _is_of_another_scheduler(draft: Draft, path: str) -> bool:
    """Whether an option by its name belongs to a scheduler that the run does not have; noted as a
    mistake."""
    is_named = path.startswith("scheduler.") and option_of(path) != f"--{path}"
    scheduler = draft.get("scheduler.type")
    name = path.rpartition(".")[2]
    if not is_named or (scheduler in OWN_SCHEDULERS and name in SCHEDULERS[scheduler]):
        return False
    owner = COSINE if name in SCHEDULERS[COSINE] else COOLDOWN
    problem = f"sets a parameter of {owner}, but the"
    if scheduler is None:
        problem += f" run has no scheduler: give --scheduler.type {owner} as well"
    elif scheduler in OWN_SCHEDULERS:
        problem += f" scheduler is {scheduler}: give --scheduler.type {owner} as well"
    else:
        problem += (
            f" scheduler is {scheduler}: set its own parameters, such as"
            " --scheduler.params.warmup_num_steps"
        )
    draft.mistake(option_of(path), problem)
    return True


def _change_type(draft: Draft, block: str, overrides: dict[str, Any]) -> None:
    """Take the type of an optimizer or scheduler from the command line, and out of the file's
    parameters those that this type does not have."""
    kind = overrides[f"{block}.type"]
    draft.put(f"{block}.type", kind, COMMAND_LINE)
    keys = (OPTIMIZERS if block == "optimizer" else SCHEDULERS).get(kind)
    params = draft.get(f"{block}.params")
    if keys is None or not isinstance(params, dict):
        return
    foreign = [name for name in params if name not in keys]
    for name in foreign:
        draft.remove(f"{block}.params.{name}")
    if foreign:
        draft.notices.append(
            f"{block}.params of the file that {kind} does not have are left out:"
            f" {', '.join(foreign)}"
        )


def _replace_optimizer(draft: Draft, overrides: dict[str, Any]) -> None:
    """Take out of a run's JSON the optimizer that the command line's `overrides` replace by a file
    of the user's, or such a file that they replace by a type; without either the type is Adam."""
    blocks = [path for path in overrides if path.partition(".")[0] == "optimizer"]
    if OPTIMIZER_FILE_KEY in overrides and not blocks and draft.get("optimizer") is not None:
        draft.remove("optimizer")
        draft.notices.append("optimizer of the file is left out: gpt.optimizer_file replaces it")
    if "optimizer.type" in overrides and OPTIMIZER_FILE_KEY not in overrides:
        if draft.get(OPTIMIZER_FILE_KEY) is not None:
            draft.notices.append(
                "gpt.optimizer_file of the file is left out: --optimizer.type replaces it"
            )
        draft.remove(OPTIMIZER_FILE_KEY)
        draft.remove(OPTIMIZER_OPTIONS_KEY)
    if OPTIMIZER_FILE_KEY not in overrides and draft.get(OPTIMIZER_FILE_KEY) is None:
        draft.tree.setdefault("optimizer", {"type": "Adam"})


def _replace_batch(tree: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Take out of a run's JSON what the command line's `overrides` replace of the batch's keys."""
    shares = {MICRO, ACCUMULATION}
    overridden = shares & overrides.keys()
    replaced = set()
    if overridden:
        # the other follows from the batch, unless the batch is what the two make
        if BATCH in tree or BATCH in overrides:
            replaced = shares - overridden
    elif BATCH in overrides and ACCUMULATION in tree:
        # another batch in as many passes; without an accumulation: in passes as large
        replaced = {MICRO}
    for key in replaced:
        tree.pop(key, None)


def _add_blocks(tree: dict[str, Any]) -> None:
    """Add the blocks that a file may leave out."""
    tree.setdefault("gpt", {})
    for block in ("fp16", "bf16", "zero_optimization"):
        tree.setdefault(block, {})
    for block in ("optimizer", "scheduler"):
        if isinstance(tree.get(block), dict):
            tree[block].setdefault("params", {})


def _fill_in_defaults(draft: Draft) -> None:
    _fill(draft, "", TOP_KEYS)
    for block in ("gpt", "fp16", "bf16", "zero_optimization"):
        _fill(draft, block, TOP_KEYS[block])
    for block, types in (("optimizer", OPTIMIZERS), ("scheduler", SCHEDULERS)):
        kind = draft.get(f"{block}.type")
        if kind in types:
            _fill(draft, f"{block}.params", types[kind])


def _fill(draft: Draft, path: str, keys: dict[str, Any]) -> None:
    """Set the defaults of a block's absent keys; a block that is mistaken is left alone."""
    block = draft.get(path) if path else draft.tree
    if not isinstance(block, dict):
        return
    for name, key in keys.items():
        has_default = isinstance(key, Key) and key.default not in (None, REQUIRED)
        if has_default and name not in block:
            where = f"{path}.{name}" if path else name
            draft.put(where, copy.copy(key.default), "default")


def _derive_last_n(draft: Draft) -> None:
    seq_len = draft.get("gpt.seq_len")
    absent = draft.get("gpt.last_n") is None and "gpt.last_n" not in draft.mistaken()
    if absent and seq_len is not None:
        draft.put("gpt.last_n", min(LAST_N, seq_len), "derived: from gpt.seq_len")


def _fill_in_shape(draft: Draft) -> None:
    """Set what the file leaves of the shape to its preset."""
    presets = load_presets()
    preset = draft.get("gpt.preset")
    if preset is not None and preset not in presets:
        draft.mistake(
            "gpt.preset",
            f"is {preset!r}{nearest(preset, presets)}: the presets are {', '.join(presets)}",
        )
        return
    for name, value in presets.get(preset, {}).items():
        if draft.lacks(f"gpt.{name}"):
            draft.put(f"gpt.{name}", value, f"preset {preset}")
    missing = [name for name in PRESET_KEYS if draft.lacks(f"gpt.{name}")]
    if missing and not draft.mistaken() & {"gpt", "gpt.preset"}:
        draft.mistake(
            "gpt.preset",
            f"is missing, and so is {', '.join(missing)}: name a preset ({', '.join(presets)}) "
            "or give the whole shape",
        )


def _read_code(draft: Draft) -> None:
    """Read the code of the user's own that the run takes parts of itself from."""
    draft.model_code = _own_code(draft, "gpt.model_file")
    draft.optimizer_code = _own_code(draft, OPTIMIZER_FILE_KEY)
    if draft.model_code is None or draft.optimizer_code is None:
        return
    # they lie in one folder beside the weights
    others = draft.model_code.files
    for name, text in draft.optimizer_code.files.items():
        if others.get(name, text) != text:
            draft.mistake(
                OPTIMIZER_FILE_KEY,
                f"has {draft.optimizer_code.path.with_name(name)}, and model_file another file of"
                f" that name, {draft.model_code.path.with_name(name)}: rename one of them",
            )


def _own_code(draft: Draft, path: str) -> OwnCode | None:
    text = draft.get(path)
    if text is None:
        return None
    try:
        return read_own_code(text, path)
    except UserError as error:
        draft.mistakes.append(Mistake(path, str(error)))
        return None


def _batch(draft: Draft) -> BatchPlan | None:
    """How the batch is shared out, its derived keys set. None where it is mistaken."""
    keys = (BATCH, MICRO, ACCUMULATION)
    if draft.mistaken() & set(keys):
        return None
    try:
        plan = plan_batch(
            draft.get(BATCH), draft.get(MICRO), draft.get(ACCUMULATION), draft.world_size
        )
    except UserError as error:
        draft.mistakes.append(Mistake(BATCH, str(error)))
        return None
    limit_source = draft.sources.get(MICRO, draft.file)
    values = {
        BATCH: plan.train_batch_size,
        MICRO: plan.micro_size,
        ACCUMULATION: plan.accumulation,
    }
    for key, value in values.items():
        if draft.get(key) is None:
            others = " and ".join(other for other in keys if other != key)
            draft.put(key, value, f"derived: from {others}, {plan.world_size} rank(s)")
    if plan.micro_limit is not None:
        source = (
            f"derived: at most {plan.micro_limit} asked for ({limit_source}), of the {plan.share} a"
            f" step that each of {plan.world_size} rank(s) has"
        )
        draft.put(MICRO, plan.micro_size, source)
        takes_whole_batch = plan.micro_size == plan.train_batch_size
        if 2 * plan.micro_size < plan.micro_limit and not takes_whole_batch:
            draft.notices.append(_smaller_than_its_limit(plan))
    return plan


def _smaller_than_its_limit(plan: BatchPlan) -> str:
    sizes = (
        f"{MICRO} allows {plan.micro_limit} sequences per forward pass, but each of "
        f"{plan.world_size} rank(s) takes {plan.micro_size}"
    )
    if plan.accumulation == 1:
        return (
            f"{sizes}, its whole share of {BATCH} {plan.train_batch_size}: fewer GPUs, or a larger "
            "batch, would fill them better"
        )
    return (
        f"{sizes}, the largest divisor of its {plan.share} of {BATCH} {plan.train_batch_size}: "
        "another number of GPUs, or another batch, would divide better"
    )

"""What a run is: all that makes its curve, read from its config.yaml.

Runs whose identities are equal are seeds of each other; where identities differ, runs differ by
more than chance. What was changed on resuming is part of the identity, with its step.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from gpt.config.keys import LARGEST
from gpt.config.optimizer_keys import COOLDOWN
from gpt.config.run_config import leaves, value_at

RUN = "run"  # the block of config.yaml that resolves to the run again
CHANGES = "changes"
CODE = "code"
# code of the user's own, blocks of config.yaml, and the arguments that it gets
MODEL_FILE = "model_file"
MODEL_OPTIONS = "model_options"
OPTIMIZER_FILE = "optimizer_file"
OPTIMIZER_OPTIONS = "optimizer_options"
ARGUMENTS_OF = {MODEL_FILE: MODEL_OPTIONS, OPTIMIZER_FILE: OPTIMIZER_OPTIONS}
VARIANT = "variant"
CHANGE = {"step", "setting", "was", "is"}  # the keys of one of them
BATCH_SETTING = "train_batch_size"
TOKENIZER = "dataset.tokenizer"
SEED = "seed"
# settings of "gpt" that make a curve, beside the shape
OPTIONS = (VARIANT, SEED, "compile", "spike_policy", "spike_zscore", "rewind_batches")
# settings of "gpt" that say how held-out text is scored
SCORING = ("eval_data_split", "last_n", "max_eval_steps", "eval_batch_size")
WHOLE_SPLIT = -1  # of max_eval_steps: in batches of whatever size, the same is scored
# keys of DeepSpeed by which ranks round what they send each other
ROUNDING = (
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "zero_optimization.zero_quantized_weights",
    "zero_optimization.zero_quantized_gradients",
)
# values that say no more than an absent key does
NEUTRAL = {
    "gradient_predivide_factor": 1,
    "optimizer.params.adam_w_mode": True,
    "optimizer.params.momentum": 0,
    "optimizer.params.dampening": 0,
}
# what may differ on resuming without leave: it is told, and noted among the changes
FREE = (
    CODE,
    "parameters",
    "kernels",
    "compile",
    "fp16",
    "data_types",
    "spike",
    "rewind_batches",
)
# the measure of one axis, which makes no curve another one, and must not change on its way
REFERENCE_SPEED = "tokens_per_second"


def curve(config: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} of the settings in a config.yaml that make a curve another curve: code, shape,
    data, batch, schedule, precision, optimizer, first weights, seed; and of those by which it is
    scored.

    What is off or as it is by itself is left out, and a whole number is an int, so that a key that
    is spelt otherwise is no other setting.
    """
    run = config[RUN]
    gpt = run.get("gpt") or {}
    dataset = config.get("dataset") or {}
    trained_on = dataset.get("train") or {}
    scored = dataset.get("scored") or {}
    precision = config.get("precision")
    settings: dict[str, Any] = {name: gpt.get(name) for name in (*OPTIONS, *SCORING)}
    for file, arguments in ARGUMENTS_OF.items():
        settings[file] = (config.get(file) or {}).get("hash")
        settings[arguments] = gpt.get(arguments)
    settings |= {path: value_at(run, path) for path in ROUNDING}
    settings |= {
        CODE: (config.get(CODE) or {}).get("parts"),
        "model": config["model"],
        "parameters": config.get("parameters"),
        "precision": precision,
        "kernels": config.get("kernels"),
        "scheduler": _scheduler(run.get("scheduler")),
        "optimizer": run.get("optimizer"),
        "gradient_clipping": run.get("gradient_clipping"),
        "data_types.grad_accum_dtype": _sums(run, precision),
        BATCH_SETTING: run.get(BATCH_SETTING),
        "init_from": gpt.get("init_from"),
        "branch_from": gpt.get("branch_from"),
        "dataset": {
            "tokenizer": dataset.get("tokenizer"),
            "train": trained_on.get("documents"),
            "scored": scored.get("documents"),
        },
    }
    if settings["communication_data_type"] == precision:
        del settings["communication_data_type"]
    if precision == "fp16":
        settings["fp16"] = run.get("fp16")
    if settings["max_eval_steps"] == WHOLE_SPLIT:
        del settings["eval_batch_size"]
    plain = {path: _plain(value) for path, value in leaves(settings)}
    return {path: value for path, value in plain.items() if _says_something(path, value)}


def _scheduler(block: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The block without what has no effect: of a rate that stays, where it would go and when."""
    params = (block or {}).get("params") or {}
    if block is None or block.get("type") != COOLDOWN or params.get("cooldown_share") != 0:
        return block
    idle = ("decay_steps", "min_lr")
    return {**block, "params": {name: params[name] for name in params if name not in idle}}


def _sums(run: Mapping[str, Any], precision: str | None) -> str | None:
    """The type that gradients of micro-batches are summed in, where it is not the usual one: the
    run's own, fp32 under bf16."""
    sums = value_at(run, "data_types.grad_accum_dtype")
    usual = "fp32" if precision == "bf16" else precision
    return None if sums == usual else sums


def _plain(value: Any) -> Any:
    """The same number is the same, whether it was written as 1 or 1.0."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST
    return int(value) if is_whole else value


def code_in_words(facts: Mapping[str, Any] | None) -> str | None:
    """A file of the user's own by its name and hash, from a block of config.yaml."""
    return f"{facts['name']} {facts['hash']}" if facts else None


def own_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} of the settings by which a model is another than the GPT of its shape: nothing
    of the GPT."""
    names = (MODEL_FILE, ARGUMENTS_OF[MODEL_FILE])
    settings = curve(config)
    return {path: settings[path] for path in settings if path.partition(".")[0] in names}


def _says_something(path: str, value: Any) -> bool:
    # what an absent argument means is the file's to say
    if path.partition(".")[0] in ARGUMENTS_OF.values():
        return True
    if path in NEUTRAL:
        return value not in (None, NEUTRAL[path])
    return value is not None and value is not False


def first_weights_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Origin of the weights that a run, or the first trunk of a branch, began from; nothing where
    they were drawn. config: its config.yaml."""
    began_from = config.get("began_from") or {}
    return began_from.get("first_weights") or {} if "branch" in began_from else began_from


def identity(config: Mapping[str, Any], equal_code: frozenset[str] = frozenset()) -> dict[str, Any]:
    """{path: value} of everything that runs must have in common to be seeds of each other.

    equal_code: hashes of versions of the code that count as one, by whoever compares.
    """
    gpt = config[RUN].get("gpt") or {}
    settings = curve(config)
    settings.pop(SEED, None)
    # where its schedule was another until there, that is among the changes
    settings.pop("branch_from", None)
    first_weights = first_weights_of(config)
    if "sha256" in first_weights:
        settings["init_from"] = first_weights["sha256"]
    if "dataset.train" not in settings:
        # a config.yaml that tells the dataset as a whole
        settings["dataset"] = (config.get("dataset") or {}).get("fingerprint")
    settings["max_train_steps"] = gpt.get("max_train_steps")
    if (config.get(CODE) or {}).get("hash") in equal_code:
        settings = {path: value for path, value in settings.items() if not is_code(path)}
        settings[CODE] = min(equal_code)
    changes = []
    for entry in changes_of(config):
        is_equal = entry["setting"] == CODE and {entry["was"], entry["is"]} <= equal_code
        if not is_equal:
            changes.append(change_in_words(entry))
    if changes:
        settings[CHANGES] = "; ".join(changes)
    return settings


def is_code(path: str) -> bool:
    """Whether a setting is the code, or a part of it."""
    return path == CODE or path.startswith(f"{CODE}.")


def digest(config: Mapping[str, Any]) -> str:
    """12 characters that are the same for seeds of each other."""
    return _digest(identity(config))


def digest_with_seed(config: Mapping[str, Any]) -> str:
    """12 characters that are the same for one run alone."""
    return _digest(with_seed(config))


def with_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} of all that a run is, its seed too."""
    return {**identity(config), SEED: curve(config).get(SEED)}


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing(identities: Iterable[Mapping[str, Any]]) -> list[str]:
    """The paths at which identities differ, in the order in which they are told."""
    identities = list(identities)
    paths = dict.fromkeys(path for settings in identities for path in settings)
    differing_paths = []
    for path in paths:
        values = [json.dumps(settings.get(path), default=str) for settings in identities]
        if len(set(values)) > 1:
            differing_paths.append(path)
    return differing_paths


# ---- Resuming


def differences_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{path: (value before, value now)} of the settings by which the curves of two config.yaml
    differ. What one of them does not tell at all, as one of an earlier version, is no difference.
    """
    before, now = curve(old), curve(new)
    told = _blocks_of(old) & _blocks_of(new)
    differences = {}
    for path in {**before, **now}:
        telling = TOLD_BY.get(path.partition(".")[0])
        is_told = telling is None or telling in told
        is_looked_at = is_told and not is_code(path) and path != VARIANT  # a name makes no curve
        if is_looked_at and before.get(path) != now.get(path):
            differences[path] = (before.get(path), now.get(path))
    for path in ARGUMENTS_OF.keys() & differences.keys():
        differences[path] = (code_in_words(old.get(path)), code_in_words(new.get(path)))
    if "eval_data_split" in differences:  # which says why other documents are scored
        differences.pop("dataset.scored", None)
    pairs: dict[str, tuple] = {
        REFERENCE_SPEED: tuple(_reference_speed(tree) for tree in (old, new))
    }
    tokenizers = tuple((tree.get("dataset") or {}).get("tokenizer") for tree in (old, new))
    if None not in tokenizers:
        pairs[TOKENIZER] = tokenizers
    if CODE in new:
        # of a version that did not tell, it may have been another
        pairs[CODE] = ((old.get(CODE) or {}).get("hash", "unknown"), new[CODE]["hash"])
    if "documents" not in told:
        pairs["dataset"] = tuple(
            (tree.get("dataset") or {}).get("fingerprint") for tree in (old, new)
        )
    return differences | {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _reference_speed(config: Mapping[str, Any]) -> Any:
    return _plain((config[RUN].get("gpt") or {}).get(REFERENCE_SPEED))


# paths that a config.yaml of an earlier version lacks -> what it has where it tells them
TOLD_BY = {
    CODE: CODE,
    "parameters": "parameters",
    "kernels": "kernels",
    "dataset": "documents",
}


def _blocks_of(config: Mapping[str, Any]) -> set[str]:
    """Which of TOLD_BY a config.yaml tells."""
    dataset = config.get("dataset") or {}
    blocks = {block for block in (CODE, "parameters", "kernels") if config.get(block)}
    return blocks | ({"documents"} if dataset.get("train") else set())


def is_free(path: str) -> bool:
    """Whether a setting may change on resuming without leave."""
    return path.startswith(FREE)


def change(step: int, setting: str, was: Any, now: Any) -> dict[str, Any]:
    """An entry of config.yaml's `changes`: from `step` on, a setting has another value."""
    return {"step": step, "setting": setting, "was": was, "is": now}


def changes_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was changed on resuming, by rising step."""
    changes = config.get(CHANGES)
    return changes if isinstance(changes, list) else []


def change_in_words(entry: Mapping[str, Any]) -> str:
    was, now = ("not set" if entry[key] is None else entry[key] for key in ("was", "is"))
    return f"{entry['setting']} {was} -> {now} at step {entry['step']}"


def sequences_until(step: int, batch_size: int, changes: Iterable[Mapping[str, Any]]) -> int:
    """Sequences of training in the steps up to `step`, of a run whose batch was changed on the way.

    batch_size: the present one, train_batch_size. changes: of config.yaml.
    """
    sequences = 0
    begin = 0
    for entry in changes:
        if entry["setting"] == BATCH_SETTING:
            end = min(entry["step"], step)
            sequences += (end - begin) * entry["was"]
            begin = end
    return sequences + (step - begin) * batch_size

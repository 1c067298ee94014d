"""Whether a run's config.yaml is as training writes it: what every reader of runs may rely on.

A file of an earlier version may lack what that version did not know. What stands in the file is of
its type and within its limits, and does not contradict itself.
"""

from pathlib import Path
from typing import Any

from gpt.config.batch import BATCH
from gpt.config.identity import BATCH_SETTING, CHANGE, CHANGES, CODE, RUN
from gpt.config.keys import Key
from gpt.config.options import GPT_KEYS
from gpt.config.run_config import value_at
from gpt.config.saved import CONFIG
from gpt.config.shape import SHAPE_KEYS
from gpt.errors import UserError

MEND = "use the file that training wrote"
MODEL = "model"
MOST = 2**63  # whole numbers up to it are believed
DEEPEST = 20  # blocks and lists within each other

REQUIRED = (
    *(f"{MODEL}.{name}" for name in SHAPE_KEYS),
    "batch.global_size",
    f"{RUN}.gpt.max_train_steps",
    f"{RUN}.gpt.eval_data_split",
)
BLOCKS = (
    MODEL,
    RUN,
    "batch",
    "sources",
    CODE,
    f"{CODE}.parts",
    "dataset",
    "dataset.train",
    "dataset.scored",
    "began_from",
    *(f"{RUN}.{name}" for name in ("gpt", "optimizer", "scheduler", "fp16", "data_types")),
    f"{RUN}.zero_optimization",
)
# of "gpt", by readers
READ_OPTIONS = (
    "seed",
    "variant",
    "max_train_steps",
    "eval_data_split",
    "eval_every",
    "final_eval",
    "last_n",
    "log_metrics_every",
    "tokens_per_second",
    "reference_flops_per_token",
    "reference_precision",
)
_COUNT = Key(int, minimum=0)
_POSITIVE = Key(int, minimum=1)
_TEXT = Key(str)
# {dotted path: what it must be where it stands in the file}
VALUES = {
    "precision": Key(str, choices=("fp32", "fp16", "bf16")),
    "kernels": _TEXT,
    "parameters": _POSITIVE,
    "batch.global_size": _POSITIVE,
    f"{RUN}.{BATCH}": _POSITIVE,
    f"{CODE}.hash": _TEXT,
    f"{CODE}.commit": _TEXT,
    "began_from.sha256": _TEXT,
    "dataset.root": _TEXT,
    "dataset.fingerprint": _TEXT,
    "dataset.tokenizer": _TEXT,
    **{
        f"dataset.{split}.{name}": key
        for split in ("train", "scored")
        for name, key in {
            "split": _TEXT,
            "documents": _TEXT,
            "count": _COUNT,
            "tokens": _COUNT,
            "bytes": _COUNT,
        }.items()
    },
    **{f"{MODEL}.{name}": key for name, key in SHAPE_KEYS.items()},
    **{f"{RUN}.gpt.{name}": GPT_KEYS[name] for name in (*SHAPE_KEYS, *READ_OPTIONS)},
}
# what stands in two places
SAME = {
    "batch.global_size": f"{RUN}.{BATCH}",
    **{f"{MODEL}.{name}": f"{RUN}.gpt.{name}" for name in SHAPE_KEYS},
}


def require_run_config(path: Path, config: dict[str, Any]) -> None:
    """Raise UserError where a run's config.yaml is not as training writes it. path: the run's
    folder."""
    problem = (
        _not_plain(config)
        or _wrong_block(config)
        or _lacking(config)
        or _wrong_value(config)
        or _wrong_change(config)
    )
    if problem:
        raise UserError(f"{path / CONFIG}{problem}", mend=MEND)
    for place, other in SAME.items():
        value, other_value = value_at(config, place), value_at(config, other)
        if other_value is not None and value != other_value:
            raise UserError(
                f"{path / CONFIG} contradicts itself: {place} is {value}, and {other} is"
                f" {other_value}",
                mend=MEND,
            )


def _not_plain(value: Any, place: str = "", depth: int = 0) -> str | None:
    """What is no value of JSON, or no number that can be meant, as the rest of a sentence."""
    if depth > DEEPEST:
        return f": {place} is nested too deeply"
    if isinstance(value, list):
        value = dict(enumerate(value))
    elif isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                return f": {place or 'it'} has the key {name!r}, which is no text"
    if isinstance(value, dict):
        for name, inner in value.items():
            problem = _not_plain(inner, f"{place}.{name}".lstrip("."), depth + 1)
            if problem:
                return problem
        return None
    if isinstance(value, int) and abs(value) > MOST:
        return f": {place} is beyond {MOST}, too large to be meant"
    if value is None or isinstance(value, (str, int, float)):
        return None
    return f": {place} is {value!r}, no value of JSON"


def _wrong_block(config: dict[str, Any]) -> str | None:
    for place in BLOCKS:
        if not isinstance(value_at(config, place), (dict, type(None))):
            return f": {place} is no block"
    unknown = sorted(set(config.get(MODEL) or {}) - set(SHAPE_KEYS))
    if unknown:
        return f" has {MODEL}.{unknown[0]}, which this version does not know"
    return None


def _lacking(config: dict[str, Any]) -> str | None:
    for place in REQUIRED:
        if value_at(config, place) is None:
            return f" does not tell {place}"
    return None


def _wrong_value(config: dict[str, Any]) -> str | None:
    for place, key in VALUES.items():
        value = value_at(config, place)
        problem = None if value is None else key.problem(value)
        if problem:
            return f": {place} {problem}"
    for name, digest in (value_at(config, f"{CODE}.parts") or {}).items():
        if not isinstance(digest, str):
            return f": {CODE}.parts.{name} is {digest!r}, not a text"
    return None


def _wrong_change(config: dict[str, Any]) -> str | None:
    changes = config.get(CHANGES)
    if changes is None:
        return None
    if not isinstance(changes, list):
        return f": {CHANGES} is no list"
    step = 0
    for number, entry in enumerate(changes, 1):
        problem = change_problem(entry)
        if problem is None and entry["step"] < step:
            problem = f"is of step {entry['step']}, after one of step {step}"
        if problem:
            return f": entry {number} of {CHANGES} {problem}"
        step = entry["step"]
    return None


def change_problem(entry: Any) -> str | None:
    """What is wrong with a change of a setting on resuming, of config.yaml or of an event."""
    if not isinstance(entry, dict) or not set(entry) >= CHANGE:
        return f"does not tell {', '.join(sorted(CHANGE))}"
    for name, key in (("step", _COUNT), ("setting", _TEXT)):
        problem = key.problem(entry[name])
        if problem:
            return f"has a {name} that {problem}"
    key_of = {BATCH_SETTING: _POSITIVE, CODE: _TEXT}.get(entry["setting"])
    for name in ("was", "is"):
        is_untold = entry["setting"] == CODE and entry[name] is None
        problem = key_of.problem(entry[name]) if key_of and not is_untold else None
        if problem:
            return f"tells {entry['setting']} {name} what {problem}"
    return None

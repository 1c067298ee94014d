"""Whether a config.yaml is as training writes it: what every reader of it may rely on.

A file of an earlier version may lack what that version did not know. What stands in the file is of
its type and within its limits, and does not contradict itself.
"""

import re
from pathlib import Path
from typing import Any

from gpt.config.batch import BATCH
from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.identity import (
    ARGUMENTS_OF,
    BATCH_SETTING,
    CHANGE,
    CHANGES,
    CODE,
    MODEL_FILE,
    RUN,
)
from gpt.config.keys import REQUIRED, Key
from gpt.config.optimizer_keys import OPTIMIZERS, SCHEDULERS
from gpt.config.own_code import hash_of
from gpt.config.run_config import value_at
from gpt.config.shape import SHAPE_KEYS
from gpt.errors import UserError

MEND = "use the file that training wrote"
MODEL = "model"
MOST = 2**63  # whole numbers up to it are believed
DEEPEST = 20  # blocks and lists within each other

OF_EVERY_RUN = (
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
    "began_from.first_weights",
    *ARGUMENTS_OF,
    *(f"{block}.files" for block in ARGUMENTS_OF),
)
_COUNT = Key(int, minimum=0)
_POSITIVE = Key(int, minimum=1)
_TEXT = Key(str)
# {dotted path: what it must be where it stands in the file}
VALUES = {
    "name": _TEXT,
    "step": _COUNT,
    "precision": Key(str, choices=("fp32", "fp16", "bf16")),
    "kernels": _TEXT,
    "parameters": _POSITIVE,
    **{
        f"batch.{name}": _POSITIVE
        for name in ("global_size", "micro_size", "accumulation", "world_size", "micro_limit")
    },
    f"{CODE}.hash": _TEXT,
    f"{CODE}.commit": _TEXT,
    f"{CODE}.dirty": Key(bool),
    **{f"{MODEL_FILE}.{name}": _POSITIVE for name in ("flops_per_token", "flops_counted")},
    "began_from.sha256": _TEXT,
    "began_from.step": _COUNT,
    "began_from.branch": _TEXT,
    "began_from.first_weights.sha256": _TEXT,
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
    **{f"{block}.{name}": _TEXT for block in ARGUMENTS_OF for name in ("name", "hash")},
}
# names and hashes in a block of code of the user's own
_FILE_NAME = re.compile(r"[^/\x00]+\.py")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# what stands in two places
SAME = {
    "batch.global_size": f"{RUN}.{BATCH}",
    **{f"{MODEL}.{name}": f"{RUN}.gpt.{name}" for name in SHAPE_KEYS},
}


def require_well_formed(path: Path | str, config: Any) -> None:
    """Raise UserError where a config.yaml, or that of weights from elsewhere, is not as this
    trainer writes it. path: the file's."""
    if not all(isinstance(value_at(config, block), dict) for block in (MODEL, RUN)):
        raise UserError(
            f"{path} is not the config.yaml of a run: it lacks the blocks `{MODEL}` and `{RUN}`"
        )
    problem = (
        _not_plain(config)
        or _wrong_block(config)
        or _wrong_value(config)
        or _wrong_setting(config[RUN], TOP_KEYS, RUN)
        or _wrong_change(config)
        or _wrong_own_code(config)
    )
    if problem:
        raise UserError(f"{path}{problem}", mend=MEND)
    for place, other in SAME.items():
        value, other_value = value_at(config, place), value_at(config, other)
        if None not in (value, other_value) and value != other_value:
            raise UserError(
                f"{path} contradicts itself: {place} is {value}, and {other} is {other_value}",
                mend=MEND,
            )


def require_all_of_a_run(path: Path | str, config: dict[str, Any]) -> None:
    """Raise UserError where a well-formed config.yaml lacks what that of every run tells."""
    for place in OF_EVERY_RUN:
        if value_at(config, place) is None:
            raise UserError(f"{path} does not tell {place}", mend=MEND)


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


def _wrong_value(config: dict[str, Any]) -> str | None:
    for place, key in VALUES.items():
        value = value_at(config, place)
        problem = None if value is None else key.problem(value)
        if problem:
            return f": {place} {problem}"
    for block in (f"{CODE}.parts", "sources"):
        for name, text in (value_at(config, block) or {}).items():
            if not isinstance(text, str):
                return f": {block}.{name} is {text!r}, not a text"
    return None


def _wrong_setting(block: dict[str, Any], keys: dict[str, Any], place: str) -> str | None:
    """What is wrong with a value of the run's JSON. A key that is not known is one of another
    version."""
    for name, value in block.items():
        where = f"{place}.{name}"
        key = keys.get(name)
        if key is OPTIMIZERS or key is SCHEDULERS:
            key = key.get(str(block.get("type")), {})
        problem = None
        if isinstance(key, dict):
            if value is not None and not isinstance(value, dict):
                return f": {where} is no block"
            problem = _wrong_setting(value or {}, key, where)
        elif isinstance(key, Key):
            problem = _wrong_key(key, value)
            problem = problem and f": {where} {problem}"
        if problem:
            return problem
    return None


def _wrong_key(key: Key, value: Any) -> str | None:
    if value is not None:
        return key.problem(value)
    # of a key without a default it says that the value is not set
    return None if key.default in (None, REQUIRED) else "is null"


def _wrong_own_code(config: dict[str, Any]) -> str | None:
    """What is wrong with the files of the user's own that a run says it took itself from."""
    for block in ARGUMENTS_OF:
        facts = config.get(block)
        is_set = value_at(config, f"{RUN}.gpt.{block}") is not None
        if facts is None and not is_set:
            continue
        if facts is None:
            return f" does not tell the name and the hash of {RUN}.gpt.{block}"
        if not is_set:
            return f" has the block {block}, and no {RUN}.gpt.{block}"
        name, files = facts.get("name"), facts.get("files")
        if not isinstance(files, dict) or name not in files:
            return f": {block}.files does not tell {block}.name"
        for file, digest in files.items():
            if not _FILE_NAME.fullmatch(file):
                return f": {block}.files has {file!r}, which is no name of a .py file"
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                return f": {block}.files.{file} is {digest!r}, not a sha256"
        if facts.get("hash") != hash_of(name, files):
            return f" contradicts itself: {block}.hash is not that of {block}.files"
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

"""Values of a run's JSON brought to one form before they are checked: whole numbers and floats,
comments, and keys that are switched off."""

from typing import Any

from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.draft import Draft
from gpt.config.keys import LARGEST, PAIR, Key, is_number
from gpt.config.observer_keys import OBSERVER_KEYS
from gpt.config.optimizer_keys import OPTIMIZERS, SCHEDULERS
from gpt.config.refused_keys import HARMLESS_WHERE_TRUE, REFUSED

# DeepSpeed's key for how often it prints, which most public files have and nothing depends on
STEPS_PER_PRINT = "steps_per_print"
# how the names of keys begin that hold a remark
COMMENT = "_comment"


def normalise(draft: Draft) -> None:
    """Bring a draft's tree to one form: 5e8 is a whole number, what is refused is allowed where it
    is switched off, and observers that are switched off are left out."""
    _leave_out_comments(draft, draft.tree)
    _make_numbers(draft.tree, TOP_KEYS)
    for path in REFUSED:
        value = draft.get(path)
        is_harmless = value is True if path in HARMLESS_WHERE_TRUE else _is_off(value)
        if is_harmless:
            draft.remove(path)
    for block, keys in OBSERVER_KEYS.items():
        observer = draft.get(block)
        is_one = isinstance(observer, dict) and "enabled" in keys and observer.keys() <= keys.keys()
        # for DeepSpeed a comms_logger is switched on by its block alone
        if is_one and observer.get("enabled", False) is False:
            draft.remove(block)
    if is_number(draft.get(STEPS_PER_PRINT)):
        draft.remove(STEPS_PER_PRINT)
        draft.notices.append(f"{STEPS_PER_PRINT} is left out: {REFUSED[STEPS_PER_PRINT]}")


def _leave_out_comments(draft: Draft, block: Any, path: str = "") -> None:
    for name in list(block) if isinstance(block, dict) else ():
        where = f"{path}.{name}" if path else str(name)
        if str(name).startswith(COMMENT):
            draft.remove(where)
        else:
            _leave_out_comments(draft, block[name], where)


def _is_off(value: Any) -> bool:
    """false, a block that says so by "enabled", or one in which all is off."""
    if isinstance(value, dict):
        is_disabled = value.get("enabled") is False
        return is_disabled or (bool(value) and all(_is_off(inner) for inner in value.values()))
    return value is False


def _make_numbers(block: Any, keys: dict[str, Any]) -> None:
    """Turn floats that are whole into integers, and integers of a pair into floats, where the table
    of keys asks for those."""
    if not isinstance(block, dict):
        return
    for name, value in block.items():
        key = keys.get(name)
        if isinstance(key, dict):
            if key is OPTIMIZERS or key is SCHEDULERS:
                kind = block.get("type")
                key = key.get(kind, {}) if isinstance(kind, str) else {}
            _make_numbers(value, key)
        elif isinstance(key, Key) and key.kind is int and _is_whole(value):
            block[name] = int(value)
        elif isinstance(key, Key) and key.kind == PAIR and isinstance(value, list):
            block[name] = [_as_float(number) for number in value]


def _as_float(value: Any) -> Any:
    return float(value) if is_number(value) and abs(value) <= LARGEST else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST

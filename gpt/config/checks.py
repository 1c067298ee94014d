"""Which values of a run's JSON are mistakes by themselves: unknown, of another type, out of their
range."""

from typing import Any

from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.draft import Mistake, about
from gpt.config.keys import REQUIRED, Key, nearest
from gpt.config.refused_keys import REFUSED


def check(block: Any, keys: dict[str, Any], path: str = "") -> list[Mistake]:
    """All mistakes in a JSON block against its table of keys. path: of the block itself."""
    if not isinstance(block, dict):
        return [about(path, f"is {block!r}, not a block {{…}}")]
    mistakes = []
    for name, value in block.items():
        where = f"{path}.{name}" if path else name
        key = keys.get(name)
        if key is None:
            mistakes.append(about(where, _unknown(name, where, keys)))
        elif name == "params" and "type" in keys:
            kind = block.get("type")
            if isinstance(kind, str) and kind in key:
                mistakes += check(value, key[kind], where)
        elif isinstance(key, dict):
            mistakes += check(value, key, where)
        elif problem := key.problem(value):
            mistakes.append(about(where, problem))
    for name, key in keys.items():
        if isinstance(key, Key) and key.default is REQUIRED and name not in block:
            hint = key.doc if key.when_missing is None else key.when_missing
            where = f"{path}.{name}" if path else name
            mistakes.append(about(where, f"is missing: {hint}" if hint else "is missing"))
    return mistakes


def _unknown(name: str, where: str, keys: dict[str, Any]) -> str:
    if where in REFUSED:
        return f"is not supported here: {REFUSED[where]}"
    close = nearest(name, keys)
    homes = [home for home in _homes(TOP_KEYS, name) if home != where]
    if homes and not close:
        return f"is not known there: it belongs in {' or '.join(homes)}"
    return f"is not a known key{close}"


def _homes(keys: dict[str, Any], name: str, path: str = "") -> list[str]:
    """Paths at which a key called `name` exists."""
    homes = []
    for key, value in keys.items():
        where = f"{path}.{key}" if path else key
        if key == name:
            homes.append(where)
        if not isinstance(value, dict):
            continue
        if key == "params":
            if any(name in params for params in value.values()):
                homes.append(f"{where}.{name}")
        elif not _is_observer(key, value):
            homes += _homes(value, name, where)
    return homes


def _is_observer(name: str, keys: dict[str, Any]) -> bool:
    """Whether a block is one of DeepSpeed's observers, whose keys share names that nobody looks
    for there."""
    return isinstance(keys.get("enabled"), Key) and name not in ("fp16", "bf16")

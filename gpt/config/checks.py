"""Which values of a run's JSON are mistakes by themselves: unknown, of another type, out of their
range."""

from typing import Any

from gpt.config.draft import Mistake, about
from gpt.config.keys import REQUIRED, Key, in_json
from gpt.config.option_names import homes
from gpt.config.refused_keys import REFUSED
from gpt.config.synonyms import hint_for_block, hint_for_key
from gpt.wording import nearest


def check(block: Any, keys: dict[str, Any], path: str = "") -> list[Mistake]:
    """All mistakes in a JSON block against its table of keys. path: of the block itself."""
    if not isinstance(block, dict):
        hint = hint_for_block(path)
        return [about(path, f"is {in_json(block)}, not a block {{…}}{hint}")]
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
    hint = hint_for_key(name, where)
    if hint is not None:
        return hint
    others = [home for home in homes(name) if home != where]
    if others:
        return f"is not known there: it belongs in {' or '.join(others)}"
    return f"is not a known key{nearest(name, keys)}"

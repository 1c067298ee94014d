"""Settings of runs: every key that a run's JSON may have, with values that nobody expects."""

import copy
import random
from functools import cache
from typing import Any

from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.keys import REQUIRED, Key

from . import hostile
from .first_inputs import SETTINGS


@cache
def keys() -> dict[str, Key]:
    """{dotted path: key} of all that a run's JSON may have."""
    return dict(_keys(TOP_KEYS, ""))


def _keys(table: dict[str, Any], path: str) -> list[tuple[str, Key]]:
    pairs = []
    for name, entry in table.items():
        where = f"{path}{name}"
        if isinstance(entry, Key):
            pairs.append((where, entry))
        elif name == "params":  # a table for each type
            for params in entry.values():
                pairs += _keys(params, f"{where}.")
        elif isinstance(entry, dict):
            pairs += _keys(entry, f"{where}.")
    return pairs


def damaged(rng: random.Random) -> dict:
    """The settings of a small run, with one to three keys hostile, or legal one by one."""
    tree = copy.deepcopy(SETTINGS)
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        path, key = rng.choice(list(keys().items()))
        put(tree, path, value_of(rng, key))
    return tree


def without_compiling(tree: dict) -> dict:
    """The settings without those for which DeepSpeed compiles an operator, for minutes."""
    zero = tree.get("zero_optimization")
    if isinstance(zero, dict):
        for block in ("offload_optimizer", "offload_param"):
            zero.pop(block, None)
    return tree


def put(tree: dict, path: str, value: Any) -> None:
    *blocks, name = path.split(".")
    for block in blocks:
        if not isinstance(tree.get(block), dict):
            tree[block] = {}
        tree = tree[block]
    tree[name] = value


def value_of(rng: random.Random, key: Key) -> Any:
    """A value of a key: hostile, or at the edge of what is legal."""
    if rng.random() < 0.4:
        return hostile.value(rng)
    if key.choices and rng.random() < 0.8:
        return rng.choice(key.choices)
    if key.kind is bool:
        return rng.random() < 0.5
    if key.kind is str:
        return rng.choice(hostile.TEXTS)
    if key.kind == "pair":
        return [rng.choice((0, 0.0, 0.5, 0.999999999)) for _ in range(2)]
    edges = [key.minimum, key.above, key.maximum, key.default, 0, 1, 2, 4, 1000]
    edges = [edge for edge in edges if isinstance(edge, (int, float)) and edge is not REQUIRED]
    edge = rng.choice(edges)
    return edge + rng.choice((0, 0, 1, -1)) if key.kind is int else edge * rng.choice((1, 1.5, 1e9))

"""Values, names and trees that nobody expects."""

import copy
import json
import os
import random
from typing import Any

import yaml

from .invariant import FORMULA, MARKUP

TEXTS = (
    "",
    " ",
    "\t\n",
    "a\nb",
    "\r",
    "\x00",
    "a\x00b",
    "\x1b]0;fuzz\x07\x1b[2J",
    "\x9b2J",
    "\u202egnp.exe",
    "\u2028",
    "\ud800",
    "\udcff",
    "\ufeff",
    "é" * 130,
    "x" * 255,
    "x" * 300,
    "x" * 5000,
    MARKUP,
    "</script><script>fuzz()</script>",
    "<!--",
    f"a|b{MARKUP}",
    "a\\|b",
    FORMULA,
    "-1+1",
    "'; DROP",
    "$(touch victim/PWNED)",
    "`id`",
    "%s%n{0}{x.y}",
    "*",
    "[a",
    "~",
    ".",
    "..",
    "/",
    "-",
    "--",
    "-x",
    "=",
    "../victim/thesis.txt",
    "victim",
    "/dev/zero",
    "/dev/full",
    "/dev/stdin",
    "/proc/self/mem",
    "/proc/self/environ",
    "all",
    "train",
    "test",
    "a,b",
    ",",
    "none",
    "null",
    "auto",
    "true",
    "0",
    "-1",
    "1",
    "2",
    "1_000",
    "٣",
    "0x10",
    "1e400",
    "1e308",
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "9" * 30,
    "9" * 5000,
    "2001-99-99",
    "12:30:45",
    "!!python/object/apply:os.system ['touch victim/PWNED']",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
    -(2**63) - 1,
    -0.0,
    0.5,
    1.5,
    -1.5,
    1e-3,
    5e-324,
    1e-320,
    1e15,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
)
OTHERS = (
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    [0, 0.95],
    [1, 2, 3],
    ["a", 1, None],
    {"a": 1},
    {"": ""},
    {"type": "Adam"},
    {"enabled": True},
    {"0": {"1": {"2": []}}},
)


def value(rng: random.Random) -> Any:
    """A value that may stand anywhere in JSON."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(TEXTS)
    if kind < 0.8:
        return rng.choice(NUMBERS)
    if kind < 0.95:
        return copy.deepcopy(rng.choice(OTHERS))
    return nested(rng.choice((3, 15, 25, 300)))


def nested(levels: int) -> Any:
    tree: Any = 1
    for level in range(levels):
        tree = {"a": tree} if level % 2 else [tree]
    return tree


def argument(rng: random.Random) -> str:
    """A word of a command line."""
    if rng.random() < 0.35:
        return str(rng.choice(NUMBERS))
    return as_argument(rng.choice(TEXTS))


def as_argument(text: str) -> str:
    """A text as a command is handed it: no zero byte, and bytes that are not UTF-8 as Python shows
    them."""
    return os.fsdecode(text.replace("\x00", "").encode("utf-8", "surrogatepass"))


def file_name(rng: random.Random) -> str:
    """A name of one file or folder that a file system takes."""
    while True:
        name = as_argument(rng.choice(TEXTS)).replace("/", "_")
        if name not in ("", ".", "..") and len(os.fsencode(name)) <= 255:
            return name


# ---- Trees of JSON and YAML


def damage_tree(rng: random.Random, tree: Any) -> Any:
    """A tree with one to three of its values hostile, gone, doubled, wrapped or exchanged."""
    holder = [copy.deepcopy(tree)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(places_of(holder))
        parent, key = rng.choice(places)
        _damage_place(rng, parent, key, places)
    return holder[0]


def places_of(node: Any) -> list[tuple[Any, Any]]:
    places = []
    items: list = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for key, child in items:
        places.append((node, key))
        places += places_of(child)
    return places


def _damage_place(rng: random.Random, parent: Any, key: Any, places: list) -> None:
    if not (key in parent if isinstance(parent, dict) else key < len(parent)):
        return
    how = rng.choice(("value", "value", "value", "gone", "text", "wrapped", "renamed", "exchanged"))
    if how == "value":
        parent[key] = value(rng)
    elif how == "gone" and not (isinstance(parent, list) and len(parent) == 1):
        del parent[key]
    elif how == "text":
        parent[key] = str(parent[key])
    elif how == "wrapped":
        parent[key] = rng.choice(([parent[key]], {"a": parent[key]}, [parent[key]] * 3))
    elif how == "renamed" and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = parent.pop(key)
    elif how == "exchanged":
        other, other_key = rng.choice(places)
        try:
            parent[key] = copy.deepcopy(other[other_key])
        except (LookupError, RecursionError):
            pass


def damage_json(rng: random.Random, text: str) -> str:
    if rng.random() < 0.03:
        return rng.choice(
            ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, "nul", '"\\ud800"', "[1,]")
        )
    damaged = as_json(damage_tree(rng, json.loads(text)))
    if rng.random() < 0.1:  # the same key twice
        damaged = damaged.replace("{", '{"step": 1, "gpt": 1, "step": 2, ', 1)
    return damaged


def as_json(tree: Any) -> str:
    return json.dumps(tree, indent=1)


def _bomb(levels: int) -> str:
    """YAML of a few lines that shows nine to the power of `levels` values."""
    lines = ["a0: &a0 [1]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


YAMLS = (
    "",
    "5",
    "[]",
    "a: &a [*a]",
    "? {a: 1}\n: 2",
    "a: 2001-99-99",
    "a: !!int x",
    "a: !!python/object/apply:os.system ['touch victim/PWNED']",
    "null: 1\n5: 2\n2001-01-01: 3",
    _bomb(10),
    "\ta: 1",
    "a: 1\na: 2",
    "---\na: 1\n---\nb: 2",
    "a: 1:2:3:4:5:6",
    "a: ." + "9" * 5000,
    "<<: 5",
    "<<: [1]",
    "=: 1",
)


def damage_yaml(rng: random.Random, text: str) -> str:
    how = rng.random()
    if how < 0.1:
        return rng.choice(YAMLS)
    if how < 0.2:
        lines = text.splitlines()
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(YAMLS))
        return "\n".join(lines)
    tree = damage_tree(rng, yaml.safe_load(text))
    try:
        return yaml.safe_dump(tree, sort_keys=False)
    except (yaml.YAMLError, RecursionError):
        return as_json(tree)


def damage_lines(rng: random.Random, text: str) -> str:
    """JSON lines: one or two of them damaged, doubled, gone or in another place."""
    lines = text.splitlines()
    for _ in range(rng.choice((1, 2))):
        if not lines:
            break
        at = rng.randrange(len(lines))
        how = rng.choice(("tree", "tree", "tree", "gone", "doubled", "moved", "cut", "hostile"))
        if how == "tree":
            lines[at] = as_json(damage_tree(rng, _json_or(lines[at]))).replace("\n", "")
        elif how == "gone":
            del lines[at]
        elif how == "doubled":
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif how == "moved":
            lines.append(lines.pop(at))
        elif how == "cut":
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        else:
            lines[at] = rng.choice(TEXTS)
    return "\n".join(lines) + rng.choice(("\n", "\n", ""))


def _json_or(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return {"line": line}

"""Values, names and damage that nobody expects."""

import copy
import gzip
import io
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
        places = list(_places(holder))
        parent, key = rng.choice(places)
        _damage_place(rng, parent, key, places)
    return holder[0]


def _places(node: Any) -> list[tuple[Any, Any]]:
    places = []
    items: list = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for key, child in items:
        places.append((node, key))
        places += _places(child)
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
    "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(
        f"a{i}: &a{i} [{'*a' + (str(i - 1) if i else '') + ','}"
        f"{', '.join(['*a' + (str(i - 1) if i else '')] * 8)}]\n"
        for i in range(9)
    ),
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


# ---- Files


def damage_file(rng: random.Random, path: Path) -> str:
    """Damage a file by its bytes, its structure, or by what it is; tells how."""
    kind = rng.random()
    if kind < 0.15:
        return damage_kind(rng, path)
    if kind < 0.6 and path.suffix in STRUCTURES:
        STRUCTURES[path.suffix](rng, path)
        return "structure"
    path.write_bytes(damage_bytes(rng, path.read_bytes()))
    return "bytes"


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, the end cut, a part doubled, zeroed, left out or made of noise."""
    if not content:
        return rng.randbytes(rng.choice((1, 100)))
    data = bytearray(content)
    # headers are at the beginning
    reach = len(data) if rng.random() < 0.5 else min(len(data), 160)
    start = rng.randrange(reach)
    end = min(len(data), start + rng.choice((1, 4, 50, 3000)))
    how = rng.choice(
        (
            "flip",
            "flip",
            "flip",
            "cut",
            "double",
            "zero",
            "ones",
            "noise",
            "without",
            "empty",
            "more",
        )
    )
    if how == "flip":
        for _ in range(rng.choice((1, 1, 1, 8))):
            at = rng.randrange(reach)
            data[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[start:]
    elif how == "double":
        data[start:end] *= 2
    elif how == "zero":
        data[start:end] = bytes(end - start)
    elif how == "ones":
        data[start:end] = b"\xff" * (end - start)
    elif how == "noise":
        data[start:end] = rng.randbytes(end - start)
    elif how == "without":
        del data[start:end]
    elif how == "empty":
        data.clear()
    else:
        data += rng.randbytes(rng.choice((1, 2, 1000)))
    return bytes(data)


def damage_kind(rng: random.Random, path: Path) -> str:
    """Put something else in a file's place."""
    how = rng.choice(
        ("fifo", "zero", "full", "folder", "dangling", "loop", "victim", "mode", "gone", "large")
    )
    if how == "mode":
        path.chmod(0)
        return how
    path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    elif how in ("zero", "full"):
        path.symlink_to(f"/dev/{how}")
    elif how == "folder":
        path.mkdir()
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "victim":
        up = len(path.parts) and os.path.relpath(_root_of(path) / "victim", path.parent)
        path.symlink_to(os.path.join(str(up), "thesis.txt"))
    elif how == "large":
        path.touch()
        os.truncate(path, 100 << 20)
    return how


def _root_of(path: Path) -> Path:
    """The workspace that a path lies in."""
    return next(above for above in path.parents if (above / "victim").is_dir())


def _damage_text(damage: Callable[[random.Random, str], str]) -> Callable:
    def of_file(rng: random.Random, path: Path) -> None:
        text = damage(rng, path.read_text(encoding="utf-8"))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))

    return of_file


def _damage_npy(rng: random.Random, path: Path) -> None:
    array = np.load(path)
    how = rng.choice(("dtype", "shape", "values", "object", "header", "fortran", "short"))
    if how == "header":
        header = rng.choice(
            (
                "{'descr': '<u4', 'fortran_order': False, 'shape': (99999999999,), }",
                "{'descr': '<u4', 'fortran_order': False, 'shape': (-1,), }",
                "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
                "{'descr': [('a', '<u4')], 'fortran_order': False, 'shape': (3,), }",
                "{'descr': '<u4', 'shape': (3,), }",
                "(((((((((" * 200,
                "{'descr': '<m8[ns]', 'fortran_order': False, 'shape': (3,), }",
                "[" + "0," * 20000 + "]",
                "",
            )
        ).encode()
        path.write_bytes(
            b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + array.tobytes()
        )
        return
    if how == "dtype" and array.dtype.kind in "iu":
        array = array.astype(rng.choice(("f4", "i8", "u1", "S8", "c8", "?", "M8[s]")))
    elif how == "shape":
        array = array[None] if rng.random() < 0.5 else array.reshape(-1)[:1].reshape(())
    elif how == "values" and array.size and array.dtype.kind in "iu":
        array.flat[rng.randrange(array.size)] = np.iinfo(array.dtype).max
    elif how == "object":
        array = np.array([None, {}, "x"], dtype=object)
    elif how == "fortran":
        array = np.asfortranarray(np.stack([array, array]))
    elif how == "short":
        array = array[: len(array) // 2]
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    path.write_bytes(buffer.getvalue())


class Malicious:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch victim/PWNED",)


def _damage_pt(rng: random.Random, path: Path) -> None:
    content = torch.load(path, weights_only=False)
    places = _places(content)
    for _ in range(rng.choice((1, 1, 2))):
        if not places:
            break
        parent, key = rng.choice(places)
        if isinstance(parent, dict) and key not in parent:
            continue
        leaf = parent[key]
        how = rng.choice(("value", "gone", "tensor", "malicious"))
        if how == "malicious":
            parent[key] = Malicious()
        elif how == "tensor" and isinstance(leaf, torch.Tensor):
            parent[key] = _other_tensor(rng, leaf)
        elif how == "gone" and isinstance(parent, dict):
            del parent[key]
            places = _places(content)
        else:
            parent[key] = value(rng)
    torch.save(content, path)


def _other_tensor(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().clone().reshape(-1)
    others = (
        flat[: len(flat) // 2],
        flat[:0],
        flat.to(torch.int64),
        flat.to(torch.bool),
        flat.double(),
        flat.half(),
        torch.cat([flat, flat]),
        flat[None, None],
        flat.float() * float("nan"),
        flat.float() * float("inf"),
        flat.float()[:1].expand(10**9),
        torch.zeros(2, 2).to_sparse(),
        flat.float().to("meta"),
    )
    return rng.choice(others)


def _damage_safetensors(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    damaged = as_json(damage_tree(rng, header)).encode()
    size = rng.choice((len(damaged),) * 6 + (0, 2**63, len(damaged) + 1))
    path.write_bytes(struct.pack("<Q", size) + damaged + body)


def _damage_gzip(rng: random.Random, path: Path) -> None:
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    path.write_bytes(gzip.compress(damage_lines(rng, text).encode("utf-8", "surrogatepass")))


def _damage_text_file(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    extra = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    path.write_bytes(content[:at] + extra + content[at:])


STRUCTURES: dict[str, Callable[[random.Random, Path], None]] = {
    ".json": _damage_text(damage_json),
    ".yaml": _damage_text(damage_yaml),
    ".jsonl": _damage_text(damage_lines),
    ".gz": _damage_gzip,
    ".npy": _damage_npy,
    ".pt": _damage_pt,
    ".safetensors": _damage_safetensors,
    ".txt": _damage_text_file,
    "": _damage_text_file,
}

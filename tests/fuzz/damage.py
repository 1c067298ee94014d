"""Damage to files: to their bytes, to what is in them, and to what they are."""

import gzip
import io
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from . import hostile


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
        path.symlink_to(os.path.relpath(_root_of(path) / "victim" / "thesis.txt", path.parent))
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
    places = hostile.places_of(content)
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
            places = hostile.places_of(content)
        else:
            parent[key] = hostile.value(rng)
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
    damaged = hostile.as_json(hostile.damage_tree(rng, header)).encode()
    size = rng.choice((len(damaged),) * 6 + (0, 2**63, len(damaged) + 1))
    path.write_bytes(struct.pack("<Q", size) + damaged + body)


def _damage_gzip(rng: random.Random, path: Path) -> None:
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    path.write_bytes(
        gzip.compress(hostile.damage_lines(rng, text).encode("utf-8", "surrogatepass"))
    )


def _damage_text_file(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    extra = rng.choice(hostile.TEXTS).encode("utf-8", "surrogatepass")
    path.write_bytes(content[:at] + extra + content[at:])


STRUCTURES: dict[str, Callable[[random.Random, Path], None]] = {
    ".json": _damage_text(hostile.damage_json),
    ".yaml": _damage_text(hostile.damage_yaml),
    ".jsonl": _damage_text(hostile.damage_lines),
    ".gz": _damage_gzip,
    ".npy": _damage_npy,
    ".pt": _damage_pt,
    ".safetensors": _damage_safetensors,
    ".txt": _damage_text_file,
    "": _damage_text_file,
}

"""Numbers in files, which may be damaged, and may be cut off while they are read: nothing is mapped
into memory, where a file that ends early ends the process."""

import math
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt.errors import UserError
from gpt.reading import open_regular

# of a plain array, as every writer of .npy files has it: no pickled objects, no records
_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?(?:[iu][1248]|f[248]|b1|[SU]\d{1,6}))',"
    rb"\s*'fortran_order':\s*(False|True),"
    rb"\s*'shape':\s*\(([\d, ]{0,200})\),?\s*\}\s*"
)
_MAGIC = b"\x93NUMPY"
# bytes of a header that may be read
_LONGEST_HEADER = 1 << 16


class _Layout(NamedTuple):
    """What the header of a .npy file says. first_byte: of the numbers."""

    dtype: np.dtype
    shape: tuple[int, ...]
    in_columns: bool
    first_byte: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def _layout(begin: bytes, size: int) -> _Layout | None:
    """Of a .npy file of `size` bytes that begins so; None where it is none, or not so long as its
    header says."""
    version = begin[6:7]
    if not begin.startswith(_MAGIC) or version not in (b"\1", b"\2", b"\3"):
        return None
    header_begin = 10 if version == b"\1" else 12
    header_end = header_begin + int.from_bytes(begin[8:header_begin], "little")
    match = _HEADER.fullmatch(begin[header_begin:header_end])
    if match is None:
        return None
    shape = tuple(int(size) for size in match[3].replace(b",", b" ").split())
    layout = _Layout(np.dtype(match[1].decode()), shape, match[2] == b"True", header_end)
    if size != header_end + layout.numbers * layout.dtype.itemsize:
        return None
    return layout


def parse(content: bytes) -> np.ndarray | None:
    """The array that the content of a .npy file holds; None where it is no plain array, or damaged.
    Pickled objects are never loaded."""
    layout = _layout(content[:_LONGEST_HEADER], len(content))
    if layout is None:
        return None
    values = np.frombuffer(content, layout.dtype, layout.numbers, layout.first_byte)
    if layout.dtype.kind == "U" and values.size and not _are_characters(values):
        return None
    return values.reshape(layout.shape, order="F" if layout.in_columns else "C")


def _are_characters(texts: np.ndarray) -> bool:
    """Whether texts consist of what Unicode has: of another number Python makes a broken text."""
    codes = texts.view(texts.dtype.byteorder.replace("|", "=") + "u4")
    return int(codes.max(initial=0)) <= sys.maxunicode


class TokenFile:
    """Token ids in a file, one behind the other: `len()`, and slices that are read when they are
    asked for.

    first_byte: of the ids; what follows it is all ids. Raises OSError where the file cannot be
    opened.
    """

    def __init__(self, path: Path | str, dtype: np.dtype | str, first_byte: int = 0):
        self.path = path
        self.dtype = np.dtype(dtype)
        self._first_byte = first_byte
        self._file = open_regular(path)
        size = os.fstat(self._file.fileno()).st_size
        self.shape: tuple[int, ...] = ((size - first_byte) // self.dtype.itemsize,)

    @classmethod
    def of_npy(cls, path: Path | str) -> "TokenFile | None":
        """Of a .npy file, whose `shape` should be (n,); None where it is none, or damaged."""
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            layout = _layout(file.read(_LONGEST_HEADER), size)
        if layout is None:
            return None
        ids = cls(path, layout.dtype, layout.first_byte)
        ids.shape = layout.shape
        return ids

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        first, end, _ = part.indices(len(self))
        return self.read(first, max(0, end - first))

    def read(self, first: int, count: int) -> np.ndarray:
        """(count,) ids from the one at `first` on. Raises UserError where the file has been cut off
        since it was opened."""
        content = b""
        size = count * self.dtype.itemsize
        begin = self._first_byte + first * self.dtype.itemsize
        while len(content) < size:
            # one call reads 2 GB at most
            block = os.pread(self._file.fileno(), size - len(content), begin + len(content))
            if not block:
                raise UserError(
                    f"{self.path} ends before its token {first + count:,}: it was cut off while it"
                    " was in use",
                    mend="copy that file again, or make it again",
                )
            content += block
        return np.frombuffer(content, self.dtype)

    def close(self) -> None:
        self._file.close()

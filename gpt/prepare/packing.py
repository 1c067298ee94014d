"""Files that may be packed, read as they are unpacked, block by block: nothing is unpacked to the
disk, and no more in memory than is asked for."""

import bz2
import gzip
import importlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from gpt.errors import UserError
from gpt.reading import open_regular

# Bytes of text to one of a packed file, at most as a rule, by its ending.
PACKINGS = {".gz": 3, ".zst": 4, ".bz2": 5, ".xz": 5}

# Bytes that unpacking a file may take, in each worker; `xz -9` asks for 65 MiB.
MOST_MEMORY = 1 << 30


def packing_of(path: Path | str) -> str:
    """The ending, of PACKINGS, that a file's name has; "" where it has none."""
    ending = os.path.splitext(path)[1].lower()
    return ending if ending in PACKINGS else ""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file's own bytes, as an open binary file. Raises UserError where it cannot be read, in the
    block too."""
    packing = packing_of(path)
    with readable(path), open_regular(path) as file:
        if not packing:
            yield file
            return
        # what a download that failed leaves; unpacked it would be a whole file without a text
        if not os.fstat(file.fileno()).st_size:
            raise EOFError("it is empty")
        if packing == ".zst":
            # the package zstandard takes a stream that was cut off for a whole one
            pyarrow = need("pyarrow", path)
            with pyarrow.input_stream(pyarrow.PythonFile(file, "r"), compression="zstd") as stream:
                yield stream
            return
        if packing == ".xz":
            _require_memory(path, file)
        openers: dict[str, Callable[[Any], Any]] = {
            ".gz": gzip.open,
            ".bz2": bz2.open,
            ".xz": lzma.open,
        }
        with openers[packing](file) as unpacked:
            yield unpacked


def _require_memory(path: Path, file: BinaryIO) -> None:
    """Raise UserError where a file of xz asks for more memory than MOST_MEMORY, as its beginning
    tells."""
    try:
        lzma.LZMADecompressor(memlimit=MOST_MEMORY).decompress(file.read(1 << 16), max_length=1)
    except lzma.LZMAError as error:
        if "limit" not in str(error):
            raise
        raise UserError(
            f"{path} takes more than {MOST_MEMORY >> 20:,} MiB of memory to be unpacked",
            mend="pack it again, with `xz -9` at most, or take it out",
        ) from error
    file.seek(0)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A block in which a file that cannot be read becomes a UserError."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        raise UserError(
            f"{path} is damaged or cut off ({error})", mend="copy it again, or take it out"
        ) from error


def need(package: str, path: Path) -> ModuleType:
    """A package that a file's kind needs. Raises UserError where it cannot be imported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        state = "is not installed"
        mend = "run `pip install -e '.[data]'` in the project's folder"
        if not isinstance(error, ModuleNotFoundError):
            state = f"cannot be imported ({str(error).splitlines()[0]})"
            mend += ", or install versions of it and of numpy that belong together"
        name = package.partition(".")[0]
        raise UserError(f"{path} needs the package `{name}`, which {state}", mend) from error

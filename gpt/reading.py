"""Files from outside, read with bounds: regular files only, up to a size."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# bytes of a text that a person or this trainer writes: settings, manifests, hostfiles
MOST_BYTES = 64 << 20


def open_regular(path: Path | str, most: int | None = None) -> BinaryIO:
    """A file, open for reading bytes.

    most: the bytes that it may have. Raises OSError, with the file's name, where it is none: what
    is a pipe or a device never ends, and a pipe without a writer would be waited for.
    """
    # a pipe is opened at once, whether or not it has a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "a pipe or a device, not a file", os.fspath(path))
        if most is not None and status.st_size > most:
            raise _too_large(path, most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def name_of_open(descriptor: int) -> str:
    """A name, in UTF-8, by which what this process has open can be opened again, or found, whatever
    it is called now."""
    return f"/proc/self/fd/{descriptor}"


def read_bytes(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file. Raises OSError, also where it has more than `most` bytes."""
    with open_regular(path, most) as file:
        # what /proc shows has no size
        content = file.read(most + 1)
    if len(content) > most:
        raise _too_large(path, most)
    return content


def read_text(path: Path | str, most: int = MOST_BYTES, encoding: str = "utf-8") -> str:
    """The text of a regular file, its line ends as they are. Raises OSError, and UnicodeDecodeError
    where it is not in this encoding."""
    return read_bytes(path, most).decode(encoding)


def _too_large(path: Path | str, most: int) -> OSError:
    words = f"more than the {most:,} bytes that such a file may have"
    return OSError(errno.EFBIG, words, os.fspath(path))

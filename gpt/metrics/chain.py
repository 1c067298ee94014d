"""The chain through the lines of metrics.jsonl: each ends with a hash of itself and of the line
before it, by which a line that was changed, added or removed is noticed.

    {"event": "train", "step": 1, …, "time": 1.5, "chain": "0123456789abcdef"}

A line's chain is the first 16 hexadecimal digits of sha256(the chain before it + the line up to its
own chain). Before the first chained line stands, for a chain, as many digits of sha256(all bytes
before it): none where a run begins, else those of an earlier version, which wrote no chain. So it
is after a damaged line, too, unless the process that goes on still knows the chain before it.

Whoever edits a file by intent can make its chain anew. Then it ends otherwise than what was
published of it.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt.metrics.lines import parse
from gpt.reading import open_regular

DIGITS = 16
MOST_BYTES_OF_LINE = 16 << 20
BLOCK = 1 << 16  # bytes at the end of a file in which its last line is looked for
_LINK = re.compile(rb', "chain": "([0-9a-f]{%d})"\}\s*\Z' % DIGITS)
_LONGEST_LINK = 64  # bytes, with its end


def linked(line: bytes, before: str) -> tuple[bytes, str]:
    """(a JSON object with its chain, the chain). line: the object, not empty, without an end of
    line. before: the chain before it."""
    body = line[:-1]
    chain = _digest(before, body)
    return body + f', "chain": "{chain}"}}'.encode(), chain


def _digest(before: str, body: bytes) -> str:
    content = hashlib.sha256(before.encode())
    content.update(body)
    return content.hexdigest()[:DIGITS]


def before_next(descriptor: int) -> str:
    """The chain before the line that will be appended to a file of whole lines."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, min(size, BLOCK), max(0, size - BLOCK))
    begin = tail.rfind(b"\n", 0, len(tail) - 1) + 1
    if begin or size <= BLOCK:  # the last line is whole
        last_line = tail[begin:]
        link = _LINK.search(last_line)
        if link and parse(last_line) is not None:
            return link[1].decode()
    follower = Follower()
    if not size:  # a device may have no end
        return follower.before_next
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        for line in lines_of(file):
            follower.follows(line, parse(line) is not None)
    return follower.before_next


class Follower:
    """Follows the chain through the lines of a file, from its first.

    head: the last chain that was read.
    """

    def __init__(self) -> None:
        self.head: str | None = None
        self._content = hashlib.sha256()  # of all lines
        self._is_torn = False  # since the last chain there was a damaged line

    @property
    def before_next(self) -> str:
        """The chain before the line that a process appends which has just opened the file."""
        if self.head is None or self._is_torn:
            return self._content.hexdigest()[:DIGITS]
        return self.head

    def follows(self, line: bytes, is_event: bool) -> bool:
        """Whether a line, with its end, is one that was written after those before it. What is no
        event is passed; what follows it was written by a process that found it there, or by one
        that knew the chain before it."""
        link = _LINK.search(line, max(0, len(line) - _LONGEST_LINK))
        if link is None or not is_event:
            self._content.update(line)
            self._is_torn |= not is_event and bool(line.strip())
            return self.head is None or not is_event
        chain, body = link[1].decode(), line[: link.start()]
        possible = {self.before_next, self.head or self.before_next}
        is_next = any(_digest(before, body) == chain for before in possible)
        self._content.update(line)
        self.head = chain
        self._is_torn = False
        return is_next


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of metrics.jsonl with their ends; of one that is too long, its beginning."""
    while line := file.readline(MOST_BYTES_OF_LINE):
        yield line
        while len(line) == MOST_BYTES_OF_LINE and not line.endswith(b"\n"):
            line = file.readline(MOST_BYTES_OF_LINE)


def is_whole(line: bytes) -> bool:
    """Whether a line of `lines_of` is not one that is being written."""
    return line.endswith(b"\n") or len(line) == MOST_BYTES_OF_LINE


def head(path: Path) -> str | None:
    """The chain of the last line; None where it has none. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _LONGEST_LINK))
        link = _LINK.search(file.read(_LONGEST_LINK))
    return link[1].decode() if link else None


def first_break(path: Path) -> int | None:
    """The number of the first line of a metrics.jsonl that is damaged, has no chain or does not
    follow from the line before it; None where the chain goes through the whole file, and begins
    with it. Raises OSError."""
    follower = Follower()
    with open_regular(path) as file:
        for number, line in enumerate(lines_of(file), 1):
            if not line.endswith(b"}\n") or parse(line) is None:
                return number
            if not follower.follows(line, is_event=True) or follower.head is None:
                return number
    return None

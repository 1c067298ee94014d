"""Standard input, output and errors of a command, as they may be: closed, full, of another
encoding, a terminal that obeys what it is sent."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from gpt.escaping import printable


class OutputError(OSError):
    """Standard output cannot be written to. errno: why."""


class PrintableStream(io.TextIOWrapper):
    """A stream that takes any text, and hands no control on to a terminal.

    Raises OutputError where it cannot be written to.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(printable(text))
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


def make_usable() -> None:
    """Have all three streams be there, and show whatever text is written to them. For a command, as
    it begins."""
    # else the next file that is opened takes the number of a closed stream, and gets what a
    # library writes to that
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")
        # a test, or a program around the command, may have put something else there
        if type(stream) is not io.TextIOWrapper:
            continue
        # the former one stays, as sys.__stdout__: a logger may have taken it before
        stream.flush()
        printable_stream = PrintableStream(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, f"__{name}__", stream)
        setattr(sys, name, printable_stream)


def discard(stream: TextIO) -> None:
    """Send what is left in a stream's buffer, and all that comes, nowhere: Python flushes it again
    as it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def obeyed(stream: TextIO) -> TextIO:
    """The same terminal, for what moves its cursor on purpose."""
    if not isinstance(stream, PrintableStream):
        return stream
    return open(stream.fileno(), "w", encoding=stream.encoding, errors="replace", closefd=False)

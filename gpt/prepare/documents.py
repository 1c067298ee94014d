"""Texts as they are found: .txt files, rows of .jsonl[.gz|.zst] and .parquet files; each document
read once, in blocks.

What is done to every text: a byte order mark at its beginning is left out, CRLF becomes LF, and
bytes that are not UTF-8 are refused, unless `Reading.bad_utf8` asks for U+FFFD in their place or
for the document to be skipped. NULs stay.
"""

import codecs
import gzip
import itertools
import json
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gpt.errors import UserError

BLOCK = 1 << 20  # bytes that are read at a time
CONTAINERS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
KINDS = (".txt", *CONTAINERS)
FOUND = ("byte_order_mark", "crlf", "nul", "bad_utf8")  # what a document is looked through for


@dataclass(frozen=True)
class Reading:
    """How texts are taken out of files."""

    text_field: str = "text"
    """The field, or column, of a row that holds its text."""
    id_field: str = "id"
    """The field that names a row; rows without it are named FILE:ROW, from 1."""
    bad_utf8: str = "refuse"
    """refuse, replace or skip."""


@dataclass(frozen=True)
class Input:
    """A file of one or many documents, or a text in memory (`source` is a str)."""

    name: str
    source: Path | str
    split: str | None = None  # where folders decide; else a rule does
    size: int = 0  # bytes on disk
    changed: int = 0  # when, in ns
    # of a file of rows: (first, end, rows before): bytes of .jsonl, row groups of .parquet
    part: tuple | None = None


class NotUTF8(UserError):
    """A document's bytes are not UTF-8."""


class Document:
    """A document by name. `blocks()` yields its text; `found` then holds what was met in it, of
    FOUND.

    source: a file, or the text itself, as str or bytes. where: how a mistake names it. replace:
    U+FFFD for bad bytes. met: what was met on the way to the text.
    """

    def __init__(self, name: str, source, where=None, replace: bool = False, met=()):
        self.name = name
        self.found = set()
        self.source = source
        self._replace = replace
        self._met = met
        self._where = where or (source if isinstance(source, Path) else name)

    def read(self) -> str:
        return "".join(self.blocks())

    def blocks(self):
        """Yields str. Raises NotUTF8."""
        self.found = set(self._met)
        held, first = "", True  # a CR whose LF may come next
        for text in self._decoded():
            text, held = held + text, ""
            if first and text.startswith("\ufeff"):
                self.found.add("byte_order_mark")
                text = text[1:]
            first = False
            if text.endswith("\r"):
                text, held = text[:-1], "\r"
            if "\r\n" in text:
                self.found.add("crlf")
                text = text.replace("\r\n", "\n")
            if "\0" in text:
                self.found.add("nul")
            yield text
        yield held

    def _decoded(self):
        rest, at = b"", 0
        for block in self._raw():
            data = rest + (block or b"")
            try:
                text, used = codecs.utf_8_decode(data, "strict", block is None)
            except UnicodeDecodeError as error:
                if not self._replace:
                    raise NotUTF8(
                        f"{self._where} is not UTF-8 at byte {at + error.start}: convert it, for"
                        " example with `iconv -t UTF-8`, take it out, or give --bad_utf8 replace"
                        " or skip"
                    ) from error
                self.found.add("bad_utf8")
                text, used = codecs.utf_8_decode(data, "replace", block is None)
            if text:
                yield text
            at, rest = at + used, data[used:]

    def _raw(self):
        """Blocks of bytes; None after the last one."""
        if isinstance(self.source, Path):
            with _readable(self.source), open(self.source, "rb") as file:
                while block := file.read(BLOCK):
                    yield block
        else:
            yield (
                self.source
                if isinstance(self.source, bytes)
                else self.source.encode("utf-8", "surrogatepass")
            )
        yield None


@contextmanager
def _readable(path):
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        raise UserError(
            f"{path} is damaged or cut off ({error}): copy it again, or take it out"
        ) from error


def kind_of(path) -> str | None:
    return next((kind for kind in KINDS if str(path).endswith(kind)), None)


def holds_rows(entry: Input) -> bool:
    """Whether an input's documents are known only when it is read."""
    return isinstance(entry.source, Path) and kind_of(entry.source) in CONTAINERS


def documents(entry: Input, reading: Reading):
    """The documents of an input, in its own order. Raises UserError where it cannot be read."""
    mend = reading.bad_utf8 == "replace"
    if not holds_rows(entry):
        yield Document(entry.name, entry.source, replace=mend)
    else:
        rows = _parquet_rows if kind_of(entry.source) == ".parquet" else _json_rows
        for number, name, text, met in rows(entry.source, entry.part, reading):
            name = f"{entry.name}:{number}" if name is None else str(name)
            yield Document(name, text, f"{entry.source}:{number}", mend, met)


def divide(entry: Input, size: int) -> list:
    """The parts of about `size` bytes in which an input can be read: lines of a .jsonl, row groups
    of a .parquet file."""
    kind = kind_of(entry.source) if holds_rows(entry) else None
    if entry.size < 2 * size or kind not in (".jsonl", ".parquet"):
        return [entry]
    marks = (
        _line_marks(entry.source, size) if kind == ".jsonl" else _group_marks(entry.source, size)
    )
    return [
        replace(entry, part=(first, end, before), size=entry.size * (end - first) // marks[-1][0])
        for (first, before), (end, _) in itertools.pairwise(marks)
    ]


def _line_marks(path, size):
    """[(byte, lines before it)] of the beginnings of parts, and of the file's end."""
    marks = [(0, 0)]
    at = 0
    lines = 0
    with _readable(path), open(path, "rb") as file:
        while block := file.read(BLOCK):
            end = block.rfind(b"\n") + 1
            if end and at + end - marks[-1][0] >= size:
                marks.append((at + end, lines + block.count(b"\n", 0, end)))
            at, lines = at + len(block), lines + block.count(b"\n")
    return marks if marks[-1][0] == at else [*marks, (at, lines)]


def _group_marks(path, size):
    """[(row group, rows before it)] of the beginnings of parts, and of the file's end."""
    with _parquet(path) as file:
        marks = [(0, 0)]
        rows = 0
        filled = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows = rows + group.num_rows
            filled = filled + group.total_byte_size
            if filled >= size or number == file.num_row_groups - 1:
                marks.append((number + 1, rows))
                filled = 0
    return marks


def _json_rows(path, part, reading):
    """(row, name or None, text, met) of the lines that are not blank."""
    with _readable(path), _opened(path) as file:
        first, end, before = part or (0, None, 0)
        if part:
            file.seek(first)
        for number, line in enumerate(
            _lines(file, None if end is None else end - first), before + 1
        ):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            text = Document(where, line, where, reading.bad_utf8 == "replace")
            try:
                row = json.loads(text.read())
            except NotUTF8:
                yield number, None, line, ()  # for the reader to stumble upon
                continue
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{where} is not JSON ({error}): mend it, or take it out"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{where} holds no JSON object: every line must be one, with the text in a"
                    " field"
                )
            yield (
                number,
                _name(row.get(reading.id_field), where),
                _text(row, where, reading),
                text.found & {"bad_utf8"},
            )


def _text(row, where, reading):
    if reading.text_field not in row:
        raise UserError(
            f"{where} has no field {reading.text_field!r}: it has"
            f" {', '.join(map(repr, row)) or 'none'}; name the one that holds the text with"
            " --text_field"
        )
    text = row[reading.text_field]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{where}: the field {reading.text_field!r} holds {type(text).__name__}, not text: name"
            " another with --text_field"
        )
    return text or ""


def _name(value, where):
    if value is None or isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value or any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError(
            f"{where} has an id that is no name ({value!r}): name another field with --id_field"
        )
    return value


def _opened(path):
    kind = kind_of(path)
    # the package zstandard takes a stream that was cut off for a whole one
    if kind == ".jsonl.zst":
        return _need("pyarrow", path).input_stream(str(path), compression="zstd")
    return gzip.open(path, "rb") if kind == ".jsonl.gz" else open(path, "rb")


def _lines(file, size):
    """Lines of the next `size` bytes of a file, None for all, read in blocks."""
    rest = []
    while block := file.read(BLOCK if size is None else min(BLOCK, size)):
        size = None if size is None else size - len(block)
        first, *lines = block.split(b"\n")
        rest.append(first)
        for line in lines:
            yield b"".join(rest)
            rest = [line]
    yield b"".join(rest)


def _need(package, path):
    try:
        return __import__(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path} needs the package `{package}`, which is not installed: run `pip install -e"
            " '.[data]'` in the project's folder"
        ) from error


@contextmanager
def _parquet(path):
    """An open pyarrow.parquet.ParquetFile."""
    _need("pyarrow", path)
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no whole Parquet file ({str(error).splitlines()[0]}): copy it again, or"
            " take it out"
        ) from error


def _parquet_rows(path, part, reading):
    with _parquet(path) as file:
        import pyarrow

        names = file.schema_arrow.names
        _text(dict.fromkeys(names), str(path), reading)
        columns = [reading.text_field] + [reading.id_field] * (reading.id_field in names)
        kind = file.schema_arrow.field(reading.text_field).type
        if not any(
            is_text(kind)
            for is_text in (
                pyarrow.types.is_string,
                pyarrow.types.is_large_string,
                pyarrow.types.is_binary,
                pyarrow.types.is_large_binary,
            )
        ):
            raise UserError(
                f"{path}: the column {reading.text_field!r} holds {kind}, not text: name another"
                " with --text_field"
            )
        first, end, number = part or (0, file.num_row_groups, 0)
        for batch in file.iter_batches(
            batch_size=16, columns=columns, row_groups=range(first, end)
        ):
            texts = batch.column(reading.text_field).cast(pyarrow.large_binary())
            ids = (
                batch.column(reading.id_field).to_pylist()
                if len(columns) > 1
                else [None] * len(texts)
            )
            for text, value in zip(texts, ids):
                number += 1
                yield number, _name(value, f"{path}:{number}"), text.as_py() or b"", ()

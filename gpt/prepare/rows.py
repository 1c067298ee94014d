"""Files of many documents: the rows of .jsonl[.gz|.zst] and .parquet files."""

import gzip
import importlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

from gpt.errors import UserError
from gpt.prepare import texts
from gpt.prepare.texts import Reading

# Arrow's types of a column of texts.
TEXT_KINDS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")

# What to do where a field has no names for rows.
NO_NAMES = (
    "name another field with --id_field, or one that no row has (--id_field none), by which rows"
    " are called FILE:ROW"
)


class Part(NamedTuple):
    """A part of a file, in bytes of text or .jsonl, or in row groups of .parquet."""

    first: int
    end: int
    rows_before: int


class Row(NamedTuple):
    """A document in a file of rows."""

    number: int
    """From 1."""
    name: str | int | None
    text: str | bytes
    oddities: Collection[str] = ()


def line_marks(path: Path, size: int) -> list[tuple[int, int]]:
    """(byte, lines before it) of the beginnings of parts, and of the file's end."""
    marks = [(0, 0)]
    position = 0
    lines = 0
    with texts.readable(path), open(path, "rb") as file:
        while block := file.read(texts.BLOCK):
            line_end = block.rfind(b"\n") + 1
            part_begin, _ = marks[-1]
            if line_end and position + line_end - part_begin >= size:
                marks.append((position + line_end, lines + block.count(b"\n", 0, line_end)))
            position += len(block)
            lines += block.count(b"\n")
    if marks[-1][0] != position:
        marks.append((position, lines))
    return marks


def group_marks(path: Path, size: int) -> list[tuple[int, int]]:
    """(row group, rows before it) of the beginnings of parts, and of the file's end."""
    with _parquet(path) as file:
        marks = [(0, 0)]
        rows = 0
        part_size = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows += group.num_rows
            part_size += group.total_byte_size
            if part_size >= size or number == file.num_row_groups - 1:
                marks.append((number + 1, rows))
                part_size = 0
    return marks


def json_rows(path: Path, part: Part | None, reading: Reading) -> Iterator[Row]:
    """The lines that are not blank."""
    with texts.readable(path), _opened(path) as file:
        if path.suffix != ".jsonl" and not path.stat().st_size:
            raise EOFError("it is empty")
        if part is None:
            lines = _lines(file, None)
            first_number = 1
        else:
            file.seek(part.first)
            lines = _lines(file, part.end - part.first)
            first_number = part.rows_before + 1
        for number, line in enumerate(lines, first_number):
            if line.strip():
                yield _json_row(line, number, f"{path}:{number}", reading)


def _json_row(line: bytes, number: int, where: str, reading: Reading) -> Row:
    document = texts.Document(where, line, where, reading.replaces_bad_bytes)
    try:
        row = json.loads(document.read())
    except texts.NotUTF8:
        # Whoever reads this text as a document is told, and knows whether to skip it.
        return Row(number, None, line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})", mend="mend it, or take it out") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{where} holds no JSON object",
            mend="every line must be one, with the text in a field",
        )
    name = _name(row.get(reading.id_field), where)
    return Row(number, name, _text(row, where, reading), document.oddities & {"bad_utf8"})


def _text(row: dict[str, Any], where: str, reading: Reading) -> str:
    if reading.text_field not in row:
        fields = ", ".join(map(repr, row)) or "none"
        outer, dot, _ = reading.text_field.partition(".")
        if dot and outer in row:
            raise UserError(
                f"{where} has no field {reading.text_field!r}, and fields within {outer!r} are not"
                " looked into",
                mend="write the text into a field of its own",
            )
        raise UserError(
            f"{where} has no field {reading.text_field!r}: it has {fields}; name the one that holds"
            " the text with --text_field"
        )
    text = row[reading.text_field]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{where}: the field {reading.text_field!r} holds {type(text).__name__}, not text",
            mend="name another with --text_field",
        )
    return text or ""


def _name(value: Any, where: str) -> str | int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and value and not _holds_surrogates(value):
        return value
    raise UserError(f"{where} has an id that is no name ({value!r})", mend=NO_NAMES)


def _holds_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _opened(path: Path) -> Any:
    """A .jsonl file's own bytes, as an open binary file."""
    if path.name.endswith(".zst"):
        # the package zstandard takes a stream that was cut off for a whole one
        return _need("pyarrow", path).input_stream(str(path), compression="zstd")
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    return open(path, "rb")


def _lines(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """Lines of the next `size` bytes of a file, None for all, read in blocks."""
    line_parts: list[bytes] = []
    left = size
    while block := file.read(texts.BLOCK if left is None else min(texts.BLOCK, left)):
        if left is not None:
            left -= len(block)
        line_end, *lines = block.split(b"\n")
        line_parts.append(line_end)
        for line in lines:
            yield b"".join(line_parts)
            line_parts = [line]
    yield b"".join(line_parts)


def _need(package: str, path: Path) -> ModuleType:
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


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """An open pyarrow.parquet.ParquetFile."""
    pyarrow = _need("pyarrow", path)
    parquet = _need("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is no whole Parquet file ({reason})", mend="copy it again, or take it out"
        ) from error


def parquet_rows(path: Path, part: Part | None, reading: Reading) -> Iterator[Row]:
    with _parquet(path) as file:
        import pyarrow

        fields = file.schema_arrow.names
        for field in (reading.text_field, reading.id_field):
            if fields.count(field) > 1:
                raise UserError(
                    f"{path} has {fields.count(field)} columns {field!r}", mend="rename all but one"
                )
        _text(dict.fromkeys(fields), str(path), reading)  # raises where there is no such field
        _require_text_column(path, file, reading.text_field)
        has_ids = reading.id_field in fields
        columns = [reading.text_field, reading.id_field] if has_ids else [reading.text_field]
        part = part or Part(0, file.num_row_groups, 0)
        groups = range(part.first, part.end)
        number = part.rows_before
        for batch in file.iter_batches(batch_size=16, columns=columns, row_groups=groups):
            texts = batch.column(reading.text_field)
            if isinstance(texts, pyarrow.DictionaryArray):
                texts = texts.dictionary_decode()
            texts = texts.cast(pyarrow.large_binary())
            ids = [None] * len(texts)
            if has_ids:
                ids = batch.column(reading.id_field).to_pylist()
            for text, value in zip(texts, ids):
                number += 1
                yield Row(number, _name(value, f"{path}:{number}"), text.as_py() or b"")


def _require_text_column(path: Path, file: Any, column: str) -> None:
    kind = file.schema_arrow.field(column).type
    # pandas' categoricals are stored as a dictionary of texts
    text_kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary<") else kind
    if str(text_kind) not in TEXT_KINDS:
        raise UserError(
            f"{path}: the column {column!r} holds {kind}, not text",
            mend="name another with --text_field",
        )

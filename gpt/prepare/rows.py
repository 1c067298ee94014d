"""Files of many documents: rows, and those of JSON lines."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gpt.errors import UserError
from gpt.parsing import parse_json
from gpt.prepare import texts
from gpt.prepare.packing import opened
from gpt.prepare.texts import Reading

# Blocks within one another in a row, of which but two values are used.
MOST_LEVELS = 500

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
    with opened(path) as file:
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


def json_rows(path: Path, part: Part | None, reading: Reading) -> Iterator[Row]:
    """The lines that are not blank."""
    with opened(path) as file:
        size = None
        rows_before = 0
        if part is not None:
            file.seek(part.first)
            size = part.end - part.first
            rows_before = part.rows_before
        number = rows_before
        for line in _lines(file, size, reading.largest_row):
            number += 1
            require_row_size(len(line), f"{path}:{number}", reading)
            if line.strip():
                yield _json_row(line, number, f"{path}:{number}", reading)


def _json_row(line: bytes, number: int, where: str, reading: Reading) -> Row:
    document = texts.Document(where, line, where, reading.replaces_bad_bytes)
    try:
        row = parse_json(document.read(), levels=MOST_LEVELS)
    except texts.NotUTF8:
        # Whoever reads this text as a document is told, and knows whether to skip it.
        return Row(number, None, line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error})", mend="mend it, or take it out") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{where} holds no JSON object",
            mend="every line must be one, with the text in a field",
        )
    name = name_of(row.get(reading.id_field), where)
    return Row(number, name, text_of(row, where, reading), document.oddities & {"bad_utf8"})


def text_of(row: dict[str, Any], where: str, reading: Reading) -> str:
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


def name_of(value: Any, where: str) -> str | int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and value and not _holds_surrogates(value):
        return value
    raise UserError(f"{where} has an id that is no name ({value!r})", mend=NO_NAMES)


def _holds_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def require_row_size(size: int, where: str, reading: Reading) -> None:
    """Raise UserError where a row is too large."""
    if size > reading.largest_row:
        raise UserError(
            f"{where} has more than {reading.largest_row:,} bytes, and a row is held in memory",
            mend="cut it up, take it out, or give --largest_row BYTES",
        )


def _lines(file: BinaryIO, size: int | None, most: int) -> Iterator[bytes]:
    """Lines of the next `size` bytes of a file, None for all, read in blocks. The last one is cut
    off where it has more than `most` bytes."""
    line_parts: list[bytes] = []
    unfinished = 0
    left = size
    while block := file.read(texts.BLOCK if left is None else min(texts.BLOCK, left)):
        if left is not None:
            left -= len(block)
        line_end, *lines = block.split(b"\n")
        line_parts.append(line_end)
        unfinished += len(line_end)
        if unfinished > most:
            break
        for line in lines:
            yield b"".join(line_parts)
            line_parts = [line]
            unfinished = len(line)
    yield b"".join(line_parts)

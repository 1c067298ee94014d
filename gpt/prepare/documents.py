"""Inputs and their documents: text files, rows of JSON lines and of tables, texts in memory."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gpt.prepare import rows, tables
from gpt.prepare.packing import PACKINGS, packing_of
from gpt.prepare.texts import Document, Reading

# By a file's ending, in small letters: how its rows are read; None where it is a document itself.
# All but tables may be packed, which one more ending of PACKINGS says.
READERS: dict[str, Callable[[Path, rows.Part | None, Reading], Iterator[rows.Row]] | None] = {
    ".txt": None,
    ".jsonl": rows.json_rows,
    ".jsonlines": rows.json_rows,
    ".ndjson": rows.json_rows,
    ".parquet": tables.parquet_rows,
    ".arrow": tables.arrow_rows,
}
# Plain .json files are settings as a rule; packed ones are corpora, of JSON lines.
PACKED_READERS = {
    **{ending: READERS[ending] for ending in (".txt", ".jsonl", ".jsonlines", ".ndjson")},
    ".json": rows.json_rows,
}
KINDS_IN_WORDS = (
    f"{', '.join(READERS)} file, nor one of {', '.join(PACKED_READERS)} packed as"
    f" {', '.join(PACKINGS)}"
)


@dataclass(frozen=True)
class Input:
    """A file of one or many documents, or a text in memory (`source` is a str)."""

    name: str
    source: Path | str
    split: str | None = None
    """Where folders decide; else a rule does."""
    size: int = 0
    """Bytes on disk."""
    changed: int = 0
    """When the file was changed last, in ns."""
    part: rows.Part | None = None
    """Of a file of rows that is read in parts, or of a text file that was cut into documents."""


def kind_of(path: Path | str) -> str | None:
    """The ending, of READERS, that a file's name has, packed or not; None where it has another."""
    packing = packing_of(path)
    stem = str(path)[: len(str(path)) - len(packing)]
    ending = os.path.splitext(stem)[1].lower()
    return ending if ending in (PACKED_READERS if packing else READERS) else None


def holds_rows(entry: Input) -> bool:
    """Whether an input's documents are known only when it is read."""
    return isinstance(entry.source, Path) and kind_of(entry.source) not in (None, ".txt")


def file_of_rows(entry: Input) -> str | None:
    """The name of an input that holds rows, None of others."""
    return entry.name if holds_rows(entry) else None


def documents(entry: Input, reading: Reading) -> Iterator[Document]:
    """The documents of an input, in its own order. Raises UserError where it cannot be read."""
    if not holds_rows(entry):
        span = None if entry.part is None else (entry.part.first, entry.part.end)
        replaces = reading.replaces_bad_bytes
        yield Document(entry.name, entry.source, replace_bad_bytes=replaces, span=span)
        return
    path = Path(entry.source)
    read_rows = {**READERS, **PACKED_READERS}[kind_of(path) or ""]
    assert read_rows is not None, "it holds rows"
    for row in read_rows(path, entry.part, reading):
        name = f"{entry.name}:{row.number}" if row.name is None else str(row.name)
        where = f"{path}:{row.number}"
        yield Document(name, row.text, where, reading.replaces_bad_bytes, row.oddities)


def divide(entry: Input, size: int) -> list[Input]:
    """The parts of about `size` bytes in which an input can be read: lines of JSON, row groups of a
    .parquet file."""
    kind = kind_of(entry.source) if holds_rows(entry) else None
    is_packed = bool(packing_of(entry.source))
    if entry.size < 2 * size or is_packed or kind in (None, ".arrow"):
        return [entry]
    path = Path(entry.source)
    marks = tables.group_marks(path, size) if kind == ".parquet" else rows.line_marks(path, size)
    file_end, _ = marks[-1]
    parts = []
    for (first, rows_before), (end, _) in itertools.pairwise(marks):
        part_size = entry.size * (end - first) // file_end
        parts.append(replace(entry, part=rows.Part(first, end, rows_before), size=part_size))
    return parts

"""Inputs and their documents: .txt files, rows of .jsonl[.gz|.zst] and .parquet files, texts in
memory."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gpt.prepare import rows
from gpt.prepare.texts import Document, Reading

CONTAINERS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
KINDS = (".txt", *CONTAINERS)


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
    """The ending, of KINDS, that a file's name has."""
    return next((kind for kind in KINDS if str(path).endswith(kind)), None)


def holds_rows(entry: Input) -> bool:
    """Whether an input's documents are known only when it is read."""
    return isinstance(entry.source, Path) and kind_of(entry.source) in CONTAINERS


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
    read_rows = rows.parquet_rows if kind_of(path) == ".parquet" else rows.json_rows
    for row in read_rows(path, entry.part, reading):
        name = f"{entry.name}:{row.number}" if row.name is None else str(row.name)
        where = f"{path}:{row.number}"
        yield Document(name, row.text, where, reading.replaces_bad_bytes, row.oddities)


def divide(entry: Input, size: int) -> list[Input]:
    """The parts of about `size` bytes in which an input can be read: lines of a .jsonl, row groups
    of a .parquet file."""
    kind = kind_of(entry.source) if holds_rows(entry) else None
    if entry.size < 2 * size or kind not in (".jsonl", ".parquet"):
        return [entry]
    path = Path(entry.source)
    marks = rows.line_marks(path, size) if kind == ".jsonl" else rows.group_marks(path, size)
    file_end, _ = marks[-1]
    parts = []
    for (first, rows_before), (end, _) in itertools.pairwise(marks):
        part_size = entry.size * (end - first) // file_end
        parts.append(replace(entry, part=rows.Part(first, end, rows_before), size=part_size))
    return parts

"""The work of preparing cut into units, and one unit encoded."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file, sync, when_full, write_atomically
from gpt.prepare.documents import Input, divide, documents, file_of_rows
from gpt.prepare.encode import Encoder, Lossy
from gpt.prepare.staging import MAKE_ROOM, NO_ROOM
from gpt.prepare.texts import Document, NotUTF8, Reading

# Bytes of input in a unit.
SMALLEST_UNIT = 1 << 20
LARGEST_UNIT = 1 << 26

# How many units the inputs are cut into, where these bounds let them.
UNITS = 1024

# A unit's number, and its inputs.
Unit = tuple[int, list[Input]]


class Record(NamedTuple):
    """What a unit knows of a document. A line of NUMBER.jsonl holds the values in this order, after
    a first line with the size and the sha256 of NUMBER.tokens."""

    name: str
    split: str | None
    """Where folders decide."""
    tokens: int
    """The end-of-document id not counted."""
    bytes: int
    sha256: str
    """Of the text as it was encoded, UTF-8."""
    left_out: str | None
    """Why: empty, bad_utf8, duplicate."""
    oddities: list[str]
    """Of gpt.prepare.texts.ODDITIES."""
    file: str | None
    """Of a row: the file that holds it."""


def read_records(unit: Path) -> list[Record]:
    """The records of an encoded unit, whose path bears no ending. Raises UserError where its tokens
    are not those that were encoded, or its records cannot be read."""
    lines = unit.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    try:
        facts, *rows = [json.loads(line) for line in lines]
        records_of_unit = [Record(*row) for row in rows]
    except (ValueError, TypeError):
        facts = None
    if facts != hash_file(unit.with_suffix(".tokens")):
        raise UserError(
            f"{unit}.tokens and {unit}.jsonl are not as they were written",
            mend="remove both, and the command that made them makes them again",
        )
    records = []
    for record in records_of_unit:
        if record.file:  # which many rows share
            record = record._replace(file=sys.intern(record.file))
        records.append(record)
    return records


def place_of_unit(folder: Path, number: int) -> Path:
    """A unit's path in its folder, without an ending."""
    return folder / f"{number:06d}"


def units_of(inputs: Sequence[Input]) -> list[list[Input]]:
    """The inputs cut into units, large files of rows in parts; a function of the inputs alone."""
    total = sum(entry.size for entry in inputs)
    unit_size = max(SMALLEST_UNIT, min(LARGEST_UNIT, total // UNITS))
    units: list[list[Input]] = []
    filled = unit_size
    for entry in inputs:
        for part in divide(entry, unit_size):
            if filled >= unit_size:
                units.append([])
                filled = 0
            units[-1].append(part)
            filled += part.size
    return units


@dataclass(frozen=True)
class UnitEncoder:
    """Encodes units into `folder`; called in worker processes. model: the tokenizer's file."""

    folder: Path
    reading: Reading
    model: bytes

    @when_full(NO_ROOM, MAKE_ROOM)
    def __call__(self, unit: Unit, report: Callable[[int], object]) -> tuple[int, list[NotUTF8]]:
        """Returns (number, mistakes of documents that are not UTF-8); with any, it is not done.

        report(bytes): called with the size of text that was encoded since.
        """
        number, inputs = unit
        place = place_of_unit(self.folder, number)
        aside = self.folder / f"{place.name}.{os.getpid()}.new"
        encoder = encoder_of(self.model)
        records: list[Record] = []
        bad: list[NotUTF8] = []
        try:
            with open(aside, "wb") as out:
                for entry, document in _documents_of_all(inputs, self.reading):
                    try:
                        record = _encode(document, entry, encoder, out, report)
                    except NotUTF8 as error:
                        record = _record(document, entry, 0, 0, "", "bad_utf8")
                        if self.reading.bad_utf8 == "refuse":
                            # a new one: what was caught keeps the document's bytes
                            bad.append(NotUTF8(error.document, error.byte, error.escaped))
                    records.append(record)
            if not bad:
                sync(aside)
                os.rename(aside, place.with_suffix(".tokens"))
                facts = hash_file(place.with_suffix(".tokens"))
                lines = [json.dumps(line) + "\n" for line in (facts, *records)]
                write_atomically(place.with_suffix(".jsonl"), "".join(lines))
        finally:
            aside.unlink(missing_ok=True)
        return number, bad


def _documents_of_all(
    inputs: Sequence[Input], reading: Reading
) -> Iterator[tuple[Input, Document]]:
    for entry in inputs:
        for document in documents(entry, reading):
            yield entry, document


def _encode(
    document: Document,
    entry: Input,
    encoder: Encoder,
    out: BinaryIO,
    report: Callable[[int], object],
) -> Record:
    """Append a document's tokens to `out`. Raises NotUTF8, with nothing appended."""
    start = out.tell()
    size = 0
    digest = hashlib.sha256()
    try:
        for chunk in encoder.chunks(document.blocks()):
            content = chunk.encode()
            out.write(encoder.encode(chunk))
            digest.update(content)
            size += len(content)
            report(len(content))
    except NotUTF8:
        out.seek(start)
        out.truncate()
        raise
    except Lossy as error:
        raise UserError(
            f"the tokenizer does not encode {document.name} without loss",
            mend="use one trained with byte_fallback, the identity normalisation and no dummy"
            " prefix, or leave --tokenizer out to train one",
        ) from error
    tokens = (out.tell() - start) // np.dtype(encoder.dtype).itemsize
    if size:
        out.write(encoder.end)
    left_out = None if size else "empty"
    return _record(document, entry, tokens, size, digest.hexdigest(), left_out)


def _record(
    document: Document, entry: Input, tokens: int, size: int, sha256: str, left_out: str | None
) -> Record:
    oddities = [] if left_out == "bad_utf8" else sorted(document.oddities)
    file = file_of_rows(entry)
    return Record(document.name, entry.split, tokens, size, sha256, left_out, oddities, file)


@lru_cache(1)
def encoder_of(model: bytes) -> Encoder:
    """The encoder of a tokenizer's file; a process keeps its last one, and what it remembers."""
    return Encoder(Vocab(model))

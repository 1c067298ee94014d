"""The work of preparing cut into units, and one unit encoded."""

import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from gpt.data import manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file, open_own, sync, when_full, write_atomically
from gpt.parsing import parse_json
from gpt.prepare.documents import Input, divide, documents, file_of_rows
from gpt.prepare.encode import Encoder, Lossy
from gpt.prepare.staging import MAKE_ROOM, NO_ROOM
from gpt.prepare.texts import BLOCK, ODDITIES, Document, NotUTF8, Reading
from gpt.reading import open_regular

# Bytes of input in a unit.
SMALLEST_UNIT = 1 << 20
LARGEST_UNIT = 1 << 26

# How many units the inputs are cut into, where these bounds let them.
UNITS = 1024

# A unit's number, and its inputs.
Unit = tuple[int, list[Input]]


# Reasons for leaving a document out.
REASONS = ("empty", "bad_utf8", "duplicate")


class Record(NamedTuple):
    """What a unit knows of a document. A line of NUMBER.jsonl holds the values in this order, after
    a first line with the size and the sha256 of NUMBER.tokens, and the sha256 of the lines."""

    name: str
    split: str | None
    """Where folders decide."""
    tokens: int
    """The end-of-document id not counted."""
    bytes: int
    sha256: str
    """Of the text as it was encoded, UTF-8."""
    left_out: str | None
    """Why: of REASONS."""
    oddities: list[str]
    """Of gpt.prepare.texts.ODDITIES."""
    file: str | None
    """Of a row: the file that holds it."""

    def is_sound(self) -> bool:
        """Whether every value is of its kind."""
        texts = [self.name, *filter(None, (self.split, self.file))]
        return (
            all(isinstance(text, str) for text in texts)
            and (self.split is None or manifests.is_split_name(self.split))
            and all(type(count) is int and count >= 0 for count in (self.tokens, self.bytes))
            and re.fullmatch("[0-9a-f]{64}" if self.left_out is None else ".*", self.sha256)
            is not None
            and self.left_out in (None, *REASONS)
            and set(self.oddities) <= set(ODDITIES)
        )

    def stored_bytes(self, item_size: int) -> int:
        """What its tokens and its end take in NUMBER.tokens."""
        return 0 if self.left_out else (self.tokens + 1) * item_size


def write_records(unit: Path, records: Sequence[Record]) -> None:
    """Write NUMBER.jsonl beside NUMBER.tokens. unit: their path without an ending."""
    lines = [json.dumps(record) + "\n" for record in records]
    facts = {
        **hash_file(unit.with_suffix(".tokens")),
        "records": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }
    write_atomically(unit.with_suffix(".jsonl"), "".join([json.dumps(facts) + "\n", *lines]))


def read_records(unit: Path, item_size: int) -> list[Record]:
    """The records of an encoded unit, whose path bears no ending. item_size: bytes of a stored id.
    Raises UserError where its tokens or its records are not those that were written."""
    records: list[Record] = []
    digest = hashlib.sha256()
    try:
        with open_regular(unit.with_suffix(".jsonl")) as file:
            facts = parse_json(file.readline(BLOCK))
            for line in file:
                digest.update(line)
                record = Record(*parse_json(line))
                if not record.is_sound():
                    raise ValueError("a value of another kind")
                if record.file:  # which many rows share
                    record = record._replace(file=sys.intern(record.file))
                records.append(record)
        expected = {**hash_file(unit.with_suffix(".tokens")), "records": digest.hexdigest()}
        size = sum(record.stored_bytes(item_size) for record in records)
        is_whole = facts == expected and size == expected["size"]
    except (ValueError, TypeError, OSError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"{unit}.tokens and {unit}.jsonl are not as they were written",
            mend="remove both, and the command that made them makes them again",
        )
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
        tokens = place.with_suffix(".tokens")
        aside = self.folder / f".{tokens.name}.{secrets.token_hex(4)}.new"
        encoder = encoder_of(self.model)
        records: list[Record] = []
        bad: list[NotUTF8] = []
        try:
            with open(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as out:
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
                os.rename(aside, tokens)
                write_records(place, records)
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

"""The work of preparing cut into units, and one unit encoded."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import (
    sync,
    when_full,
    write_atomically,
)
from gpt.prepare.documents import (
    NotUTF8,
    Reading,
    divide,
    documents,
)
from gpt.prepare.encode import Encoder, Lossy
from gpt.prepare.staging import (
    NO_ROOM,
)


class Record(NamedTuple):
    """What a unit knows of a document."""

    name: str
    split: str | None  # where folders decide
    tokens: int  # the end-of-document id not counted
    bytes: int
    sha256: str  # of the text as it was encoded, UTF-8
    left_out: str | None  # why: empty, bad_utf8, duplicate
    found: list  # of sources.FOUND


# bytes of input
SMALLEST_UNIT = 1 << 20

LARGEST_UNIT = 1 << 26


def units_of(inputs) -> list:
    """The inputs cut into units, large files of rows in parts; a function of the inputs alone."""
    size = max(SMALLEST_UNIT, min(LARGEST_UNIT, sum(entry.size for entry in inputs) // 1024))
    units, filled = [], size
    for entry in (part for whole in inputs for part in divide(whole, size)):
        if filled >= size:
            units.append([])
            filled = 0
        units[-1].append(entry)
        filled += entry.size
    return units


@dataclass(frozen=True)
class UnitEncoder:
    """Encodes units into `folder`; called in worker processes. model: the tokenizer's file."""

    folder: Path
    reading: Reading
    model: bytes

    @when_full(NO_ROOM)
    def __call__(self, unit, report) -> tuple:
        """unit: (number, inputs). Returns (number, sentences on documents that are not UTF-8); with
        any, it is not done."""
        number, inputs = unit
        place = self.folder / f"{number:06d}"
        encoder = encoder_of(self.model)
        aside = self.folder / f"{number:06d}.{os.getpid()}.new"
        records, bad = [], []
        try:
            with open(aside, "wb") as out:
                for entry in inputs:
                    for document in documents(entry, self.reading):
                        record, sentence = self._add(document, entry, encoder, out, report)
                        records.append(record)
                        bad += [sentence] if sentence and self.reading.bad_utf8 == "refuse" else []
            if not bad:
                sync(aside)
                os.rename(aside, place.with_suffix(".tokens"))
                write_atomically(
                    place.with_suffix(".jsonl"),
                    "".join(json.dumps(record) + "\n" for record in records),
                )
        finally:
            aside.unlink(missing_ok=True)
        return number, bad

    def _add(self, document, entry, encoder, out, report):
        """(record of a document whose tokens were appended to `out`, a sentence if it is not
        UTF-8)."""
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
        except NotUTF8 as error:
            out.seek(start)
            out.truncate()
            return Record(document.name, entry.split, 0, 0, "", "bad_utf8", []), str(error)
        except Lossy as error:
            raise UserError(
                f"the tokenizer does not encode {document.name} without loss: use one trained with"
                " byte_fallback, the identity normalisation and no dummy prefix, or leave"
                " --tokenizer out to train one"
            ) from error
        tokens = (out.tell() - start) // np.dtype(encoder.dtype).itemsize
        if size:
            out.write(encoder.end)
        found = sorted(document.found)
        return (
            Record(
                document.name,
                entry.split,
                tokens,
                size,
                digest.hexdigest(),
                None if size else "empty",
                found,
            ),
            None,
        )


@lru_cache(1)
def encoder_of(model):
    return Encoder(Vocab(model))

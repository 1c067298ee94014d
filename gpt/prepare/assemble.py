"""From encoded units to the dataset: order, splits, duplicates, one packed file per split, the
manifest.

A unit is a pair of files: NUMBER.tokens, stored ids as in tokens.bin, and NUMBER.jsonl, a record
per document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt.data import manifests
from gpt.data.manifests import SplitEntry
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import sync_all
from gpt.prepare.splits import TRAIN
from gpt.prepare.staging import Job
from gpt.prepare.texts import BLOCK, ODDITIES
from gpt.prepare.units import REASONS, Record, read_records
from gpt.reading import open_regular
from gpt.wording import first_of

# Names of documents in a message.
SHOWN = 3

# Of `train`: fewer than most runs have rows in a batch.
FEW_DOCUMENTS = 32


class Documents:
    """The records of all units, and where each document's tokens are."""

    def __init__(self, units: Sequence[Path], item_size: int):
        self.records: list[Record] = []
        self._places: list[tuple[Path, int]] = []  # a unit, and the document's first byte in it
        self._item_size = item_size
        for unit in units:
            size = 0
            for record in read_records(unit, item_size):
                self.records.append(record)
                self._places.append((unit, size))
                size += record.stored_bytes(item_size)

    def copy(self, document: int, out: BinaryIO) -> None:
        """Append a document's tokens, its end included, to an open file."""
        unit, position = self._places[document]
        left = self.records[document].stored_bytes(self._item_size)
        with open_regular(unit.with_suffix(".tokens")) as file:
            file.seek(position)
            while left:
                block = file.read(min(left, BLOCK))
                if not block:
                    raise UserError(
                        f"{unit}.tokens was cut off while it was read",
                        mend="let nothing else write there, and give the same command again",
                    )
                out.write(block)
                left -= len(block)


@dataclass
class Selection:
    """Which documents of a split are kept, and what there is to say of the others."""

    kept: list[int] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    """documents, by reason"""
    found: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys([*ODDITIES, "duplicate"], 0)
    )
    """documents, by what was found in them"""
    held_out_too: list[str] = field(default_factory=list)
    """for each document of `train` that another split holds out: its name, and that split"""


def assemble(
    units: Sequence[Path], vocab: Vocab, job: Job, building: Path, say: Callable[[str], object]
) -> None:
    """Write the dataset of the units' documents into the new folder `building`.

    `job.duplicates` "drop" leaves out documents that their split has already, and training
    documents that are held out in another.
    """
    documents = Documents(units, np.dtype(manifests.token_dtype(vocab.size)).itemsize)
    records = documents.records
    names = [record.name for record in records]
    folders = [record.split for record in records]
    splits = job.rule.share_out(names, folders, [record.file for record in records])
    held_out = _held_out(records, splits)
    building.mkdir()
    manifest = manifests.begin(building, vocab, _treatment(job), job.provenance)
    for split, indices in splits.items():
        selection = _select(split, indices, records, held_out, job.duplicates == "drop")
        _require_documents(split, indices, selection)
        entry = _write_split(building / split, documents, selection)
        manifest["splits"][split] = entry
        say(manifests.size_of_split(split, entry))
        _report(split, selection, say)
        if split == TRAIN and entry["documents"] < FEW_DOCUMENTS:
            say(
                "notice: a run needs as many documents as its train_batch_size, and train has"
                f" {entry['documents']}; --cut_documents BYTES makes several of a large text file"
            )
    manifests.write(building, manifest)
    sync_all(building)


def _treatment(job: Job) -> dict[str, Any]:
    """What was done to the documents, for the manifest."""
    return {
        "line_ends": "CRLF is read as LF",
        "order": "by sha256 of the document's name",
        "byte_order_mark": "left out at a document's beginning",
        **job.reading.facts(),
        "duplicates": job.duplicates,
    }


def _held_out(records: Sequence[Record], splits: dict[str, list[int]]) -> dict[str, str]:
    """{sha256 of a text: the split, other than `train`, that holds it}."""
    held_out = {}
    for split, indices in splits.items():
        if split == TRAIN:
            continue
        for index in indices:
            if not records[index].left_out:
                held_out[records[index].sha256] = split
    return held_out


def _select(
    split: str,
    indices: Sequence[int],
    records: Sequence[Record],
    held_out: dict[str, str],
    drop_duplicates: bool,
) -> Selection:
    selection = Selection()
    seen = set()
    for index in indices:
        record = records[index]
        if record.left_out:
            selection.left_out[record.left_out] += 1
            continue
        repeated = record.sha256 in seen
        seen.add(record.sha256)
        if repeated:
            selection.found["duplicate"] += 1
        leaked = split == TRAIN and record.sha256 in held_out
        if leaked:
            selection.held_out_too.append(f"{record.name!r} in {held_out[record.sha256]}")
        if drop_duplicates and (repeated or leaked):
            selection.left_out["duplicate"] += 1
            continue
        for oddity in record.oddities:
            selection.found[oddity] += 1
        selection.kept.append(index)
    if split == TRAIN:
        selection.found["also_held_out"] = len(selection.held_out_too)
    return selection


def _require_documents(split: str, indices: Sequence[int], selection: Selection) -> None:
    """Raise UserError where nothing of a split is kept."""
    if selection.kept:
        return
    reasons = [f"{count} {reason}" for reason, count in selection.left_out.items() if count]
    raise UserError(
        f"the split {split!r} is empty: all of its {len(indices)} documents are left out"
        f" ({', '.join(reasons)})"
    )


def _write_split(folder: Path, documents: Documents, selection: Selection) -> SplitEntry:
    """Pack the documents that are kept; returns the split's entry in the manifest."""
    folder.mkdir()
    with open(folder / manifests.TOKENS, "wb") as out:
        for index in selection.kept:
            documents.copy(index, out)
    records = [documents.records[index] for index in selection.kept]
    return manifests.finish_split(
        folder,
        names=[record.name for record in records],
        doc_tokens=[record.tokens for record in records],
        doc_bytes=[record.bytes for record in records],
        doc_hashes=[bytes.fromhex(record.sha256) for record in records],
        left_out=selection.left_out,
        found=selection.found,
    )


WORDS = {
    "empty": "empty",
    "bad_utf8": "not UTF-8",
    "duplicate": "duplicate(s)",
    "byte_order_mark": "with a byte order mark",
    "crlf": "with CRLF",
    "nul": "with NULs",
    "also_held_out": "also held out",
}


def _report(split: str, selection: Selection, say: Callable[[str], object]) -> None:
    for title, counts in (("left out", selection.left_out), ("found", selection.found)):
        parts = [f"{count:,} {WORDS[kind]}" for kind, count in counts.items() if count]
        if parts:
            say(f"{split}: {title} {', '.join(parts)}")
    names = selection.held_out_too
    if not names:
        return
    if selection.left_out["duplicate"]:
        fate = "left out of it"
    else:
        fate = "kept; --duplicates drop leaves them out of train"
    shown = first_of(names, SHOWN)
    say(
        f"WARNING: {len(names):,} document(s) of train are held out too, under other names:"
        f" {fate} ({shown})"
    )

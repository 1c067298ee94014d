"""From encoded units to the dataset: order, splits, duplicates, one packed file per split, the
manifest.

A unit is a pair of files: NUMBER.tokens, stored ids as in tokens.bin, and NUMBER.jsonl, a record
per document.
"""

import json
from pathlib import Path

import numpy as np

from gpt.data import manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import sync_all
from gpt.prepare.documents import BLOCK, FOUND
from gpt.prepare.units import Record

SHOWN = 3  # names of documents in a message


class Documents:
    """The records of all units, and where each document's tokens are."""

    def __init__(self, units, item_size: int):
        self.records = []
        self._places = []
        self._item_size = item_size
        for unit in units:
            at = 0
            for line in unit.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines():
                record = Record(*json.loads(line))
                self.records.append(record)
                self._places.append((unit, at))
                at += 0 if record.left_out else (record.tokens + 1) * item_size
            path = unit.with_suffix(".tokens")
            if path.stat().st_size != at:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes, where its records say {at}: remove"
                    f" {unit}.jsonl, and the same command makes both again"
                )

    def copy(self, document: int, out):
        """Append a document's tokens, its end included, to an open file."""
        unit, at = self._places[document]
        left = (self.records[document].tokens + 1) * self._item_size
        with open(unit.with_suffix(".tokens"), "rb") as file:
            file.seek(at)
            while left:
                block = file.read(min(left, BLOCK))
                assert block, "the file was whole before"
                out.write(block)
                left -= len(block)


def assemble(units, vocab: Vocab, rule, facts: dict, building: Path, say):
    """Write the dataset of the units' documents into `building`.

    rule: gpt.prepare.splits.Rule. facts: {"bad_utf8", "duplicates", "provenance"} for the manifest;
    duplicates "drop" leaves out documents that their split has already, and training documents that
    are held out in another.
    """
    documents = Documents(units, np.dtype(manifests.token_dtype(vocab.size)).itemsize)
    records = documents.records
    splits = rule.share_out(
        [record.name for record in records], [record.split for record in records]
    )
    held_out = {
        records[i].sha256: name
        for name, indices in splits.items()
        if name != "train"
        for i in indices
        if not records[i].left_out
    }
    building.mkdir()
    text = {
        "line_ends": "CRLF is read as LF",
        "order": "by sha256 of the document's name",
        "byte_order_mark": "left out at a document's beginning",
        "bad_utf8": facts["bad_utf8"],
        "duplicates": facts["duplicates"],
    }
    manifest = manifests.begin(building, vocab, text, facts["provenance"])
    for name, indices in splits.items():
        kept, counts = _choose(
            name, [(i, records[i]) for i in indices], held_out, facts["duplicates"] == "drop"
        )
        if not kept:
            why = ", ".join(
                f"{count} {reason}" for reason, count in counts["left_out"].items() if count
            )
            raise UserError(
                f"the split {name!r} is empty: all of its {len(indices)} documents are left out"
                f" ({why})"
            )
        manifest["splits"][name] = _write_split(building / name, documents, kept, counts)
        say(manifests.size_of_split(name, manifest["splits"][name]))
        _tell(name, counts, say)
    manifests.write(building, manifest)
    sync_all(building)


def _choose(split, indexed, held_out, drop):
    """(documents of a split that are kept, counts of what was left out and found)."""
    kept = []
    seen = set()
    elsewhere = []
    left_out = dict.fromkeys(("empty", "bad_utf8", "duplicate"), 0)
    found = dict.fromkeys((*FOUND, "duplicate"), 0)
    for index, record in indexed:
        if record.left_out:
            left_out[record.left_out] += 1
            continue
        repeated = record.sha256 in seen
        leaked = split == "train" and record.sha256 in held_out
        seen.add(record.sha256)
        found["duplicate"] += repeated
        if leaked:
            elsewhere.append(f"{record.name!r} in {held_out[record.sha256]}")
        if drop and (repeated or leaked):
            left_out["duplicate"] += 1
            continue
        for kind in record.found:
            found[kind] += 1
        kept.append(index)
    if split == "train":
        found["also_held_out"] = len(elsewhere)
    return kept, {"left_out": left_out, "found": found, "elsewhere": elsewhere}


def _write_split(folder, documents, kept, counts) -> dict:
    """Pack the documents; returns the split's entry in the manifest."""
    folder.mkdir()
    records = [documents.records[i] for i in kept]
    with open(folder / manifests.TOKENS, "wb") as out:
        for index in kept:
            documents.copy(index, out)
    names, tokens, sizes = (
        [getattr(record, key) for record in records] for key in ("name", "tokens", "bytes")
    )
    return manifests.finish_split(
        folder, names, tokens, sizes, left_out=counts["left_out"], found=counts["found"]
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


def _tell(name, counts, say):
    for what, title in (("left_out", "left out"), ("found", "found")):
        listed = ", ".join(
            f"{count:,} {WORDS[key]}" for key, count in counts[what].items() if count
        )
        if listed:
            say(f"{name}: {title} {listed}")
    elsewhere = counts["elsewhere"]
    if elsewhere:
        fate = (
            "left out of it"
            if counts["left_out"]["duplicate"]
            else "kept; --duplicates drop leaves them out of train"
        )
        say(
            f"WARNING: {len(elsewhere):,} document(s) of train are held out too, under other names:"
            f" {fate} ({', '.join(elsewhere[:SHOWN])}{', …' * (len(elsewhere) > SHOWN)})"
        )

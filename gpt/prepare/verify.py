"""Whether a dataset is as it was made: every hash, every count, and, beside its source,
every byte."""

import hashlib
from pathlib import Path

import numpy as np

from gpt.data import manifests
from gpt.data.datasets import Dataset
from gpt.files import hash_file
from gpt.prepare.documents import documents
from gpt.prepare.texts import NotUTF8

AT_A_TIME = 1 << 20  # tokens


def damaged_files(root: Path, manifest: dict) -> list:
    """A sentence for every file of a dataset that is not as its manifest says."""
    wanted = {root / manifests.TOKENIZER: {"sha256": manifest["tokenizer"].get("sha256")}}
    for split, entry in manifest["splits"].items():
        wanted |= {root / split / file: entry["files"][file] for file in manifests.SPLIT_FILES}
    found = []
    for path, facts in wanted.items():
        if not path.is_file():
            found.append(f"{path} is missing")
            continue
        there = hash_file(path)
        if there["size"] != facts.get("size", there["size"]):
            found.append(
                f"{path} has {there['size']:,} bytes, where the manifest says {facts['size']:,}"
            )
        elif there["sha256"] != facts.get("sha256"):
            found.append(
                f"{path} is not as it was written: its sha256 is another than in the manifest"
            )
    return found


def miscounts(dataset: Dataset, name: str) -> list:
    """A sentence for everything that does not add up in a split: its documents' tokens, ends, bytes
    by the vocabulary's table, names. Reads all tokens once."""
    split = dataset.split(name)
    entry = dataset.manifest["splits"][name]
    eod = dataset.vocab.eod_id
    ends = np.cumsum(split.doc_tokens + 1)
    sizes, misplaced = np.zeros(len(ends), np.int64), 0
    for first in range(0, len(split.tokens), AT_A_TIME):
        ids = np.asarray(split.tokens[first : first + AT_A_TIME])
        split.check_ids(ids)
        total = np.concatenate([[0], np.cumsum(dataset.vocab.byte_lengths[ids])])
        # the document that the first token belongs to
        low = np.searchsorted(ends, first, "right")
        high = np.searchsorted(ends, first + len(ids) - 1, "right")
        stops = np.clip(ends[low : high + 1] - first, 0, len(ids))
        sizes[low : high + 1] += np.diff(total[np.concatenate([[0], stops])])
        last = ends[low : high + 1][ends[low : high + 1] <= first + len(ids)] - 1 - first
        misplaced += int((ids[last] != eod).sum())
    found, names = [], split.names()
    wrong = np.flatnonzero(sizes != split.doc_bytes)
    if len(wrong):
        found.append(
            f"{name}: {len(wrong):,} documents do not have the bytes that they should, the first is"
            f" {names[wrong[0]]!r}: {sizes[wrong[0]]:,} by its tokens,"
            f" {split.doc_bytes[wrong[0]]:,} by doc_bytes.npy"
        )
    if misplaced:
        found.append(f"{name}: the ends of documents are not where doc_tokens.npy says")
    if len(set(names)) != len(ends):
        found.append(f"{name}: {len(set(names)):,} different names for {len(ends):,} documents")
    if entry["bytes"] != int(split.doc_bytes.sum()):
        found.append(
            f"{name}: {int(split.doc_bytes.sum()):,} bytes by doc_bytes.npy, {entry['bytes']:,} by"
            " the manifest"
        )
    return found


def compare_with_source(dataset: Dataset, inputs, reading) -> list:
    """A sentence for every document whose text is not what its tokens stand for, and for those on
    one side only."""
    places, found = {}, []
    splits = {name: dataset.split(name) for name in dataset.split_names}
    for name, split in splits.items():
        starts = np.cumsum(split.doc_tokens + 1) - (split.doc_tokens + 1)
        places |= {
            (name, document): (name, i, int(starts[i])) for i, document in enumerate(split.names())
        }
    by_folder = any(entry.split for entry in inputs)
    left_out = 0
    for entry in inputs:
        for document in documents(entry, reading):
            names = [entry.split] if by_folder else list(splits)
            place = next(
                (
                    places.pop((name, document.name))
                    for name in names
                    if (name, document.name) in places
                ),
                None,
            )
            if place is None:
                left_out += 1
                continue
            name, number, start = place
            ids = splits[name].tokens[start : start + int(splits[name].doc_tokens[number])]
            if _digest(document) != _digest_of_tokens(dataset.vocab, ids):
                found.append(
                    f"{name}: {document.name!r} is another text in the source than in the dataset"
                )
    entries = dataset.manifest["splits"].values()
    expected = sum(sum(entry.get("left_out", {}).values()) for entry in entries)
    if left_out != expected:
        found.append(
            f"{left_out:,} documents of the source are not in the dataset, and the manifest knows"
            f" of {expected:,} that were left out"
        )
    if places:
        name, document = next(iter(places))
        found.append(
            f"{len(places):,} documents are not in the source, the first is {document!r} of {name}"
        )
    return found


def _digest(document):
    digest = hashlib.sha256()
    try:
        for block in document.blocks():
            digest.update(block.encode())
    except NotUTF8:
        return None
    return digest.digest()


def _digest_of_tokens(vocab, ids):
    digest = hashlib.sha256()
    for first in range(0, len(ids), AT_A_TIME):
        digest.update(vocab.text_bytes(ids[first : first + AT_A_TIME]))
    return digest.digest()

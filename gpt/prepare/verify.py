"""Whether a dataset is as it was made: every hash, every count, and, beside its source,
every byte."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt.data import manifests
from gpt.data.datasets import Dataset, Split
from gpt.data.manifests import Manifest
from gpt.data.vocab import Vocab
from gpt.files import hash_file
from gpt.prepare.cuts import cut
from gpt.prepare.documents import Input, documents
from gpt.prepare.texts import Document, NotUTF8, Reading
from gpt.prepare.workers import spread

# Tokens that are read at a time.
AT_A_TIME = 1 << 20

# Tokens whose text a process looks at in one go.
TOKENS_OF_A_TASK = 1 << 24


def damaged_files(root: Path, manifest: Manifest) -> list[str]:
    """A sentence for every file of a dataset that is not as its manifest says."""
    tokenizer = {"sha256": manifest["tokenizer"].get("sha256")}
    facts_of: dict[Path, Any] = {root / manifests.TOKENIZER: tokenizer}
    for split, entry in manifest["splits"].items():
        for file in manifests.files_of_split(manifest["format"]):
            facts_of[root / split / file] = entry["files"][file]
    damages = []
    for path, facts in facts_of.items():
        if not path.is_file():
            damages.append(f"{path} is missing")
            continue
        actual = hash_file(path)
        if actual["size"] != facts.get("size", actual["size"]):
            damages.append(
                f"{path} has {actual['size']:,} bytes, where the manifest says {facts['size']:,}"
            )
        elif actual["sha256"] != facts.get("sha256"):
            damages.append(
                f"{path} is not as it was written: its sha256 is another than in the manifest"
            )
    return damages


def miscounts(dataset: Dataset, name: str, workers: int = 1) -> list[str]:
    """A sentence for everything that does not add up in a split: its documents' tokens, ends, bytes
    by the vocabulary's table, texts by their hashes, names. Reads
    all tokens, the texts on `workers` processes."""
    split = dataset.split(name)
    sizes, misplaced_ends = _recount(split, dataset.vocab)
    names = split.names()
    documents = len(split.doc_tokens)
    mistakes = []
    wrong = np.flatnonzero(sizes != split.doc_bytes)
    if len(wrong):
        first = wrong[0]
        mistakes.append(
            f"{name}: {len(wrong):,} documents do not have the bytes that they should, the first is"
            f" {names[first]!r}: {sizes[first]:,} by its tokens,"
            f" {split.doc_bytes[first]:,} by doc_bytes.npy"
        )
    if misplaced_ends:
        mistakes.append(f"{name}: the ends of documents are not where doc_tokens.npy says")
    other_texts = _other_texts(dataset, split, workers)
    if other_texts:
        mistakes.append(
            f"{name}: {len(other_texts):,} documents have another text than doc_hashes.npy says,"
            f" the first is {names[other_texts[0]]!r}"
        )
    if len(set(names)) != documents:
        mistakes.append(f"{name}: {len(set(names)):,} different names for {documents:,} documents")
    total = int(split.doc_bytes.sum())
    total_in_manifest = dataset.manifest["splits"][name]["bytes"]
    if total_in_manifest != total:
        mistakes.append(
            f"{name}: {total:,} bytes by doc_bytes.npy, {total_in_manifest:,} by the manifest"
        )
    return mistakes


def _recount(split: Split, vocab: Vocab) -> tuple[np.ndarray, int]:
    """(UTF-8 bytes of each document by its tokens, int64 (documents,); how many documents do not
    end with the end-of-document id)."""
    ends = np.cumsum(split.doc_tokens + 1)  # of documents, in the packed file
    sizes = np.zeros(len(ends), np.int64)
    misplaced_ends = 0
    for first in range(0, len(split.tokens), AT_A_TIME):
        ids = split.tokens[first : first + AT_A_TIME]
        split.check_ids(ids)
        # the documents that the first and the last of these tokens belong to
        low = np.searchsorted(ends, first, "right")
        high = np.searchsorted(ends, first + len(ids) - 1, "right")
        ends_here = ends[low : high + 1] - first
        bytes_before = np.concatenate([[0], np.cumsum(vocab.byte_lengths[ids])])
        cuts = np.concatenate([[0], np.clip(ends_here, 0, len(ids))])
        sizes[low : high + 1] += np.diff(bytes_before[cuts])
        last_ids = ids[ends_here[ends_here <= len(ids)] - 1]
        misplaced_ends += int((last_ids != vocab.eod_id).sum())
    return sizes, misplaced_ends


@dataclass(frozen=True)
class _OtherTexts:
    """Looks for documents whose tokens stand for another text than their hashes say; called in
    worker processes."""

    root: Path
    split: str

    def __call__(self, documents: range, report: Callable[[int], object]) -> list[int]:
        dataset = Dataset(self.root)
        split = dataset.split(self.split)
        assert split.doc_hashes is not None, "a dataset without hashes is not looked through"
        ends = np.cumsum(split.doc_tokens + 1) - 1
        mistakes = []
        for document in documents:
            tokens = int(split.doc_tokens[document])
            digest = _digest_of_tokens(dataset.vocab, split, int(ends[document]) - tokens, tokens)
            if digest[: manifests.HASH_BYTES] != split.doc_hashes[document].tobytes():
                mistakes.append(document)
        return mistakes


def _other_texts(dataset: Dataset, split: Split, workers: int) -> list[int]:
    """The documents whose tokens stand for another text than their hashes say; none where a dataset
    has no hashes."""
    if split.doc_hashes is None:
        return []
    # neighbours of about so many tokens together
    task_of = np.cumsum(split.doc_tokens) // TOKENS_OF_A_TASK
    firsts = [0, *(np.flatnonzero(np.diff(task_of)) + 1).tolist(), len(task_of)]
    tasks = [range(first, end) for first, end in itertools.pairwise(firsts)]
    work = _OtherTexts(dataset.root, split.name)
    mistakes = []
    for mistakes_of_task in spread(work, tasks, min(workers, len(tasks)), lambda number: None):
        mistakes += mistakes_of_task
    return sorted(mistakes)


class _Place(NamedTuple):
    """Where a document's tokens are."""

    split: str
    first: int
    tokens: int


def compare_with_source(dataset: Dataset, inputs: Sequence[Input], reading: Reading) -> list[str]:
    """A sentence for every document whose text is not what its tokens stand for, and for those on
    one side only."""
    splits = {name: dataset.split(name) for name in dataset.split_names}
    places = _places_of_documents(splits)
    by_folder = any(entry.split for entry in inputs)
    left_out = 0
    mistakes = []
    for entry in cut(inputs, reading.cut_documents):
        possible_splits = [entry.split] if by_folder else list(splits)
        for document in documents(entry, reading):
            place = _take(places, possible_splits, document.name)
            if place is None:
                left_out += 1
                continue
            split = splits[place.split]
            digest = _digest_of_tokens(dataset.vocab, split, place.first, place.tokens)
            if _digest(document) != digest:
                mistakes.append(
                    f"{place.split}: {document.name!r} is another text in the source than in the"
                    " dataset"
                )
    expected = 0
    for split_entry in dataset.manifest["splits"].values():
        expected += sum(split_entry.get("left_out", {}).values())
    if left_out != expected:
        mistakes.append(
            f"{left_out:,} documents of the source are not in the dataset, and the manifest knows"
            f" of {expected:,} that were left out"
        )
    if places:
        split_name, name = next(iter(places))
        mistakes.append(
            f"{len(places):,} documents are not in the source, the first is {name!r} of"
            f" {split_name}"
        )
    return mistakes


def _places_of_documents(splits: dict[str, Split]) -> dict[tuple[str, str], _Place]:
    """By split and name."""
    places = {}
    for split_name, split in splits.items():
        starts = np.cumsum(split.doc_tokens + 1) - (split.doc_tokens + 1)
        for index, name in enumerate(split.names()):
            place = _Place(split_name, int(starts[index]), int(split.doc_tokens[index]))
            places[split_name, name] = place
    return places


def _take(
    places: dict[tuple[str, str], _Place], splits: Sequence[str | None], name: str
) -> _Place | None:
    """Take out the place of a document in the first of these splits that has it."""
    for split in splits:
        if (split, name) in places:
            return places.pop((str(split), name))
    return None


def _digest(document: Document) -> bytes | None:
    """sha256 of a text, None where it is not UTF-8."""
    digest = hashlib.sha256()
    try:
        for block in document.blocks():
            digest.update(block.encode())
    except NotUTF8:
        return None
    return digest.digest()


def _digest_of_tokens(vocab: Vocab, split: Split, first: int, tokens: int) -> bytes:
    """sha256 of the text of a split's tokens from the one at `first` on."""
    digest = hashlib.sha256()
    end = first + tokens
    for begin in range(first, end, AT_A_TIME):
        digest.update(vocab.text_bytes(split.tokens[begin : min(begin + AT_A_TIME, end)]))
    return digest.digest()

"""Datasets on disk, opened: the manifest, the tokenizer, and splits mapped into memory.

gpt/data/manifests.py says which files a dataset has, gpt/data/streams.py what is read from them in
training.
"""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt.data import arrays, manifests
from gpt.data.manifests import MANIFEST, SplitEntry
from gpt.data.vocab import Vocab
from gpt.errors import UserError

# What to do about a file of a dataset that is damaged.
MEND = "prepare the dataset again, or copy that file again"


class Split:
    """One split of a dataset, memory-mapped.

    tokens: (n,) unsigned ids, end-of-document ids included; doc_tokens, doc_bytes: int64
    (documents,).
    """

    def __init__(self, name: str, folder: Path, dtype: str, vocab_size: int):
        self.name = name
        self.vocab_size = vocab_size
        self._path = folder / manifests.TOKENS
        self.tokens = np.memmap(self._path, dtype=dtype, mode="r")
        self._file = open(self._path, "rb", buffering=0)
        self.doc_tokens = _load_counts(folder / manifests.DOC_TOKENS)
        self.doc_bytes = _load_counts(folder / manifests.DOC_BYTES)

    def read(self, first: int, count: int) -> np.ndarray:
        """`tokens[first : first + count]`, for reads in many places: a page that is missing from a
        mapping is fetched with all that the system reads ahead, up to megabytes, and 512 streams
        miss 512 at once."""
        item_size = self.tokens.itemsize
        content = os.pread(self._file.fileno(), count * item_size, first * item_size)
        if len(content) < count * item_size:
            raise UserError(
                f"{self._path} ends before its token {first + count}: it was cut off since the run"
                f" began; {MEND}"
            )
        return np.frombuffer(content, self.tokens.dtype)

    def names(self) -> list[str]:
        """The documents' names, in order. Raises UserError where their file is damaged."""
        path = self._path.parent / manifests.NAMES
        try:
            names = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError:
            names = []
        if len(names) != len(self.doc_tokens) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path} is damaged", mend=MEND)
        return names

    @cached_property
    def doc_hashes(self) -> np.ndarray | None:
        """uint8 (documents, 16): the first bytes of the sha256 of each document's text; None in a
        dataset that has none, of before format 3."""
        path = self._path.parent / manifests.DOC_HASHES
        if not path.exists():
            return None
        hashes = arrays.load(path)
        shape = (len(self.doc_tokens), manifests.HASH_BYTES)
        if hashes is None or hashes.dtype != np.uint8 or hashes.shape != shape:
            raise UserError(f"{path} is damaged", mend=MEND)
        return hashes

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise UserError where ids that were read from this split are none of the vocabulary's."""
        largest = ids.max(initial=0)
        if largest >= self.vocab_size:
            raise UserError(
                f"{self._path} is damaged: it holds the id {largest}, and the tokenizer has "
                f"{self.vocab_size}; {MEND}"
            )


def _load_counts(path: Path) -> np.ndarray:
    """int64 (documents,), each at least 1."""
    counts = arrays.load(path)
    if counts is None or counts.dtype != np.int64 or counts.ndim != 1 or counts.min(initial=1) < 1:
        raise UserError(f"{path} is damaged", mend=MEND)
    return counts


class Dataset:
    """A dataset that is whole as far as its manifest and file sizes tell. Raises UserError where it
    is not."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.manifest = manifests.read(self.root)
        tokenizer = self.root / manifests.TOKENIZER
        self.vocab = Vocab.load(tokenizer)
        if self.vocab.fingerprint != self.manifest["tokenizer"]["pieces_sha256"]:
            raise UserError(
                f"{tokenizer} is not the tokenizer that made the dataset, by the hash in"
                f" {MANIFEST}",
                mend="put the original file back or prepare the dataset again",
            )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the manifest: two datasets with the same fingerprint hold the same documents in
        the same order."""
        return manifests.fingerprint(self.manifest)

    def documents(self, split: str) -> str:
        """`manifests.documents_of_split`: equal for two datasets whose splits hold the same
        documents in the same order, whatever their tokenizers. Raises UserError where a split is
        not there."""
        self._entry(split)
        return manifests.documents_of_split(self.manifest, split)

    def facts(self, scored: str) -> dict[str, Any]:
        """What config.yaml keeps of the dataset of a run. scored: the split that is evaluated."""
        train, held_out = ({"split": split, **self._counts(split)} for split in ("train", scored))
        return {
            "root": str(self.root),
            "fingerprint": self.fingerprint,
            "tokenizer": self.vocab.fingerprint,
            "train": train,
            "scored": held_out,
        }

    def _counts(self, split: str) -> dict[str, Any]:
        entry = self.manifest["splits"][split]
        return {
            "documents": self.documents(split),
            "count": entry["documents"],
            "tokens": entry["tokens"],
            "bytes": entry["bytes"],
        }

    @property
    def split_names(self) -> list[str]:
        return list(self.manifest["splits"])

    def _entry(self, split: str) -> SplitEntry:
        if split not in self.manifest["splits"]:
            names = ", ".join(self.split_names)
            raise UserError(f"{self.root} has no split {split!r}: it has {names}")
        return self.manifest["splits"][split]

    def split(self, name: str) -> Split:
        """Open a split. Raises UserError where it is not there, or not as the manifest says."""
        entry = self._entry(name)
        folder = self.root / name
        _require_sizes(folder, entry, manifests.files_of_split(self.manifest["format"]))
        split = Split(name, folder, self.manifest["dtype"], self.vocab.size)
        documents = len(split.doc_tokens)
        tokens_by_document = int(split.doc_tokens.sum()) + documents
        same_documents = documents == entry["documents"]
        same_tokens = tokens_by_document == len(split.tokens) == entry["tokens"]
        if not same_documents or not same_tokens:
            raise UserError(
                f"{folder} does not hold the {entry['tokens']} tokens in {entry['documents']}"
                f" documents that {MANIFEST} says",
                mend="prepare the dataset again",
            )
        return split


def _require_sizes(folder: Path, entry: SplitEntry, files: Sequence[str]) -> None:
    """Raise UserError where a file of a split is missing, or has another size than its manifest
    says."""
    for file in files:
        path = folder / file
        expected = entry["files"][file]["size"]
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            state = "is missing" if size is None else f"has {size} bytes"
            raise UserError(f"{path} {state}, where {MANIFEST} says {expected} bytes", mend=MEND)

"""Datasets on disk, opened: the manifest, the tokenizer, and splits.

gpt/data/manifests.py says which files a dataset has, gpt/data/streams.py what is read from them in
training.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gpt.data import arrays, manifests
from gpt.data.manifests import MANIFEST, SplitEntry
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.parsing import parse_json
from gpt.reading import read_bytes

# What there is to tell where `Split.require_as_written` is left out.
TAKEN_UNHASHED = (
    "the tokens that are evaluated are taken by their size alone, not by their sha256"
    " (--skip_data_hash)"
)

# What to do about a file of a dataset that is damaged.
MEND = "prepare the dataset again, or copy that file again"


class Split:
    """One split of a dataset.

    tokens: unsigned ids, end-of-document ids included, read from the disk slice by slice;
    doc_tokens, doc_bytes: int64 (documents,). files: those of the split, as its manifest has them.
    All but the tokens are held against their sha256 when they are read, the tokens by
    `require_as_written`.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        dtype: str,
        vocab_size: int,
        files: Mapping[str, manifests.FileFacts],
    ):
        self.name = name
        self.vocab_size = vocab_size
        self._folder = folder
        self._files = files
        self._path = folder / manifests.TOKENS
        self.tokens = arrays.TokenFile(self._path, dtype)
        self.doc_tokens = self._counts(manifests.DOC_TOKENS)
        self.doc_bytes = self._counts(manifests.DOC_BYTES)

    def _content(self, file: str) -> bytes:
        """Of one of the split's files. Raises UserError where it is not as it was written."""
        path = self._folder / file
        facts = self._files[file]
        try:
            content = read_bytes(path, most=facts["size"])
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})", mend=MEND) from error
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise UserError(f"{path} is damaged", mend=MEND)
        return content

    def _counts(self, file: str) -> np.ndarray:
        """int64 (documents,), each at least 1."""
        counts = arrays.parse(self._content(file))
        is_plain = counts is not None and counts.dtype == np.int64 and counts.ndim == 1
        if counts is None or not is_plain or counts.min(initial=1) < 1:
            raise UserError(f"{self._folder / file} is damaged", mend=MEND)
        return counts

    def names(self) -> list[str]:
        """The documents' names, in order. Raises UserError where their file is damaged."""
        lines = self._content(manifests.NAMES).split(b"\n")
        try:
            names = [parse_json(line) for line in lines if line]
        except ValueError:
            names = []
        if len(names) != len(self.doc_tokens) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{self._folder / manifests.NAMES} is damaged", mend=MEND)
        return names

    @cached_property
    def doc_hashes(self) -> np.ndarray | None:
        """uint8 (documents, 16): the first bytes of the sha256 of each document's text; None in a
        dataset that has none, of before format 3."""
        if manifests.DOC_HASHES not in self._files:
            return None
        hashes = arrays.parse(self._content(manifests.DOC_HASHES))
        shape = (len(self.doc_tokens), manifests.HASH_BYTES)
        if hashes is None or hashes.dtype != np.uint8 or hashes.shape != shape:
            raise UserError(f"{self._folder / manifests.DOC_HASHES} is damaged", mend=MEND)
        return hashes

    def require_as_written(self) -> None:
        """Raise UserError where the tokens are not those that were written, by their sha256. Reads
        all of them, once in a process as long as the file does not change."""
        status = os.stat(self._path)
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if _hash_of_tokens(self._path, state) != self._files[manifests.TOKENS]["sha256"]:
            raise UserError(
                f"{self._path} is not as it was written (its sha256 is another than in {MANIFEST}),"
                " so that what is measured on it would be wrong",
                mend=MEND,
            )

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise UserError where ids that were read from this split are none of the vocabulary's."""
        largest = ids.max(initial=0)
        if largest >= self.vocab_size:
            raise UserError(
                f"{self._path} is damaged: it holds the id {largest}, and the tokenizer has "
                f"{self.vocab_size}; {MEND}"
            )


@lru_cache(1000)
def _hash_of_tokens(path: Path, state: tuple[int, ...]) -> int | str:
    """sha256 of a file. state: changes when the file does."""
    return hash_file(path)["sha256"]


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
        split = Split(name, folder, self.manifest["dtype"], self.vocab.size, entry["files"])
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

"""Datasets on disk, and the token streams that training and evaluation read from them.

A dataset is a folder:

    manifest.json          format, tokenizer, special ids, per split files with sizes and sha256,
                           counts; its own sha256
    tokenizer.model        the SentencePiece model that made it
    SPLIT/tokens.bin       token ids, each document followed by the end-of-document id
    SPLIT/doc_tokens.npy   int64 (documents,): tokens of each, its end-of-document id not counted
    SPLIT/doc_bytes.npy    int64 (documents,): UTF-8 bytes of each document
    SPLIT/names.txt        a document's name per line, as a JSON string

`Streams.batch(step)` is a pure function of (dataset, number of streams, seq_len, step): resuming a
run, or going on with another number of ranks, needs no state.
"""

import hashlib
import io
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file

FORMAT = 2  # from 2 on a manifest holds its own hash; 1 is read too
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
TOKENS = "tokens.bin"
DOC_TOKENS = "doc_tokens.npy"
DOC_BYTES = "doc_bytes.npy"
NAMES = "names.txt"
FILES = (TOKENS, DOC_TOKENS, DOC_BYTES, NAMES)
SEAL = "manifest_sha256"
DTYPES = ("<u2", "<u4")


def token_dtype(vocab_size: int) -> str:
    """Smallest storage type for ids below `vocab_size`."""
    return DTYPES[0] if vocab_size <= 1 << 16 else DTYPES[1]


class Split:
    """One split of a dataset, memory-mapped.

    tokens: (n,) unsigned ids, end-of-document ids included; doc_tokens, doc_bytes: int64
    (documents,).
    """

    def __init__(self, name: str, folder: Path, dtype: str, vocab_size: int):
        self.name = name
        self.vocab_size = vocab_size
        self._path = folder / TOKENS
        self.tokens = np.memmap(folder / TOKENS, dtype=dtype, mode="r")
        self._file = open(folder / TOKENS, "rb", buffering=0)
        self.doc_tokens = _load_counts(folder / DOC_TOKENS)
        self.doc_bytes = _load_counts(folder / DOC_BYTES)

    def read(self, first: int, count: int) -> np.ndarray:
        """`tokens[first : first + count]`, for reads in many places: a page that is missing from a
        mapping is fetched with all that the system reads ahead, up to megabytes, and 512 streams
        miss 512 at once."""
        size = self.tokens.itemsize
        content = os.pread(self._file.fileno(), count * size, first * size)
        if len(content) < count * size:
            raise UserError(
                f"{self._path} ends before its token {first + count}: it was cut off since the run"
                " began; prepare the dataset again, or copy that file again"
            )
        return np.frombuffer(content, self.tokens.dtype)

    def names(self) -> list:
        """The documents' names, in order."""
        lines = (self._path.parent / NAMES).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def check_ids(self, ids):
        """Raise UserError where ids that were read from this split are none of the vocabulary's."""
        if ids.max(initial=0) >= self.vocab_size:
            raise UserError(
                f"{self._path} is damaged: it holds the id {ids.max()}, and the tokenizer has "
                f"{self.vocab_size}; prepare the dataset again, or copy that file again"
            )


def _load_counts(path) -> np.ndarray:
    try:
        counts = np.load(path, allow_pickle=False)
    except ValueError:
        counts = None
    if counts is None or counts.dtype != np.int64 or counts.ndim != 1 or counts.min(initial=1) < 1:
        raise UserError(f"{path} is damaged: prepare the dataset again, or copy that file again")
    return counts


class Dataset:
    """A dataset that is whole as far as its manifest and file sizes tell. Raises UserError where it
    is not."""

    def __init__(self, root):
        self.root = Path(root)
        self.manifest = read_manifest(self.root)
        self.vocab = Vocab.load(self.root / TOKENIZER)
        if self.vocab.fingerprint != self.manifest["tokenizer"]["pieces_sha256"]:
            raise UserError(
                f"{self.root / TOKENIZER} is not the tokenizer that made the dataset, by the hash"
                f" in {MANIFEST}: put the original file back or prepare the dataset again"
            )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the manifest: two datasets with the same fingerprint hold the same documents in
        the same order."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    @property
    def split_names(self) -> list:
        return list(self.manifest["splits"])

    def split(self, name: str) -> Split:
        if name not in self.manifest["splits"]:
            raise UserError(
                f"{self.root} has no split {name!r}: it has {', '.join(self.split_names)}"
            )
        entry = self.manifest["splits"][name]
        folder = self.root / name
        for file in FILES:
            path, wanted = folder / file, entry["files"][file]["size"]
            size = path.stat().st_size if path.is_file() else None
            if size != wanted:
                found = "is missing" if size is None else f"has {size} bytes"
                raise UserError(
                    f"{path} {found}, where {MANIFEST} says {wanted} bytes: prepare the dataset "
                    "again, or copy that file again"
                )
        split = Split(name, folder, self.manifest["dtype"], self.vocab.size)
        documents = len(split.doc_tokens)
        tokens = int(split.doc_tokens.sum()) + len(split.doc_tokens)
        if (documents, tokens, len(split.tokens)) != (
            entry["documents"],
            entry["tokens"],
            entry["tokens"],
        ):
            raise UserError(
                f"{folder} does not hold the {entry['tokens']} tokens in {entry['documents']}"
                f" documents that {MANIFEST} says: prepare the dataset again"
            )
        return split


def begin(folder: Path, vocab: Vocab, text: dict, provenance: dict) -> dict:
    """Write a new dataset's tokenizer into its folder; returns its manifest, which has no split
    yet.

    text: what was done to the documents. provenance: what they were made of.
    """
    (folder / TOKENIZER).write_bytes(vocab.model)
    return {
        "format": FORMAT,
        "dtype": token_dtype(vocab.size),
        "vocab_size": vocab.size,
        "special_ids": vocab.special_ids,
        "tokenizer": {
            "sha256": hashlib.sha256(vocab.model).hexdigest(),
            "pieces_sha256": vocab.fingerprint,
        },
        "text": text,
        "provenance": provenance,
        "splits": {},
    }


def finish_split(folder: Path, names, doc_tokens, doc_bytes, **facts) -> dict:
    """Write a split's other files beside its tokens.bin; returns its entry in the manifest, `facts`
    among it."""
    for file, counts in ((DOC_TOKENS, doc_tokens), (DOC_BYTES, doc_bytes)):
        # numpy's own way into a file does not tell that the disk is full
        content = io.BytesIO()
        np.save(content, np.array(counts, np.int64))
        (folder / file).write_bytes(content.getbuffer())
    with open(folder / NAMES, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(name) + "\n" for name in names)
    return {
        "documents": len(names),
        "tokens": sum(doc_tokens) + len(names),
        "bytes": sum(doc_bytes),
        **facts,
        "files": {file: hash_file(folder / file) for file in FILES},
    }


def size_of_split(name: str, entry: dict) -> str:
    """An entry of the manifest in a line."""
    return (
        f"{name}: {entry['documents']:,} documents, {entry['bytes']:,} bytes, {entry['tokens']:,}"
        f" tokens ({entry['bytes'] / entry['tokens']:.2f} bytes per token)"
    )


def write_manifest(folder: Path, manifest: dict):
    """Write a dataset's manifest, sealed: its last value is the sha256 of the file with 64 zeros in
    the value's place."""
    path = folder / MANIFEST
    text = json.dumps({**manifest, SEAL: "0" * 64}, indent=1) + "\n"
    path.write_text(
        text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()), encoding="utf-8"
    )


def _seal_holds(text: str, manifest: dict) -> bool:
    seal = manifest.get(SEAL)
    if seal is None:
        return manifest["format"] == 1
    return (
        isinstance(seal, str)
        and hashlib.sha256(text.replace(seal, "0" * 64).encode()).hexdigest() == seal
    )


def read_manifest(root: Path) -> dict:
    """A dataset's manifest, its structure and its own hash checked. Raises UserError."""
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{root} holds no dataset (no {MANIFEST}): make one from a folder of .txt files with "
            f"`python tools/prepare_data.py --input FOLDER --out {root}`"
        )
    try:
        text = path.read_bytes().decode()
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged (not JSON: {error}): prepare the dataset again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") not in (1, FORMAT):
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise UserError(
            f"{path} has format {found!r}, this program reads formats up to {FORMAT}: prepare the"
            " dataset again"
        )
    problem = _manifest_problem(manifest) or (
        None if _seal_holds(text, manifest) else "its own hash is another"
    )
    if problem:
        raise UserError(f"{path} is damaged ({problem}): prepare the dataset again")
    return manifest


def _manifest_problem(manifest):
    """What is wrong with a manifest's structure, or None."""
    if manifest.get("dtype") not in DTYPES:
        return f"dtype is {manifest.get('dtype')!r}"
    if (
        not isinstance(manifest.get("tokenizer"), dict)
        or "pieces_sha256" not in manifest["tokenizer"]
    ):
        return "tokenizer.pieces_sha256 is missing"
    splits = manifest.get("splits")
    if not isinstance(splits, dict) or not splits:
        return "splits is missing"
    for name, entry in splits.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("files"), dict):
            return f"splits.{name}.files is missing"
        for file in FILES:
            facts = entry["files"].get(file)
            if not isinstance(facts, dict) or not isinstance(facts.get("size"), int):
                return f"splits.{name}.files.{file} is missing"
        for key in ("documents", "tokens", "bytes"):
            if not isinstance(entry.get(key), int):
                return f"splits.{name}.{key} is missing"
    return None

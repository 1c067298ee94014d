"""What a dataset's folder holds, file by file and field by field; its manifest written and read.

    manifest.json          `Manifest`, with its own sha256
    tokenizer.model        the SentencePiece model that made it
    SPLIT/tokens.bin       token ids, each document followed by the end-of-document id
    SPLIT/doc_tokens.npy   int64 (documents,): tokens of each, its end-of-document id not counted
    SPLIT/doc_bytes.npy    int64 (documents,): UTF-8 bytes of each document
    SPLIT/doc_hashes.npy   uint8 (documents, 16): beginning of the sha256 of each text, UTF-8
    SPLIT/names.txt        a document's name per line, as a JSON string

A manifest stays the dict that the file holds, keys of other versions included: its hash is what
tells one dataset from another.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.parsing import parse_json
from gpt.reading import read_bytes

# From 2 on a manifest holds its own hash, from 3 on a split has DOC_HASHES; all are read.
FORMAT = 3
FORMATS = (1, 2, FORMAT)

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
TOKENS = "tokens.bin"
DOC_TOKENS = "doc_tokens.npy"
DOC_BYTES = "doc_bytes.npy"
DOC_HASHES = "doc_hashes.npy"
NAMES = "names.txt"
SPLIT_FILES = (TOKENS, DOC_TOKENS, DOC_BYTES, DOC_HASHES, NAMES)

# what texts that are yet to be prepared look like in their folder
TEXTS = ("*.txt", "*.jsonl*", "*.parquet", "*/*.txt")

# Bytes of a document's hash.
HASH_BYTES = 16

# Bytes of a folder's name, which every file system takes.
LONGEST_NAME = 255

# Storage types of token ids.
DTYPES = ("<u2", "<u4")

# The key of a manifest's own hash, and what stands in the hash's place while it is taken.
SEAL = "manifest_sha256"
UNSEALED = "0" * 64


class FileFacts(TypedDict):
    """A file as it was written."""

    size: int
    """bytes"""
    sha256: str


class SplitCounts(TypedDict):
    """What is known of every split."""

    documents: int
    tokens: int
    """ids in tokens.bin, one end-of-document id per document included"""
    bytes: int
    """of the documents' text, UTF-8"""
    files: dict[str, FileFacts]
    """for each of `files_of_split`"""


class SplitEntry(SplitCounts, total=False):
    """A split in the manifest."""

    left_out: dict[str, int]
    """documents that were not taken, by reason"""
    found: dict[str, int]
    """documents that are peculiar, by what was found in them"""
    end_of_document_ids_inside: int
    """of imported token files only"""


class TokenizerFacts(TypedDict):
    """The tokenizer that made a dataset."""

    sha256: str
    """of the file"""
    pieces_sha256: str
    """`Vocab.fingerprint`"""


class Manifest(TypedDict, total=False):
    """manifest.json. Checked when read: format, dtype, tokenizer, splits."""

    format: int
    dtype: str
    """of the ids in tokens.bin, one of DTYPES"""
    vocab_size: int
    special_ids: dict[str, int]
    """`Vocab.special_ids`"""
    tokenizer: TokenizerFacts
    text: dict[str, Any]
    """what was done to the documents"""
    provenance: dict[str, Any]
    """what they were made of"""
    splits: dict[str, SplitEntry]
    manifest_sha256: str
    """SEAL: of the file with UNSEALED in this value's place"""


def token_dtype(vocab_size: int) -> str:
    """Smallest storage type for ids below `vocab_size`."""
    return DTYPES[0] if vocab_size <= 1 << 16 else DTYPES[1]


def files_of_split(version: int) -> tuple[str, ...]:
    """The files that a split has in a dataset of this format."""
    if version >= 3:
        return SPLIT_FILES
    return tuple(file for file in SPLIT_FILES if file != DOC_HASHES)


def begin(folder: Path, vocab: Vocab, text: dict[str, Any], provenance: dict[str, Any]) -> Manifest:
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


def finish_split(
    folder: Path,
    names: Sequence[str],
    doc_tokens: Sequence[int],
    doc_bytes: Sequence[int],
    doc_hashes: Sequence[bytes],
    **facts: Any,
) -> SplitEntry:
    """Write a split's other files beside its tokens.bin; returns its entry in the manifest, `facts`
    among it.

    doc_hashes: sha256 of each document's text, of which the first HASH_BYTES are kept.
    """
    _write_array(folder / DOC_TOKENS, np.array(doc_tokens, np.int64))
    _write_array(folder / DOC_BYTES, np.array(doc_bytes, np.int64))
    hashes = b"".join(digest[:HASH_BYTES] for digest in doc_hashes)
    _write_array(folder / DOC_HASHES, np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES))
    with open(folder / NAMES, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(name) + "\n" for name in names)
    entry: dict[str, Any] = {
        "documents": len(names),
        "tokens": sum(doc_tokens) + len(names),
        "bytes": sum(doc_bytes),
        **facts,
        "files": {file: hash_file(folder / file) for file in SPLIT_FILES},
    }
    return cast(SplitEntry, entry)


def _write_array(path: Path, values: np.ndarray) -> None:
    # numpy's own way into a file does not tell that the disk is full
    content = io.BytesIO()
    np.save(content, values)
    path.write_bytes(content.getbuffer())


def is_split_name(name: str) -> bool:
    """Whether a split may be called so: it becomes a folder of the dataset, and is named on command
    lines, where "all" and commas have meanings."""
    if not name or name.startswith(".") or Path(name).name != name or "\0" in name:
        return False
    if len(os.fsencode(name)) > LONGEST_NAME:
        return False
    return name not in (MANIFEST, TOKENIZER, "all") and "," not in name


def size_of_split(name: str, entry: SplitEntry) -> str:
    """An entry of the manifest in a line."""
    bytes_per_token = entry["bytes"] / entry["tokens"]
    return (
        f"{name}: {entry['documents']:,} documents, {entry['bytes']:,} bytes,"
        f" {entry['tokens']:,} tokens ({bytes_per_token:.2f} bytes per token)"
    )


def fingerprint(manifest: Manifest) -> str:
    """sha256 of a manifest: two datasets with the same one hold the same documents in the same
    order."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def documents_of_split(manifest: Manifest, split: str) -> str:
    """What tells the documents of a split, in their order, from others: the sha256 of DOC_HASHES,
    whatever the tokenizer. Datasets of before have no hashes of texts: theirs begins with
    "tokens:", and is of the tokens that their tokenizer made of them."""
    files = manifest["splits"][split]["files"]
    if DOC_HASHES in files_of_split(manifest["format"]):
        return files[DOC_HASHES]["sha256"]
    return f"tokens:{files[TOKENS]['sha256']}"


def write(folder: Path, manifest: Manifest) -> None:
    """Write a dataset's manifest, sealed: its last value is the sha256 of the file with 64 zeros in
    the value's place."""
    unsealed = json.dumps({**manifest, SEAL: UNSEALED}, indent=1) + "\n"
    seal = hashlib.sha256(unsealed.encode()).hexdigest()
    (folder / MANIFEST).write_text(unsealed.replace(UNSEALED, seal), encoding="utf-8")


def _no_dataset(root: Path) -> UserError:
    """What a place is that was taken for a dataset."""
    if root.is_file() and (root.parent / MANIFEST).is_file():
        return UserError(f"{root} is a file of a dataset", mend=f"give its folder, {root.parent}")
    if root.is_file():
        return UserError(
            f"{root} is a file, and a dataset is a folder",
            mend=f"make one with `python tools/prepare_data.py --input {root} --out FOLDER`, or"
            f" evaluate a text as it is with `python gpt/eval.py … --text {root}`",
        )
    what = f"{root} holds no dataset (no {MANIFEST})"
    for pattern in TEXTS:
        text = next((path for path in root.glob(pattern) if path.name != NAMES), None)
        if text is not None:
            return UserError(
                f"{what}, but texts such as {text.relative_to(root)}",
                mend=f"make one with `python tools/prepare_data.py --input {root} --out FOLDER`",
            )
    mend = (
        "make one from a folder of .txt files with"
        f" `python tools/prepare_data.py --input FOLDER --out {root}`"
    )
    if not root.exists() and not root.is_absolute():
        mend += f"; or name one by --data_root, as it is seen from {Path.cwd()}"
    return UserError(what, mend)


def read(root: Path) -> Manifest:
    """A dataset's manifest, its structure and its own hash checked. Raises UserError."""
    path = root / MANIFEST
    if not path.is_file():
        raise _no_dataset(root)
    prepare_again = "prepare the dataset again"
    try:
        text = read_bytes(path).decode()
        manifest = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged (not JSON: {error})", mend=prepare_again) from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version not in FORMATS:
        raise UserError(
            f"{path} has format {version!r}, this program reads formats up to {FORMAT}",
            mend=prepare_again,
        )
    damage = _structural_damage(manifest)
    if damage is None and not _seal_holds(text, manifest):
        damage = "its own hash is another"
    if damage is not None:
        raise UserError(f"{path} is damaged ({damage})", mend=prepare_again)
    return manifest


def _seal_holds(text: str, manifest: dict) -> bool:
    """Whether a manifest's own hash is that of its text."""
    seal = manifest.get(SEAL)
    if seal is None:
        return manifest["format"] == 1
    if not isinstance(seal, str) or len(seal) != len(UNSEALED):
        return False
    return hashlib.sha256(text.replace(seal, UNSEALED).encode()).hexdigest() == seal


def _structural_damage(manifest: dict) -> str | None:
    """The first thing that is wrong with a manifest's structure."""
    if manifest.get("dtype") not in DTYPES:
        return f"dtype is {manifest.get('dtype')!r}"
    tokenizer = manifest.get("tokenizer")
    if not isinstance(tokenizer, dict) or "pieces_sha256" not in tokenizer:
        return "tokenizer.pieces_sha256 is missing"
    splits = manifest.get("splits")
    if not isinstance(splits, dict) or not splits:
        return "splits is missing"
    for name, entry in splits.items():
        if not is_split_name(name):
            return f"a split is called {name!r}"
        missing = _missing_field(entry, manifest["format"])
        if missing is not None:
            return f"splits.{name}.{missing} is missing"
    return None


def _missing_field(entry: Any, version: int) -> str | None:
    """The first field of a split's entry that is missing or of another type."""
    if not isinstance(entry, dict) or not isinstance(entry.get("files"), dict):
        return "files"
    for file in files_of_split(version):
        facts = entry["files"].get(file)
        if not isinstance(facts, dict) or not isinstance(facts.get("size"), int):
            return f"files.{file}"
        if not isinstance(facts.get("sha256"), str):
            return f"files.{file}.sha256"
    for key in ("documents", "tokens", "bytes"):
        if not isinstance(entry.get(key), int):
            return key
    return None

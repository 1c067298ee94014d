"""The seed project's tokenised books, into a dataset of ours. Its layout (the Languini Kitchen's):

    ROOT/file_list_NAME.npy    text (documents, 2): path below ROOT/VOCAB, number of tokens
    ROOT/VOCAB/files/*.npy     ids of one document, uint16 (uint32 for large vocabularies), without
                               the end-of-document id

Its loader deals a list's documents in order to streams and puts the end-of-document id 2 after
each; ours does the same with the documents of a split (gpt/data/streams.py). So keeping the order
keeps every batch as it was.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from gpt.data import arrays, manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import built_aside, free_space, hash_file, require_new_folder
from gpt.reading import read_bytes

SPLITS = {  # name of a split, of its list
    "train": "train",
    "test": "test_iid",
    "langlearn": "test_langlearn",
    "discworld": "test_discworld",
    "java": "test_java",
    "stats": "test_statistics",
    "wood": "test_woodworking",
}
END_OF_DOCUMENT = 2  # fixed in its loader
CHUNK = 1 << 20  # tokens in memory at a time
LARGEST_LIST = 1 << 30  # bytes of a file list


class _Listed(NamedTuple):
    """A document as its list has it."""

    name: str  # path below the vocabulary's folder
    tokens: int


def import_dataset(
    root: Path | str,
    vocab_name: str,
    vocab: Vocab,
    out: Path | str,
    say: Callable[[str], None] = print,
) -> None:
    """Write the splits below `root` that exist as the new dataset `out`, whole or absent.

    Every document is held against its list before anything is written. Raises UserError.
    """
    root = Path(root)
    out = Path(out)
    require_new_folder(out)
    if vocab.eod_id != END_OF_DOCUMENT:
        raise UserError(
            f"{vocab.name} ends documents with the id {vocab.eod_id}, the seed project's loader"
            f" with {END_OF_DOCUMENT}",
            mend="give the tokenizer that the books were tokenised with",
        )
    source = root / vocab_name
    if not source.is_dir():
        raise UserError(
            f"{source} is not a folder",
            mend="--root takes the folder of the file lists, --vocab the name of the folder of"
            " token files in it, such as books_16384",
        )
    lists = _file_lists(root, say)
    splits = {split: _read_list(path, source) for split, path in lists.items()}
    dtype = np.dtype(manifests.token_dtype(vocab.size))
    tokens = sum(document.tokens + 1 for listed in splits.values() for document in listed)
    _require_room(out, tokens * dtype.itemsize)
    rules = {"line_ends": "as tokenised", "order": "of the file lists"}
    provenance = {
        "source": "tokenised books of the Languini Kitchen",
        "vocab": vocab_name,
        "file_lists": {path.name: hash_file(path)["sha256"] for path in lists.values()},
    }
    with built_aside(out) as building:
        manifest = manifests.begin(building, vocab, rules, provenance)
        for split, listed in splits.items():
            entry = _write_split(building / split, listed, source, vocab, dtype, say)
            manifest["splits"][split] = entry
        manifests.write(building, manifest)


def _file_lists(root: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """{split: its list} of those that exist."""
    lists = {split: root / f"file_list_{name}.npy" for split, name in SPLITS.items()}
    foreign = [path.name for path in root.glob("file_list_*.npy") if path not in lists.values()]
    if foreign:
        names = ", ".join(sorted(foreign))
        say(f"notice: not imported, being none of the seed project's lists: {names}")
    existing = {split: path for split, path in lists.items() if os.path.lexists(path)}
    for path in existing.values():
        if not path.is_file():
            raise UserError(
                f"{path} is no file (a folder, or a link to nothing)",
                mend="put the list there, or take it away to import the other splits",
            )
    if not existing:
        raise UserError(
            f"{root} holds none of the file lists file_list_{{{','.join(SPLITS.values())}}}.npy",
            mend="--root takes the folder that they are in",
        )
    return existing


def _read_list(path: Path, source: Path) -> list[_Listed]:
    """The documents of a list, each held against its file: there, of the right type, with as many
    tokens as listed."""
    listed = []
    for number, row in enumerate(_progress(_rows(path), path.name, "file"), 1):
        name, count = map(_text, row)
        if not count.isdecimal() or int(count) < 1:
            raise UserError(
                f"{path}, row {number}: {count!r} is no number of tokens", mend="get the file anew"
            )
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{path}, row {number}: {name!r} lies outside of {source}",
                mend="get the file anew",
            )
        with _opened(source / name, path) as ids:
            tokens = len(ids)
        if tokens != int(count):
            raise UserError(
                f"{source / name} holds {tokens} tokens, and {path} says {count}",
                mend="tokenise that book again with the seed project's tokenizer, or get the list"
                " anew",
            )
        listed.append(_Listed(name, tokens))
    return listed


def _rows(path: Path) -> np.ndarray:
    """A list's rows: text (documents, 2)."""
    rows = arrays.parse(read_bytes(path, LARGEST_LIST))
    if rows is None or rows.dtype.kind not in "US" or rows.ndim != 2 or rows.shape[1] != 2:
        raise UserError(
            f"{path} is not a file list, two columns of text in a plain .npy file (pickled objects"
            " are never loaded)",
            mend="get the file anew",
        )
    if not len(rows):
        raise UserError(
            f"{path} names no document",
            mend="get the file anew, or take it away to import the other splits",
        )
    return rows


def _text(value: str | bytes) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


@contextmanager
def _opened(path: Path, file_list: Path | str) -> Iterator[arrays.TokenFile]:
    """A document's ids."""
    try:
        ids = arrays.TokenFile.of_npy(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing, and {file_list} names it",
            mend="tokenise that book, or give the folder that has it with --vocab",
        ) from error
    if ids is None:
        raise UserError(
            f"{path} is not a plain .npy file (damaged, or pickled objects, which are never"
            " loaded)",
            mend="tokenise that book again",
        )
    with closing(ids):
        if ids.dtype not in (np.uint16, np.uint32) or len(ids.shape) != 1:
            raise UserError(
                f"{path} holds {ids.dtype} of the shape {ids.shape}, not a row of uint16 or uint32"
                " ids",
                mend="tokenise that book again",
            )
        yield ids


def _write_split(
    folder: Path,
    listed: list[_Listed],
    source: Path,
    vocab: Vocab,
    dtype: np.dtype,
    say: Callable[[str], None],
) -> manifests.SplitEntry:
    """Pack the documents into `folder`; returns the split's entry in the manifest."""
    folder.mkdir()
    names = [document.name for document in listed]
    doc_tokens = [document.tokens for document in listed]
    doc_bytes = []
    doc_hashes = []
    inner_ends = 0
    with open(folder / manifests.TOKENS, "wb") as file:
        for name in _progress(names, folder.name, "doc"):
            document = _write_document(source / name, vocab, dtype, file)
            doc_bytes.append(document.size)
            doc_hashes.append(document.sha256)
            inner_ends += document.inner_ends
    entry = manifests.finish_split(
        folder, names, doc_tokens, doc_bytes, doc_hashes, end_of_document_ids_inside=inner_ends
    )
    size_of_split = manifests.size_of_split(folder.name, entry)
    if inner_ends:
        size_of_split += (
            f"; {inner_ends:,} end-of-document ids stand inside documents, of 0 bytes each"
        )
    say(size_of_split)
    return entry


class _Written(NamedTuple):
    """What is known of a document when it is packed."""

    size: int  # of its text, in bytes
    sha256: bytes  # of its text
    inner_ends: int  # end-of-document ids inside it


def _write_document(path: Path, vocab: Vocab, dtype: np.dtype, file: BinaryIO) -> _Written:
    """Append a document's ids and the end-of-document id to a split."""
    text_bytes = 0
    digest = hashlib.sha256()
    inner_ends = 0
    with _opened(path, "its list") as ids:
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            if chunk.max() >= vocab.size:
                raise UserError(
                    f"{path} holds the id {chunk.max()}, and {vocab.name} has {vocab.size}",
                    mend="give the tokenizer that the books were tokenised with",
                )
            text = vocab.text_bytes(chunk)
            text_bytes += len(text)
            digest.update(text)
            inner_ends += int((chunk == END_OF_DOCUMENT).sum())
            file.write(chunk.astype(dtype).tobytes())
    file.write(np.array([END_OF_DOCUMENT], dtype).tobytes())
    if not text_bytes:
        raise UserError(f"{path} holds no text, only special ids", mend="tokenise that book again")
    return _Written(text_bytes, digest.digest(), inner_ends)


def _progress(items: Sized, what: str, unit: str):
    return tqdm(items, desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False)


def _require_room(out: Path, size: int):
    free, place = free_space(out)
    if free < size:
        raise UserError(
            f"{out} needs {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free in {place}",
            mend="make room, or name a folder on another disk",
        )

"""The seed project's tokenised books, into a dataset of ours. Its layout (the Languini Kitchen's):

    ROOT/file_list_NAME.npy    text (documents, 2): path below ROOT/VOCAB, number of tokens
    ROOT/VOCAB/files/*.npy     ids of one document, uint16 (uint32 for large vocabularies), without
                               the end-of-document id

Its loader deals a list's documents in order to streams and puts the end-of-document id 2 after
each; ours does the same with the documents of a split (gpt/data/streams.py). So keeping the order
keeps every batch as it was.
"""

import os
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gpt.data import manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import built_aside, free_space, hash_file, require_new_folder

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


class _Listed(NamedTuple):
    """A document as its list has it."""

    name: str  # path below the vocabulary's folder
    tokens: int


def import_dataset(root, vocab_name: str, vocab: Vocab, out, say=print):
    """Write the splits below `root` that exist as the new dataset `out`, whole or absent.

    Every document is held against its list before anything is written. Raises UserError.
    """
    root, out = Path(root), Path(out)
    require_new_folder(out)
    if vocab.eod_id != END_OF_DOCUMENT:
        raise UserError(
            f"{vocab.name} ends documents with the id {vocab.eod_id}, the seed project's loader"
            f" with {END_OF_DOCUMENT}: give the tokenizer that the books were tokenised with"
        )
    source = root / vocab_name
    if not source.is_dir():
        raise UserError(
            f"{source} is not a folder: --root takes the folder of the file lists, --vocab the name"
            " of the folder of token files in it, such as books_16384"
        )
    lists = {split: root / f"file_list_{name}.npy" for split, name in SPLITS.items()}
    strange = sorted(
        path.name for path in root.glob("file_list_*.npy") if path not in lists.values()
    )
    if strange:
        say(f"notice: not imported, being none of the seed project's lists: {', '.join(strange)}")
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if not lists:
        raise UserError(
            f"{root} holds none of the file lists file_list_{{{','.join(SPLITS.values())}}}.npy:"
            " --root takes the folder that they are in"
        )
    splits = {split: _read_list(path, source) for split, path in lists.items()}
    dtype = manifests.token_dtype(vocab.size)
    _require_room(
        out,
        sum(d.tokens + 1 for listed in splits.values() for d in listed) * np.dtype(dtype).itemsize,
    )
    provenance = {
        "source": "tokenised books of the Languini Kitchen",
        "vocab": vocab_name,
        "file_lists": {path.name: hash_file(path)["sha256"] for path in lists.values()},
    }
    with built_aside(out) as building:
        manifest = manifests.begin(
            building, vocab, {"line_ends": "as tokenised", "order": "of the file lists"}, provenance
        )
        for split, listed in splits.items():
            manifest["splits"][split] = _write_split(
                building / split, listed, source, vocab, dtype, say
            )
        manifests.write(building, manifest)


def _read_list(path, source) -> list:
    """The documents of a list, each held against its file: there, of the right type, with as many
    tokens as listed."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile):
        rows = None
    if (
        not isinstance(rows, np.ndarray)
        or rows.dtype.kind not in "US"
        or rows.ndim != 2
        or rows.shape[1] != 2
    ):
        raise UserError(
            f"{path} is not a file list, two columns of text in a plain .npy file (pickled objects"
            " are never loaded): get the file anew"
        )
    if not len(rows):
        raise UserError(
            f"{path} names no document: get the file anew, or take it away to import the other"
            " splits"
        )
    listed = []
    for number, (name, count) in enumerate(_progress(rows, path.name, "file"), 1):
        name, count = (
            os.fsdecode(value) if isinstance(value, bytes) else str(value)
            for value in (name, count)
        )
        if not count.isdecimal() or int(count) < 1:
            raise UserError(
                f"{path}, row {number}: {count!r} is no number of tokens: get the file anew"
            )
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{path}, row {number}: {name!r} lies outside of {source}: get the file anew"
            )
        found = len(_open(source / name, path))
        if found != int(count):
            raise UserError(
                f"{source / name} holds {found} tokens, and {path} says {count}: tokenise that book"
                " again with the seed project's tokenizer, or get the list anew"
            )
        listed.append(_Listed(name, int(count)))
    return listed


def _open(path, file_list) -> np.ndarray:
    """A document's ids, memory-mapped."""
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing, and {file_list} names it: tokenise that book, or give the folder"
            " that has it with --vocab"
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile):
        ids = None
    if not isinstance(ids, np.ndarray):
        raise UserError(
            f"{path} is not a plain .npy file (damaged, or pickled objects, which are never"
            " loaded): tokenise that book again"
        )
    if ids.dtype not in (np.uint16, np.uint32) or ids.ndim != 1:
        raise UserError(
            f"{path} holds {ids.dtype} of the shape {ids.shape}, not a row of uint16 or uint32 ids:"
            " tokenise that book again"
        )
    return ids


def _write_split(folder, listed, source, vocab, dtype, say) -> dict:
    """Pack the documents into `folder`; returns the split's entry in the manifest."""
    folder.mkdir()
    doc_bytes, inner_ends = [0] * len(listed), 0
    with open(folder / manifests.TOKENS, "wb") as out:
        for index, document in enumerate(_progress(listed, folder.name, "doc")):
            path = source / document.name
            ids = _open(path, "its list")
            for start in range(0, len(ids), CHUNK):
                chunk = ids[start : start + CHUNK]
                if chunk.max() >= vocab.size:
                    raise UserError(
                        f"{path} holds the id {chunk.max()}, and {vocab.name} has {vocab.size}:"
                        " give the tokenizer that the books were tokenised with"
                    )
                doc_bytes[index] += int(vocab.byte_lengths[chunk].sum())
                inner_ends += int((chunk == END_OF_DOCUMENT).sum())
                out.write(chunk.astype(dtype).tobytes())
            out.write(np.array([END_OF_DOCUMENT], dtype).tobytes())
            if not doc_bytes[index]:
                raise UserError(f"{path} holds no text, only special ids: tokenise that book again")
    names, doc_tokens = zip(*listed)
    entry = manifests.finish_split(
        folder, names, doc_tokens, doc_bytes, end_of_document_ids_inside=inner_ends
    )
    say(
        manifests.size_of_split(folder.name, entry)
        + (
            f"; {inner_ends:,} end-of-document ids stand inside documents, of 0 bytes each"
            if inner_ends
            else ""
        )
    )
    return entry


def _progress(items, what, unit):
    return tqdm(items, desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False)


def _require_room(out, size):
    free, place = free_space(out)
    if free < size:
        raise UserError(
            f"{out} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {place}: make"
            " room, or name a folder on another disk"
        )

"""Texts as a split in memory: the tokens that prepare_data.py would write of them."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.data.manifests import HASH_BYTES
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare.documents import Input, documents
from gpt.prepare.encode import Encoder, Lossy
from gpt.prepare.texts import Document, NotUTF8, Reading


@dataclass(frozen=True)
class TextSplit:
    """What gpt.evaluation.Evaluator needs of a split. tokens: (n,) ids, an end-of-document id after
    every document; doc_tokens, doc_bytes, doc_hashes: as gpt.data.datasets.Split has them."""

    tokens: np.ndarray
    doc_tokens: np.ndarray
    doc_bytes: np.ndarray
    doc_hashes: np.ndarray

    def check_ids(self, ids: np.ndarray) -> None:
        """They are the vocabulary's, which has just made them."""


def split_of_files(paths: Iterable[Path | str], vocab: Vocab) -> TextSplit:
    """The documents of files in their order: a text file is one, a file of rows holds many; an
    empty one is left out. Raises UserError where a file cannot be read, or there is no text at
    all."""
    files = [Path(path) for path in paths]
    encoder = Encoder(vocab)
    id_size = np.dtype(encoder.dtype).itemsize
    parts: list[bytes] = []
    doc_tokens: list[int] = []
    doc_bytes: list[int] = []
    doc_hashes: list[bytes] = []
    for document in _documents_of(files):
        tokens, size, digest = _encoded(document, encoder)
        if size:
            parts += [*tokens, encoder.end]
            doc_tokens.append(sum(map(len, tokens)) // id_size)
            doc_bytes.append(size)
            doc_hashes.append(digest[:HASH_BYTES])
    if not doc_bytes:
        raise _no_text(files)
    return TextSplit(
        np.frombuffer(b"".join(parts), encoder.dtype),
        np.array(doc_tokens, np.int64),
        np.array(doc_bytes, np.int64),
        np.frombuffer(b"".join(doc_hashes), np.uint8).reshape(-1, HASH_BYTES),
    )


def texts_of_files(paths: Iterable[Path | str]) -> list[tuple[str, str]]:
    """(name, text) of the same documents. Raises UserError likewise."""
    files = [Path(path) for path in paths]
    texts = []
    for document in _documents_of(files):
        with _in_utf8():
            text = document.read()
        if text:
            texts.append((document.name, text))
    if not texts:
        raise _no_text(files)
    return texts


def _documents_of(files: Iterable[Path]) -> Iterator[Document]:
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file", mend="give text files, each a document")
        yield from documents(Input(str(path), path), Reading())


def _no_text(files: Iterable[Path]) -> UserError:
    names = ", ".join(map(str, files))
    return UserError(f"no text is in {names}", mend="give other files")


@contextmanager
def _in_utf8() -> Iterator[None]:
    try:
        yield
    except NotUTF8 as error:
        raise UserError(
            error.what, mend="convert it, for example with `iconv -t UTF-8`, or take it out"
        ) from error


def _encoded(document: Document, encoder: Encoder) -> tuple[list[bytes], int, bytes]:
    """(stored ids of a document in pieces, its bytes, their sha256)"""
    pieces = []
    content = hashlib.sha256()
    size = 0
    try:
        with _in_utf8():
            for chunk in encoder.chunks(document.blocks()):
                pieces.append(encoder.encode(chunk))
                text = chunk.encode()
                content.update(text)
                size += len(text)
    except Lossy as error:
        raise UserError(
            f"the model's tokenizer does not encode {document.name} without loss",
            mend="its bits per byte would not be those of the text; take it out",
        ) from error
    return pieces, size, content.digest()

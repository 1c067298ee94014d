"""The very bytes of a split, or of text files, for a tokenizer that is not the dataset's."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from gpt.convert.foreign_tokenizer import ForeignTokenizer
from gpt.data.datasets import MEND, Dataset, Split
from gpt.data.manifests import HASH_BYTES
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare.in_memory import TextSplit, texts_of_files
from gpt.results.scoring import Documents, Target


def target_of_texts(files: Sequence[str], tokenizer: ForeignTokenizer) -> Target:
    """As gpt.results.scoring.of_texts. Raises UserError, too, where the tokenizer does not keep a
    text."""
    stream = tokenizer.stream(texts_of_files(files))
    facts = {"split": "text", "dataset": ", ".join(files)}
    return Target(facts, stream, tokenizer, _documents_of(stream))


def target_of_split(
    dataset: Dataset, name: str, tokenizer: ForeignTokenizer, hashed: bool = True
) -> Target:
    """As gpt.results.scoring.of_split. Raises UserError likewise."""
    split = dataset.split(name)
    if hashed:
        split.require_as_written()
    stream = tokenizer.stream(texts_of_split(split, dataset.vocab))
    facts = {"split": name, "dataset": str(dataset.root), "documents": dataset.documents(name)}
    return Target(facts, stream, tokenizer, _documents_of(stream))


def _documents_of(stream: TextSplit) -> Documents:
    hashes = tuple(row.tobytes().hex() for row in stream.doc_hashes)
    return Documents(stream.doc_tokens + 1, stream.doc_bytes, hashes)


def texts_of_split(split: Split, vocab: Vocab) -> Iterator[tuple[str, str]]:
    """(name, text) of each document, out of its ids. vocab: the dataset's. Raises UserError where a
    text is not the one that was prepared, by its size and, where the dataset has them, its hash."""
    names = split.names()
    begin = 0
    for index, name in enumerate(names):
        end = begin + int(split.doc_tokens[index])
        ids = np.asarray(split.tokens[begin:end])
        split.check_ids(ids)
        content = vocab.text_bytes(ids)
        begin = end + 1
        is_same = len(content) == split.doc_bytes[index]
        if split.doc_hashes is not None:
            digest = hashlib.sha256(content).digest()[:HASH_BYTES]
            is_same = is_same and digest == split.doc_hashes[index].tobytes()
        if not is_same:
            raise UserError(
                f"the tokens of {name!r} in the split {split.name!r} do not stand for the text that"
                " was prepared",
                mend=MEND,
            )
        try:
            yield name, content.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name!r} in the split {split.name!r} is not UTF-8 at byte {error.start}, which no"
                " tokenizer of transformers takes",
                mend="score another split",
            ) from error

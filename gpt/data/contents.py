"""What a split holds, for people to look at: documents, their texts, batches in words, counts of
tokens and lengths."""

from typing import Any

import numpy as np

from gpt.data.datasets import Dataset, Split
from gpt.data.streams import Streams
from gpt.data.vocab import Vocab
from gpt.errors import UserError

# Tokens that are counted at a time.
AT_A_TIME = 1 << 24

# Of the most frequent tokens.
SHOWN = 30


def documents_of(split: Split) -> list[dict[str, Any]]:
    """{"name", "bytes", "tokens"} of every document, in the order of reading; the end-of-document
    id is not counted."""
    counts = zip(split.names(), split.doc_bytes.tolist(), split.doc_tokens.tolist())
    return [{"name": name, "bytes": size, "tokens": tokens} for name, size, tokens in counts]


def document_of(dataset: Dataset, split: Split, name: str) -> dict[str, Any]:
    """A document by name, with its "text". Raises UserError."""
    names = split.names()
    if name not in names:
        raise UserError(
            f"{split.name} has no document {name!r}", mend="--documents lists them by name"
        )
    index = names.index(name)
    end = int(np.sum(split.doc_tokens[: index + 1] + 1)) - 1
    ids = split.tokens.read(end - int(split.doc_tokens[index]), int(split.doc_tokens[index]))
    split.check_ids(ids)
    return {**documents_of(split)[index], "text": text_of(dataset.vocab, ids)}


def text_of(vocab: Vocab, ids: np.ndarray) -> str:
    """The text of tokens; U+FFFD where the first or the last one cuts a character."""
    return vocab.text_bytes(ids).decode("utf-8", "replace")


def batch_of(dataset: Dataset, streams: Streams, index: int, rows: range) -> list[dict[str, Any]]:
    """Rows of batch `index`: {"row", "pieces"}, and for each document that the row's window reads a
    piece {"document", "first", "tokens", "ends", "text"}.

    first: place in the document of the piece's first token, from 0. ends: whether the document's
    end is read too, which `tokens` counts.
    """
    names = streams.split.names()
    batch = streams.batch(index, rows)
    shown = []
    for row, window, pieces in zip(rows, batch, streams.pieces(index, rows)):
        described = []
        begin = 0
        for piece in pieces:
            ids = window[begin : begin + piece.tokens]
            begin += piece.tokens
            tokens_of_document = int(streams.split.doc_tokens[piece.document])
            described.append(
                {
                    "document": names[piece.document],
                    "first": piece.first,
                    "tokens": piece.tokens,
                    "ends": piece.first + piece.tokens > tokens_of_document,
                    "text": text_of(dataset.vocab, ids),
                }
            )
        shown.append({"row": row, "pieces": described})
    return shown


def histogram_of(dataset: Dataset, split: Split) -> dict[str, Any]:
    """How often tokens are met, and how long tokens and documents are. Reads all tokens once.

    "most_frequent": [{"id", "text", "count"}]; "token_bytes": {bytes that a token stands for:
    count}; "document_tokens": {lower power of two: documents}.
    """
    vocab = dataset.vocab
    counts = np.zeros(vocab.size, np.int64)
    for first in range(0, len(split.tokens), AT_A_TIME):
        ids = split.tokens.read(first, min(AT_A_TIME, len(split.tokens) - first))
        split.check_ids(ids)
        counts += np.bincount(ids, minlength=vocab.size)
    most_frequent = []
    for token in np.argsort(-counts, kind="stable")[:SHOWN].tolist():
        if counts[token]:
            text = vocab.bytes_of(token).decode("utf-8", "replace")
            most_frequent.append({"id": token, "text": text, "count": int(counts[token])})
    lengths = np.bincount(vocab.byte_lengths, weights=counts)
    powers = np.bincount(np.log2(split.doc_tokens).astype(np.int64))
    return {
        "tokens": len(split.tokens),
        "bytes": int(split.doc_bytes.sum()),
        "vocab_size": vocab.size,
        "ids_never_met": int((counts == 0).sum()),
        "most_frequent": most_frequent,
        "token_bytes": {size: int(count) for size, count in enumerate(lengths) if count},
        "document_tokens": {1 << power: int(count) for power, count in enumerate(powers) if count},
    }

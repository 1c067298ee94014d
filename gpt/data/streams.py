"""The tokens of every batch of a run, and which rows of it each rank trains on.

Three things decide them, all in this file, and all pure functions, so resuming a run, or going on
with another number of ranks, needs no state:

    batch_index(step, left_out)        which batch an optimiser step is made from
    Streams.batch(index)               the tokens of batch `index`: (rows, seq_len + 1)
    Streams.rows_of(rank, world_size)  which of its rows a rank reads

A split is cut into as many endless streams as a batch has rows; row r of every batch is the next
window of stream r.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from gpt.data.datasets import Split
from gpt.errors import UserError


def batch_index(step: int, left_out: Iterable[int]) -> int:
    """Index of the batch that the optimiser step after `step` steps is made from: the batches in
    order, without those whose indices are in `left_out`.

    Nothing else shifts batches: batch k of a run is `Streams.batch(k)`, whichever steps, restarts
    or ranks came before.
    """
    index = step
    for absent in sorted(left_out):
        if absent <= index:
            index += 1
    return index


def assign_documents(doc_tokens: np.ndarray | Sequence[int], streams: int) -> np.ndarray:
    """Stream of each document, int32: in order, each goes to the stream with the fewest tokens so
    far (ties: lowest index). Loads leave the end-of-document tokens out, as the baseline's loader
    does."""
    loads = [(0, stream) for stream in range(streams)]  # already a heap
    stream_of = np.empty(len(doc_tokens), np.int32)
    for document, tokens in enumerate(np.asarray(doc_tokens).tolist()):
        load, stream = loads[0]
        stream_of[document] = stream
        heapq.heapreplace(loads, (load + tokens, stream))
    return stream_of


def require_documents(split_name: str, documents: int, streams: int) -> None:
    """Raise UserError where a split has fewer documents than streams."""
    if documents < streams:
        raise UserError(
            f"the split {split_name!r} has {documents} documents, fewer than the {streams} streams"
            f" that train_batch_size {streams} needs",
            mend="prepare more documents (tools/prepare_data.py --cut_documents BYTES makes several"
            f" of a large file) or lower train_batch_size to at most {documents}",
        )


class Piece(NamedTuple):
    """A part of a window that is read from one document."""

    document: int
    """its index in the split"""
    first: int
    """of its tokens, from 0"""
    tokens: int
    """the document's end included, where it is read"""


class Streams:
    """A split cut into `count` endless token streams, of which each optimiser step reads one window
    each.

    Window k of a stream is its tokens [k * seq_len, (k + 1) * seq_len + 1), so that neighbours
    share one token, and each stream wraps on its own.
    """

    def __init__(self, split: Split, count: int, seq_len: int):
        require_documents(split.name, len(split.doc_tokens), count)
        self.count = count
        self.seq_len = seq_len
        self.split = split
        sizes = split.doc_tokens + 1
        self._starts = np.cumsum(sizes) - sizes  # of documents, in the packed file
        stream_of = assign_documents(split.doc_tokens, count)
        # The documents, stream by stream. Where these comments speak of an entry, it is one of this
        # order.
        self._order = order = np.argsort(stream_of, kind="stable")
        # A place counts the tokens of all streams, one stream after the other. Per entry: the place
        # of its end, and what to add to a place in it for the position in the packed file.
        self._ends = np.cumsum(sizes[order])
        starts = self._ends - sizes[order]
        self._to_file = self._starts[order] - starts
        # Per stream, and one more for the end: its first entry and its first place.
        self._first_entries = np.searchsorted(stream_of[order], np.arange(count + 1))
        self._first_places = np.concatenate([[0], self._ends])[self._first_entries]

    @property
    def tokens(self) -> int:
        """Of all streams together."""
        return int(self._first_places[-1])

    @property
    def first_repeat(self) -> int:
        """Index of the first batch in which a stream, the shortest, begins again."""
        return int(np.diff(self._first_places).min()) // self.seq_len

    def rows_of(self, rank: int, world_size: int) -> range:
        """The rows of every batch that one of `world_size` ranks trains on: each world_size-th,
        from its own rank on."""
        return range(rank, self.count, world_size)

    def batch(self, index: int, rows: Sequence[int] | None = None) -> np.ndarray:
        """Windows of batch `index` (from 0): int64 (rows, seq_len + 1). Inputs are [:, :-1],
        targets [:, 1:].

        rows: which of the streams, all by default; a rank's are `rows_of(rank, world_size)`.
        """
        streams = np.arange(self.count) if rows is None else np.asarray(rows)
        batch = np.empty((len(streams), self.seq_len + 1), np.int64)
        places, entries = self._windows(streams, index)
        positions = (places + self._to_file[entries]).tolist()
        in_one_document = (places + self.seq_len + 1 <= self._ends[entries]).tolist()
        for row, window in enumerate(batch):
            if in_one_document[row]:
                window[:] = self.split.tokens.read(positions[row], len(window))
                continue
            filled = 0
            for _, position, tokens in self._pieces(streams[row], places[row], entries[row]):
                window[filled : filled + tokens] = self.split.tokens.read(position, tokens)
                filled += tokens
        self.split.check_ids(batch)
        return batch

    def documents(self, index: int) -> list[str]:
        """Names of the documents that batch `index` is made from, each once."""
        names = self.split.names()
        read: dict[int, None] = {}  # each once and in the order of reading
        for pieces in self.pieces(index):
            read.update(dict.fromkeys(piece.document for piece in pieces))
        return [names[document] for document in read]

    def pieces(self, index: int, rows: Sequence[int] | None = None) -> list[list[Piece]]:
        """What each row of `batch(index, rows)` is read from, in order."""
        streams = np.arange(self.count) if rows is None else np.asarray(rows)
        places, entries = self._windows(streams, index)
        pieces_of_rows = []
        for stream, place, first_entry in zip(streams.tolist(), places.tolist(), entries.tolist()):
            pieces = []
            for entry, position, tokens in self._pieces(stream, place, first_entry):
                document = int(self._order[entry])
                first = position - int(self._starts[document])
                pieces.append(Piece(document, first, tokens))
            pieces_of_rows.append(pieces)
        return pieces_of_rows

    def _windows(self, streams: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(place, entry) that each stream's window of batch `index` begins with."""
        first = self._first_places[streams]
        length = self._first_places[streams + 1] - first
        places = first + (index * self.seq_len) % length
        return places, np.searchsorted(self._ends, places, "right")

    def _pieces(self, stream: int, place: int, entry: int) -> Iterator[tuple[int, int, int]]:
        """(entry, position in the packed file, tokens) of the pieces, each of one document, of the
        window that begins at `place`."""
        left = self.seq_len + 1
        while left:
            tokens = min(left, int(self._ends[entry] - place))
            yield int(entry), int(place + self._to_file[entry]), tokens
            left -= tokens
            place = self._ends[entry]
            entry = entry + 1
            if entry == self._first_entries[stream + 1]:
                place = self._first_places[stream]
                entry = self._first_entries[stream]


class Ahead:
    """The batches of some rows of `streams`; while one is trained on, a thread reads the next."""

    def __init__(self, streams: Streams, rows: Sequence[int]):
        self._streams = streams
        self._rows = rows
        self._pool = ThreadPoolExecutor(1, "batches")
        self._next_index: int | None = None
        self._next: Future | None = None

    def batch(self, index: int) -> np.ndarray:
        """`Streams.batch(index, rows)`."""
        if self._next is not None and index == self._next_index:
            batch = self._next.result()
        else:
            batch = self._streams.batch(index, self._rows)
        self._next_index = index + 1
        self._next = self._pool.submit(self._streams.batch, index + 1, self._rows)
        return batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

"""Token streams: batch `step` as a pure function of (dataset, streams, seq_len, step)."""

import heapq
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpt.data.datasets import Split
from gpt.errors import UserError


def assign_documents(doc_tokens, streams: int) -> np.ndarray:
    """Stream of each document, int32: in order, each goes to the stream with the fewest tokens so
    far (ties: lowest index). Loads leave the end-of-document tokens out, as the baseline's loader
    does."""
    load = [(0, stream) for stream in range(streams)]  # already a heap
    chosen = np.empty(len(doc_tokens), np.int32)
    for document, tokens in enumerate(np.asarray(doc_tokens).tolist()):
        tokens_so_far, stream = load[0]
        chosen[document] = stream
        heapq.heapreplace(load, (tokens_so_far + tokens, stream))
    return chosen


def require_documents(split_name: str, documents: int, streams: int):
    """Raise UserError where a split has fewer documents than streams."""
    if documents < streams:
        raise UserError(
            f"the split {split_name!r} has {documents} documents, fewer than the {streams} streams"
            f" that train_batch_size {streams} needs: prepare more documents or lower"
            f" train_batch_size to at most {documents}"
        )


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
        self._split = split
        sizes = split.doc_tokens + 1
        starts = np.cumsum(sizes) - sizes  # of each document in the packed file
        stream_of = assign_documents(split.doc_tokens, count)
        # documents, stream by stream
        self._order = order = np.argsort(stream_of, kind="stable")
        # Places count the tokens of all streams, one after the other. Per document in that order:
        # the place of its end, and what to add to a place in it for the position in the packed
        # file.
        self._ends = np.cumsum(sizes[order])
        self._to_file = starts[order] - (self._ends - sizes[order])
        # Per stream, and one more: its first document in that order, and its first place.
        self._first = np.searchsorted(stream_of[order], np.arange(count + 1))
        self._begins = np.concatenate([[0], self._ends])[self._first]

    def batch(self, index: int, rows=None) -> np.ndarray:
        """Windows of batch `index` (from 0): int64 (rows, seq_len + 1). Inputs are [:, :-1],
        targets [:, 1:].

        rows: the streams wanted, all by default. Rank r of W reads range(r, count, W).
        """
        rows = np.arange(self.count) if rows is None else np.asarray(rows)
        batch = np.empty((len(rows), self.seq_len + 1), np.int64)
        places, at = self._windows(rows, index)
        first = places + self._to_file[at]
        # one document holds the whole window
        inside = places + self.seq_len + 1 <= self._ends[at]
        for row, (out, start, whole) in enumerate(zip(batch, first.tolist(), inside.tolist())):
            if whole:
                out[:] = self._split.read(start, len(out))
                continue
            filled = 0
            for _, start, tokens in self._spans(rows[row], places[row], at[row]):
                out[filled : filled + tokens] = self._split.read(start, tokens)
                filled += tokens
        self._split.check_ids(batch)
        return batch

    def documents(self, index: int) -> list:
        """Names of the documents that batch `index` is made from, each once."""
        names, rows = self._split.names(), np.arange(self.count)
        wanted = [
            at
            for window in zip(rows, *self._windows(rows, index))
            for at, _, _ in self._spans(*window)
        ]
        return [names[self._order[at]] for at in dict.fromkeys(wanted)]

    def _windows(self, rows, index):
        """(place, document) that each row's window of batch `index` begins with."""
        begins = self._begins[rows]
        places = begins + index * self.seq_len % (self._begins[rows + 1] - begins)
        return places, np.searchsorted(self._ends, places, "right")

    def _spans(self, stream, place, at):
        """(document, first token in the packed file, tokens) of the pieces of the window that
        begins at `place`."""
        left = self.seq_len + 1
        while left:
            tokens = min(left, int(self._ends[at] - place))
            yield int(at), int(place + self._to_file[at]), tokens
            left -= tokens
            place, at = self._ends[at], at + 1
            if at == self._first[stream + 1]:
                place, at = self._begins[stream], self._first[stream]


class Ahead:
    """The batches of some rows of `streams`; while one is trained on, a thread reads the next."""

    def __init__(self, streams: Streams, rows):
        self._streams = streams
        self._rows = rows
        self._pool = ThreadPoolExecutor(1, "batches")
        self._index = None
        self._next = None

    def batch(self, index: int) -> np.ndarray:
        """`Streams.batch(index, rows)`."""
        expected = index == self._index
        batch = self._next.result() if expected else self._streams.batch(index, self._rows)
        self._index = index + 1
        self._next = self._pool.submit(self._streams.batch, index + 1, self._rows)
        return batch

    def close(self):
        self._pool.shutdown(cancel_futures=True)


def batch_index(step: int, left_out) -> int:
    """Index of the batch that the optimiser step after `step` steps is made from: the batches in
    order, without those whose indices are in `left_out`."""
    index = step
    for skipped in sorted(left_out):
        index += skipped <= index
    return index

"""Held-out loss, exact and independent of how it is computed.

A split is one token stream, documents in order. Window 0 scores all of its targets, every later
window starts `last_n` tokens further and scores only its last `last_n` targets, with at least
seq_len - last_n tokens of context. One more window has the stream's first token for its target, and
for its context the end of a document, as at the beginning of every other document. So every token
is scored exactly once, and the bytes of a split are those of its documents under any tokenizer.
Windows are shared out over ranks and batch rows; only sums are combined, so any number of processes
finds the same result.

Two sets of sums are kept:
- ours: all targets; bytes from the vocabulary's exact table. Bits per byte and normalised
  quantities leave out the targets that carry no bytes (ends of documents) from both sums.
- `languini`, as the seed project prints them: the stream's first token is left out, the first
  window scores only its last `last_n` targets too, targets equal to the padding id 0 are left out,
  and its "bytes" are the characters of each window's decoded targets.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpt.cluster.world import to_device
from gpt.data import windows
from gpt.data.windows import FIRST_TOKEN, Window
from gpt.kernels.linear_cross_entropy import TokenScores
from gpt.quantities import quantities, ratio

# Targets below this rank are hits of the top 10.
TOP = 10
# (tokens, targets, scored) -> TokenScores, see Evaluator
Score = Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], TokenScores]


class Tokens(Protocol):
    """A row of ids: an array, or a file of which slices are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class Stream(Protocol):
    """What is scored: gpt.data.datasets.Split, or one in memory. tokens: ids, an end-of-document id
    after every document."""

    @property
    def tokens(self) -> Tokens: ...

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise UserError where ids that were read from it are none of the vocabulary's."""


class Pieces(Protocol):
    """What ids stand for: gpt.data.vocab.Vocab, or a tokenizer from elsewhere. eod_id: the end of a
    document; byte_lengths: int64 (size,), 0 for what carries none."""

    @property
    def eod_id(self) -> int: ...

    @property
    def byte_lengths(self) -> np.ndarray: ...

    def decode(self, ids: np.ndarray, /) -> str: ...


@dataclass
class Sums:
    """Sums over scored targets. Floats are float64, counts are integers."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0  # over the targets that carry bytes
    text_tokens: int = 0
    bytes: int = 0
    top1: int = 0
    top10: int = 0


@dataclass
class Tally:
    """Running sums of an evaluation, ours and the seed project's."""

    ours: Sums = field(default_factory=Sums)
    languini: Sums = field(default_factory=Sums)

    def values(self) -> list[float]:
        return [*vars(self.ours).values(), *vars(self.languini).values()]

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Tally":
        """Of `values()`, which may have gone through a tensor of float64."""
        kinds = [type(value) for value in vars(Sums()).values()]
        count = len(kinds)
        ours = Sums(*(kind(value) for kind, value in zip(kinds, values[:count])))
        languini = Sums(*(kind(value) for kind, value in zip(kinds, values[count:])))
        return cls(ours, languini)


class DocumentTally:
    """Sums over the scored targets of each document of a stream, its end-of-document id among them.

    sizes: int64 (documents,), ids of each document in their order, its end included. The others,
    (documents,) too, are the sums of `Sums`: nats, text_nats float64, counts int64.
    """

    def __init__(self, sizes: np.ndarray):
        count = len(sizes)
        self._ends = np.cumsum(sizes)
        self.nats = np.zeros(count)
        self.tokens = np.zeros(count, np.int64)
        self.text_nats = np.zeros(count)
        self.text_tokens = np.zeros(count, np.int64)
        self.bytes = np.zeros(count, np.int64)

    def add(self, positions: np.ndarray, byte_lengths: np.ndarray, nats: np.ndarray) -> None:
        """positions: int64 (N,), of targets in the stream; byte_lengths: int64 (N,); nats: float64
        (N,)."""
        documents = np.searchsorted(self._ends, positions, side="right")
        first = documents.min()
        part = slice(first, documents.max() + 1)
        places = documents - first
        has_bytes = byte_lengths > 0
        self.nats[part] += np.bincount(places, nats)
        self.tokens[part] += np.bincount(places)
        self.text_nats[part] += np.bincount(places, nats * has_bytes)
        self.text_tokens[part] += np.bincount(places, has_bytes).astype(np.int64)
        self.bytes[part] += np.bincount(places, byte_lengths).astype(np.int64)


class Evaluator:
    """Evaluates a model on one split.

    score(tokens, targets, scored): tokens, targets int64 (B, T); scored a pair (rows, columns) of
    int64 (N,), the positions that count, in row order -> their TokenScores. The host makes that
    index: it would have to wait for a device that searches a mask. batch_size: windows per batch
    over all ranks. max_batches: -1 for the whole split, else as many batches from its beginning;
    the window of the first token is not counted.
    rank, world_size: this process's share; every rank makes the same number of calls of `score`.
    micro_size: rows that a call may have in any case, since training has as many.
    """

    def __init__(
        self,
        split: Stream,
        vocab: Pieces,
        seq_len: int,
        last_n: int,
        batch_size: int,
        max_batches: int = -1,
        rank: int = 0,
        world_size: int = 1,
        micro_size: int = 1,
    ):
        self.split = split
        self.vocab = vocab
        self.seq_len = seq_len
        self.last_n = last_n
        self._size = len(split.tokens)
        self.windows = windows.windows(self._size, seq_len, last_n)
        if max_batches >= 0:
            self.windows = min(self.windows, max_batches * batch_size)
        has_first_token = self._size > 0 and max_batches != 0
        self._rows = max(math.ceil(batch_size / world_size), micro_size)  # windows per call
        # the first token's window, which is last here, makes the last call a row longer, not a call
        self._own_windows = range(rank, self.windows + has_first_token, world_size)
        most_of_a_rank = math.ceil(self.windows / world_size)
        self.calls = max(math.ceil(most_of_a_rank / self._rows), int(has_first_token))

    def run(
        self,
        score: Score,
        device: torch.device | str = "cpu",
        goes_on: Callable[[], bool] = lambda: True,
        documents: DocumentTally | None = None,
    ) -> Tally | None:
        """This rank's tally; sum `Tally.values()` over ranks for the whole.

        goes_on(): called after every call of `score`, on every rank equally often; if it is false
        this returns None. documents: gets the same targets, each added to its document's sums.
        """
        tally = Tally()
        for call in range(self.calls):
            batch = self._windows_of(call)
            ids, scored = self._arrays(batch)
            tokens = to_device(ids, device)
            rows, columns = to_device(scored, device)
            with torch.no_grad():
                scores = score(tokens[:, :-1], tokens[:, 1:], (rows, columns))
            if batch:
                # one copy, for which the device is waited for; float64 holds ranks exactly
                nats, rank = torch.stack([scores.nats.double(), scores.rank.double()]).cpu().numpy()
                self._add(tally, batch, nats, rank)
                if documents is not None:
                    self._add_to_documents(documents, batch, nats)
            if not goes_on():
                return None
        return tally

    def _windows_of(self, call: int) -> list[Window]:
        """This rank's windows of a call. The last takes all that are left."""
        end = None if call == self.calls - 1 else (call + 1) * self._rows
        batch = []
        for index in self._own_windows[call * self._rows : end]:
            window = FIRST_TOKEN
            if index < self.windows:
                window = windows.window(index, self._size, self.seq_len, self.last_n)
            batch.append(window)
        return batch

    def _ids(self, window: Window) -> np.ndarray:
        """Its inputs and its last target, int64 (length + 1,)."""
        ids = np.empty(window.length + 1, np.int64)
        if window is FIRST_TOKEN:
            ids[0] = self.vocab.eod_id
            ids[1:] = self.split.tokens[: window.length]
        else:
            ids[:] = self.split.tokens[window.start : window.start + window.length + 1]
        return ids

    def _arrays(self, batch: list[Window]) -> tuple[np.ndarray, np.ndarray]:
        """(rows, T + 1) int64 ids, and rows and columns (2, N) of the scored targets.

        T is the longest window's length. A rank without a window left makes a call all the same, on
        one dummy row, since ranks may share the weights.
        """
        length = max((window.length for window in batch), default=1)
        ids = np.zeros((max(1, len(batch)), length + 1), np.int64)
        mask = np.zeros((len(ids), length), bool)
        for row, window in enumerate(batch):
            ids[row, : window.length + 1] = self._ids(window)
            mask[row, window.length - window.scored : window.length] = True
        self.split.check_ids(ids)
        if not batch:
            mask[0, 0] = True
        return ids, np.array(np.nonzero(mask))

    def _add(self, tally: Tally, batch: list[Window], nats: np.ndarray, rank: np.ndarray) -> None:
        """nats, rank: (N,) float64, of the windows' scored targets one window after another."""
        first = 0
        for window in batch:
            part = slice(first, first + window.scored)
            targets = self._ids(window)[-window.scored :]
            self._add_ours(tally.ours, targets, nats[part], rank[part])
            skipped = self._left_out_by_languini(window)
            kept = slice(first + skipped, first + window.scored)
            self._add_languini(tally.languini, targets[skipped:], nats[kept], rank[kept])
            first += window.scored

    def _add_to_documents(
        self, documents: DocumentTally, batch: list[Window], nats: np.ndarray
    ) -> None:
        """nats: as of `_add`."""
        positions = []
        for window in batch:
            end = window.start + 1 + window.length
            positions.append(np.arange(end - window.scored, end))
        targets = np.concatenate([self._ids(window)[-window.scored :] for window in batch])
        documents.add(np.concatenate(positions), self.vocab.byte_lengths[targets], nats)

    def _left_out_by_languini(self, window: Window) -> int:
        """How many of a window's scored targets, from their first on."""
        if window is FIRST_TOKEN:
            return window.scored
        if window.start == 0:
            return min(window.scored, self.seq_len - self.last_n)
        return 0

    def _add_ours(
        self, sums: Sums, targets: np.ndarray, nats: np.ndarray, rank: np.ndarray
    ) -> None:
        sizes = self.vocab.byte_lengths[targets]
        sums.nats += float(nats.sum())
        sums.tokens += len(targets)
        sums.text_nats += float(nats[sizes > 0].sum())
        sums.text_tokens += int((sizes > 0).sum())
        sums.bytes += int(sizes.sum())
        sums.top1 += int((rank < 1).sum())
        sums.top10 += int((rank < TOP).sum())

    def _add_languini(
        self, sums: Sums, targets: np.ndarray, nats: np.ndarray, rank: np.ndarray
    ) -> None:
        kept = targets != 0
        total = float(nats[kept].sum())
        count = int(kept.sum())
        sums.nats += total
        sums.tokens += count
        sums.text_nats += total
        sums.text_tokens += count
        sums.bytes += len(self.vocab.decode(targets[kept]))
        sums.top1 += int((rank[kept] < 1).sum())
        sums.top10 += int((rank[kept] < TOP).sum())


def summary(tally: Tally) -> dict:
    """The published quantities: nats per token, per byte, bits per byte, hit rates, and the sums
    that they follow from; `languini` as the seed project's."""
    ours = _figures(tally.ours)
    languini = _figures(tally.languini)
    for name in ("bits_per_byte", "total_loss", "text_nats", "text_tokens"):
        del languini[name]
    return {**ours, "languini": languini}


def _figures(sums: Sums) -> dict:
    figures = quantities(sums.nats, sums.tokens, sums.text_nats, sums.text_tokens, sums.bytes)
    figures["top1"] = ratio(sums.top1, sums.tokens)
    figures["top10"] = ratio(sums.top10, sums.tokens)
    return figures

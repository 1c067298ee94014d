"""Held-out loss, exact and independent of how it is computed.

A split is one token stream, documents in order. Window 0 scores all of its targets, every later
window starts `last_n` tokens further and scores only its last `last_n` targets, so every token but
the stream's first is scored exactly once, with at least seq_len - last_n tokens of context. Windows
are shared out over ranks and batch rows; only sums are combined, so any number of processes finds
the same result.

Two sets of sums are kept:
- ours: all targets; bytes from the vocabulary's exact table. Bits per byte and normalised
  quantities leave out the targets that carry no bytes (ends of documents) from both sums.
- `languini`, as the seed project prints them: the first window scores only its last `last_n`
  targets too, targets equal to the padding id 0 are left out, and its "bytes" are the characters of
  each window's decoded targets.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from gpt.cluster.world import to_device
from gpt.data.windows import window, windows

TOP = 10


@dataclass
class Sums:
    """Sums over scored targets. Floats are float64, counts are integers."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0  # over the targets that carry bytes
    bytes: int = 0
    top1: int = 0
    top10: int = 0


@dataclass
class Tally:
    """Running sums of an evaluation, ours and the seed project's."""

    ours: Sums = field(default_factory=Sums)
    languini: Sums = field(default_factory=Sums)

    def values(self) -> list:
        return [*vars(self.ours).values(), *vars(self.languini).values()]

    @classmethod
    def from_values(cls, values):
        names = list(vars(Sums()))
        kinds = [type(value) for value in vars(Sums()).values()] * 2
        values = [kind(value) for kind, value in zip(kinds, values)]
        return cls(Sums(*values[: len(names)]), Sums(*values[len(names) :]))


class Evaluator:
    """Evaluates a model on one split.

    score(tokens, targets, scored): tokens, targets int64 (B, T); scored a pair (rows, columns) of
    int64 (N,), the positions that count, in row order -> their TokenScores. The host makes that
    index: it would have to wait for a device that searches a mask. batch_size: windows per batch
    over all ranks. max_batches: -1 for the whole split, else as many batches from its beginning.
    rank, world_size: this process's share; every rank makes the same number of calls of `score`.
    micro_size: rows that a call may have in any case, since training has as many.
    """

    def __init__(
        self,
        split,
        vocab,
        seq_len,
        last_n,
        batch_size,
        max_batches=-1,
        rank=0,
        world_size=1,
        micro_size=1,
    ):
        self.split = split
        self.vocab = vocab
        self.seq_len = seq_len
        self.last_n = last_n
        self._tokens = split.tokens
        count = windows(len(self._tokens), seq_len, last_n)
        self.windows = count if max_batches < 0 else min(count, max_batches * batch_size)
        self._rows = max(math.ceil(batch_size / world_size), micro_size)  # windows per call
        self._mine = range(rank, self.windows, world_size)
        most = math.ceil(self.windows / world_size)
        self.calls = math.ceil(most / self._rows)

    def run(self, score, device="cpu", goes_on=lambda: True) -> Tally | None:
        """This rank's tally; sum `Tally.values()` over ranks for the whole.

        goes_on(): called after every call of `score`, on every rank equally often; if it is false
        this returns None.
        """
        tally = Tally()
        for call in range(self.calls):
            mine = self._mine[call * self._rows : (call + 1) * self._rows]
            chosen = [window(i, len(self._tokens), self.seq_len, self.last_n) for i in mine]
            tokens, scored = self._batch(chosen)
            inputs, scored = (to_device(array, device) for array in (tokens, scored))
            with torch.no_grad():
                scores = score(inputs[:, :-1], inputs[:, 1:], tuple(scored))
            # one copy, for which the device is waited for; float64 holds ranks exactly
            if chosen:
                nats, rank = torch.stack([scores.nats.double(), scores.rank.double()]).cpu().numpy()
                self._add(tally, chosen, mine, nats, rank)
            if not goes_on():
                return None
        return tally

    def _batch(self, chosen):
        """(rows, T + 1) ids, and rows and columns (2, N) of the scored targets.

        T is the longest window's length.

        A rank without a window left makes a call all the same, on one dummy row, since ranks may
        share the weights.
        """
        length = max((w.length for w in chosen), default=1)
        tokens = np.zeros((max(1, len(chosen)), length + 1), np.int64)
        mask = np.zeros((len(tokens), length), bool)
        for row, w in enumerate(chosen):
            tokens[row, : w.length + 1] = self._tokens[w.start : w.start + w.length + 1]
            mask[row, w.length - w.scored : w.length] = True
        self.split.check_ids(tokens)
        if not chosen:
            mask[0, 0] = True
        return tokens, np.array(np.nonzero(mask))

    def _add(self, tally, chosen, indices, nats, rank):
        first = 0
        for w, index in zip(chosen, indices):
            part = slice(first, first + w.scored)
            end = w.start + w.length + 1
            targets = np.asarray(self._tokens[end - w.scored : end], np.int64)
            self._add_ours(tally.ours, targets, nats[part], rank[part])
            skipped = min(w.scored, max(0, self.seq_len - self.last_n)) if index == 0 else 0
            self._add_languini(
                tally.languini, targets[skipped:], nats[part][skipped:], rank[part][skipped:]
            )
            first += w.scored

    def _add_ours(self, sums, targets, nats, rank):
        sizes = self.vocab.byte_lengths[targets]
        sums.nats += float(nats.sum())
        sums.tokens += len(targets)
        sums.text_nats += float(nats[sizes > 0].sum())
        sums.bytes += int(sizes.sum())
        sums.top1 += int((rank < 1).sum())
        sums.top10 += int((rank < TOP).sum())

    def _add_languini(self, sums, targets, nats, rank):
        kept = targets != 0
        nats = float(nats[kept].sum())
        sums.nats += nats
        sums.tokens += int(kept.sum())
        sums.text_nats += nats
        sums.bytes += len(self.vocab.decode(targets[kept]))
        sums.top1 += int((rank[kept] < 1).sum())
        sums.top10 += int((rank[kept] < TOP).sum())


def summary(tally: Tally) -> dict:
    """The published quantities: nats per token, per byte, bits per byte, hit rates; `languini` as
    the seed project's."""
    ours = _quantities(tally.ours)
    languini = _quantities(tally.languini)
    del languini["bits_per_byte"], languini["total_loss"]
    return {**ours, "languini": languini}


def _quantities(sums: Sums) -> dict:
    loss = sums.nats / sums.tokens if sums.tokens else math.nan
    normalised = sums.text_nats / sums.bytes if sums.bytes else math.nan
    return {
        "tokens": sums.tokens,
        "bytes": sums.bytes,
        "total_loss": sums.nats,
        "loss": loss,
        "ppl": _exp(loss),
        "normalised_loss": normalised,
        "normalised_ppl": _exp(normalised),
        "bits_per_byte": normalised / math.log(2),
        "top1": sums.top1 / sums.tokens if sums.tokens else math.nan,
        "top10": sums.top10 / sums.tokens if sums.tokens else math.nan,
    }


def _exp(value):
    return math.inf if value > 700 else math.exp(value)

"""Whether a model scores a token by what comes before it alone, in the very batches in which it is
evaluated.

gpt.contract.outputs looks at batches of its own. A model whose outputs depend on the shape of a
batch could be blind there, and see everything here.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt.architecture.language_model import LanguageModel
from gpt.errors import UserError
from gpt.kernels.linear_cross_entropy import TokenScores
from gpt.wording import plural

# Nats, or the part of more than one, that a token's score may move by when what it may not depend
# on is another. What a model rounds by other means, as in a Fourier transform, is below; what it
# gains by what it sees is far above at some positions.
SAME = 1e-4


class Effort(NamedTuple):
    """How hard to look. positions: that are tried, each by other tokens right behind it. share: of
    the evaluation's batches, as many as are computed again for that at most; fewest: at least."""

    positions: int
    share: float
    fewest: int


# Where a model sees the next token at one position in 250, a thousand miss it once in 60
# evaluations, four thousand once in ten million.
BRIEF = Effort(positions=1024, share=0.25, fewest=8)
THOROUGH = Effort(positions=4096, share=4.0, fewest=32)
# times that a score must move again, with other tokens behind the same borders: what rounding
# decides, as between experts that are near a tie, seldom moves so often; what a model sees does
CONFIRMATIONS = 4


class Batch:
    """One that the evaluator made, and what it got. tokens: int64 (B, T + 1), the last target
    included; rows, columns: int64 (N,) of the scored positions; nats: (N,)."""

    def __init__(
        self, tokens: Tensor, targets: Tensor, scored: tuple[Tensor, Tensor], nats: Tensor
    ):
        self.tokens = torch.cat([tokens[:, :1], targets], 1)
        self.scored = scored
        self.nats = nats


class SecondLook:
    """What an evaluator calls in a model's place: passes on what the model finds, and keeps some of
    its batches, the first and others drawn by chance, so that no model can tell which.

    calls: that the evaluator will make. rows: of most of them. seed: of what is drawn; None for one
    of the system's.
    """

    def __init__(
        self,
        model: LanguageModel,
        calls: int,
        rows: int,
        effort: Effort = BRIEF,
        seed: int | None = None,
    ):
        self._model = model
        self._random = np.random.default_rng(seed)
        enough = math.ceil(effort.positions / max(1, rows // 2))
        looks = max(effort.fewest, min(enough, int(effort.share * calls)))
        drawn = self._random.permutation(np.arange(looks) % max(1, calls))
        if looks < calls:
            drawn = self._random.choice(calls, looks, replace=False)
        # {call: how often its batch is computed again}
        self._looks = Counter(drawn.tolist())
        self._looks[0] = max(1, self._looks[0])
        self._calls = 0
        self._batches: list[tuple[Batch, int]] = []
        self._compared_last = np.zeros(0, bool)

    def __call__(
        self, tokens: Tensor, targets: Tensor, scored: tuple[Tensor, Tensor]
    ) -> TokenScores:
        scores = self._model(tokens, targets, scored)
        assert isinstance(scores, TokenScores)
        if self._looks[self._calls]:
            batch = Batch(tokens, targets, scored, scores.nats)
            self._batches.append((batch, self._looks[self._calls]))
        self._calls += 1
        return scores

    def require_blind(self) -> None:
        """Raise UserError unless the batches' scores stay as they are where what comes after them,
        and half of the rows beside them, is another.

        Each batch is computed again, without targets in sight, from a changed copy: half of its
        rows are other tokens from the first on, the others from a border within their scored
        positions on, and what these score before it is compared.
        """
        for batch, looks in self._batches:
            for _ in range(looks):
                is_compared = self._half_of(len(batch.tokens))
                borders = self._borders(batch, is_compared)
                problem = self._moved_again_and_again(batch, borders)
                if problem:
                    raise self._mistake(problem)

    def _mistake(self, problem: str) -> UserError:
        return UserError(
            f"{self._model.code.path}: the model sees what it has to predict: {problem}",
            mend="let each position depend on itself and those before it in its row alone, whatever"
            " the batch's shape; tools/check_model.py looks at it in several",
        )

    def _moved_again_and_again(self, batch: Batch, borders: np.ndarray) -> str | None:
        """Which score is another whenever the tokens from the borders on are others, in words; None
        where none is. borders: int64 (rows,)."""
        before = batch.nats.double().cpu().numpy()
        moved = np.ones(len(before), bool)
        after = before
        for _ in range(1 + CONFIRMATIONS):
            after, moved_now = self._moved(batch, borders)
            moved &= moved_now
            if not moved.any():
                return None
        worst = int(np.where(moved, np.abs(before - after), -1.0).argmax())
        rows, columns = (index.cpu().numpy() for index in batch.scored)
        height, width = batch.tokens.shape
        return (
            f"in a batch of {plural(height, 'row')} of {width - 1} tokens it scores the token"
            f" behind position {columns[worst]} of row {rows[worst]} with {before[worst]:.4f} nats,"
            f" and with {after[worst]:.4f} where later tokens and other rows are others"
        )

    def _moved(self, batch: Batch, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(nats where the tokens from the borders on are others, whether they moved though they lie
        before a border), float64 and bool (N,)."""
        changed = self._other_from(batch.tokens, torch.from_numpy(borders).to(batch.tokens.device))
        with torch.no_grad():
            outputs = self._model.outputs(changed[:, :-1])
            again = self._model.from_outputs(outputs, batch.tokens[:, 1:], batch.scored)
        assert isinstance(again, TokenScores)
        rows, columns = (index.cpu().numpy() for index in batch.scored)
        before = batch.nats.double().cpu().numpy()
        after = again.nats.double().cpu().numpy()
        return after, ~_is_same(before, after) & (columns < borders[rows])

    def _half_of(self, rows: int) -> np.ndarray:
        """bool (rows,), true for half of them at random, and then for the other half."""
        if len(self._compared_last) == rows > 1:
            self._compared_last = ~self._compared_last
        else:
            self._compared_last = np.ones(rows, bool)
            self._compared_last[self._random.permutation(rows)[: rows // 2]] = False
        return self._compared_last

    def _borders(self, batch: Batch, is_compared: np.ndarray) -> np.ndarray:
        """int64 (rows,): from which position on each row's tokens are others. Of those that are
        compared: behind a scored one, of the first just before its last target."""
        rows, columns = (index.cpu().numpy() for index in batch.scored)
        borders = np.zeros(len(is_compared), np.int64)
        compared = np.flatnonzero(is_compared)
        for row in compared:
            positions = columns[rows == row]
            last_kept = positions[self._random.integers(len(positions))]
            if row == compared[0] and len(compared) > 1:
                last_kept = positions[-1]
            borders[row] = last_kept + 1
        return borders

    def _other_from(self, tokens: Tensor, borders: Tensor) -> Tensor:
        """A copy with other ids in each row from its border on."""
        size = self._model.config.vocab_size
        shifts = self._random.integers(1, size, tuple(tokens.shape))
        shift = torch.from_numpy(shifts).to(tokens.device)
        is_later = torch.arange(tokens.shape[1], device=tokens.device) >= borders[:, None]
        return (tokens + shift * is_later) % size


def _is_same(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """bool (N,), of nats (N,) each: whether they differ by rounding at most."""
    is_equal = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(invalid="ignore"):
        return is_equal | (np.abs(before - after) <= SAME * np.maximum(1, np.abs(before)))

"""Whether a model scores a token by what comes before it alone, in the very batches in which it is
evaluated.

gpt.contract.outputs looks at batches of its own. A model whose outputs depend on the shape of a
batch could be blind there, and see everything here.
"""

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
# rows of which a batch of fewer is computed several times, each time from other borders on
ROWS = 8


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
    """What an evaluator calls in a model's place: passes on what the model finds, and notes two of
    its batches, the first and one drawn by chance, so that no model can tell which.

    calls: that the evaluator will make. seed: of what is drawn; None for one of the system's.
    """

    def __init__(self, model: LanguageModel, calls: int, seed: int | None = None):
        self._model = model
        self._random = np.random.default_rng(seed)
        self._looked_at = (0, int(self._random.integers(max(1, calls))))
        self._calls = 0
        self._batches: list[Batch] = []
        self._compared_last = np.zeros(0, bool)

    def __call__(
        self, tokens: Tensor, targets: Tensor, scored: tuple[Tensor, Tensor]
    ) -> TokenScores:
        scores = self._model(tokens, targets, scored)
        assert isinstance(scores, TokenScores)
        for _ in range(self._looked_at.count(self._calls)):
            self._batches.append(Batch(tokens, targets, scored, scores.nats))
        self._calls += 1
        return scores

    def require_blind(self) -> None:
        """Raise UserError unless the batches' scores stay as they are where what comes after them,
        and half of the rows beside them, is another.

        Each batch is computed once more, without targets in sight, from a changed copy: half of its
        rows are other tokens from the first on, the others from a border within their scored
        positions on, and what these score before it is compared. A batch of few rows is computed
        several times.
        """
        for batch in self._batches:
            rows = len(batch.tokens)
            for _ in range(max(1, ROWS // rows)):
                is_compared = self._half_of(rows)
                # what rounding decides, as between experts that are near a tie, is seldom two times
                # another; what a model sees is
                problem = self._moved(batch, is_compared) and self._moved(batch, is_compared)
                if problem:
                    raise self._mistake(problem)

    def _mistake(self, problem: str) -> UserError:
        return UserError(
            f"{self._model.code.path}: the model sees what it has to predict: {problem}",
            mend="let each position depend on itself and those before it in its row alone, whatever"
            " the batch's shape; tools/check_model.py looks at it in several",
        )

    def _moved(self, batch: Batch, is_compared: np.ndarray) -> str | None:
        """Which score is another, in words; None where none is. is_compared: bool (rows,), which
        rows keep their beginnings."""
        borders = self._borders(batch, is_compared)
        changed = self._other_from(batch.tokens, torch.from_numpy(borders).to(batch.tokens.device))
        with torch.no_grad():
            outputs = self._model.outputs(changed[:, :-1])
            again = self._model.from_outputs(outputs, batch.tokens[:, 1:], batch.scored)
        assert isinstance(again, TokenScores)
        rows, columns = (index.cpu().numpy() for index in batch.scored)
        before = batch.nats.double().cpu().numpy()
        after = again.nats.double().cpu().numpy()
        moved = np.flatnonzero(~_is_same(before, after) & (columns < borders[rows]))
        if not len(moved):
            return None
        worst = moved[np.abs(before - after)[moved].argmax()]
        height, width = batch.tokens.shape
        return (
            f"in a batch of {plural(height, 'row')} of {width - 1} tokens it scores the token"
            f" behind position {columns[worst]} of row {rows[worst]} with {before[worst]:.4f} nats,"
            f" and with {after[worst]:.4f} where later tokens and other rows are others"
        )

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

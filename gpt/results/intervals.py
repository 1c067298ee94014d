"""Means of few runs and their differences: intervals, tests, equivalence. Needs scipy (extra
`plot`).

Final losses of one method under several seeds are taken for normal; with few of them Student's t
makes the intervals as wide as that few deserve. Differences between methods are Welch's
(Biometrika 34, 1947), which does not suppose that both scatter alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.special import stdtr, stdtrit

LEVEL = 0.95


class Estimate(NamedTuple):
    """A value and half the width of its 95% interval, NaN where one run alone cannot tell it."""

    value: float
    half_width: float

    def in_words(self, digits: int = 4) -> str:
        if not math.isfinite(self.half_width):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ± {self.half_width:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """A mean minus another, in the unit of the values. What one run alone cannot tell is NaN.

    Values that are the same to the last bit have an error of exactly 0: an interval without width,
    and p-values of 0 or 1.
    """

    value: float
    error: float  # its standard error
    freedom: float  # degrees of freedom of Student's t

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self._half_width(LEVEL))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """(low, high)."""
        half_width = self._half_width(level)
        return self.value - half_width, self.value + half_width

    @property
    def p(self) -> float:
        """Of a difference this far from 0 or farther, either way, if there were none."""
        if self.error == 0:
            return float(self.value == 0)
        return 2 * float(stdtr(self.freedom, -abs(self.value) / self.error))

    def p_equivalent(self, margin: float) -> float:
        """Of the two one-sided tests that the difference lies within (-margin, margin), the larger
        p: equivalence is shown at 5% where it is at most 0.05, which is where the 90% interval lies
        within the margin.

        Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.
        """
        assert margin > 0
        inside = margin - abs(self.value)
        if self.error == 0:
            return float(inside <= 0)
        return float(stdtr(self.freedom, -inside / self.error))

    def _half_width(self, level: float) -> float:
        if self.error == 0:
            return 0.0
        return self.error * float(stdtrit(self.freedom, (1 + level) / 2))


def mean(values: Sequence[float]) -> Estimate:
    """Of values that were drawn independently."""
    return Difference(_mean(values), math.sqrt(_variance_of_mean(values)), len(values) - 1).estimate


def welch(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Mean of the values minus that of the others, each drawn independently."""
    center = _mean(values) - _mean(others)
    variances = [_variance_of_mean(sample) for sample in (values, others)]
    total = sum(variances)
    if not total > 0:
        return Difference(center, math.sqrt(total), math.nan)
    # Welch and Satterthwaite's degrees of freedom
    shares = [variance / total for variance in variances]
    freedom = 1 / sum(
        share**2 / (len(sample) - 1) for share, sample in zip(shares, (values, others), strict=True)
    )
    return Difference(center, math.sqrt(total), freedom)


def paired(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Mean of each value minus the other at its place, by the scatter of these differences."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    error = math.sqrt(_variance_of_mean(differences))
    return Difference(_mean(differences), error, len(differences) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, each in its place, adjusted for being several: rejecting those up to 5% rejects
    a true hypothesis among all of them at most one time in twenty. NaN stays NaN, and counts for no
    hypothesis.

    Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted = list(p_values)
    ascending = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(ascending):
        largest = max(largest, min(1.0, (len(ascending) - rank) * p))
        adjusted[place] = largest
    return adjusted


def _mean(values: Sequence[float]) -> float:
    # from the first on, so that the mean of equal values is exactly their value
    first = values[0]
    return float(first) + math.fsum(value - first for value in values) / len(values)


def _variance_of_mean(values: Sequence[float]) -> float:
    """NaN of one value."""
    if len(values) < 2:
        return math.nan
    center = _mean(values)
    squares = math.fsum((value - center) ** 2 for value in values)
    return squares / (len(values) - 1) / len(values)

"""Means of few runs and their differences, with 95% intervals. Needs scipy (extra `plot`).

Final losses of one method under several seeds are taken for normal; with few of them Student's t
makes the intervals as wide as that few deserve. Differences between methods are Welch's
(Biometrika 34, 1947), which does not suppose that both scatter alike.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Estimate(NamedTuple):
    """A value and half the width of its 95% interval, NaN where one run alone cannot tell it."""

    value: float
    half_width: float

    def in_words(self, digits: int = 4) -> str:
        if not math.isfinite(self.half_width):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ± {self.half_width:.{digits}f}"


def mean(values: Sequence[float]) -> Estimate:
    """Of values that were drawn independently."""
    count = len(values)
    center = float(np.mean(values))
    if count < 2:
        return Estimate(center, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(center, error * float(stats.t.ppf((1 + LEVEL) / 2, count - 1)))


def difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Mean of the values minus that of the others, each drawn independently."""
    center = float(np.mean(values)) - float(np.mean(others))
    if min(len(values), len(others)) < 2:
        return Estimate(center, math.nan)
    variances = [float(np.var(sample, ddof=1)) / len(sample) for sample in (values, others)]
    total = sum(variances)
    if total == 0:
        return Estimate(center, 0.0)
    # Welch and Satterthwaite's degrees of freedom
    freedom = total**2 / sum(
        variance**2 / (len(sample) - 1) for variance, sample in zip(variances, (values, others))
    )
    return Estimate(center, math.sqrt(total) * float(stats.t.ppf((1 + LEVEL) / 2, freedom)))

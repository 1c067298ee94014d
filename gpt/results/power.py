"""What a number of seeds can find: the power of the two-sided t tests of gpt/results/intervals.py.
Needs scipy (extra `plot`).

Under a true difference, a t statistic follows the noncentral t distribution (Johnson, Kotz and
Balakrishnan, Continuous Univariate Distributions 2, chapter 31; Cohen, Statistical Power Analysis
for the Behavioral Sciences, 1988). The paired test's follows it as it stands, with count - 1
degrees of freedom. Welch's critical value changes with the share that one side has in the variance
that is seen; given this share, his statistic follows the noncentral t of 2 (count - 1) degrees of
freedom, and the share follows a beta distribution, over which the power is averaged. Nothing is
approximated for few seeds.
"""

import math

import numpy as np
from scipy import optimize, stats

from gpt.results.intervals import LEVEL

POWER = 0.8
MOST_SEEDS = 1000
NODES = 64  # of the average over the shares


def power_of(
    difference: float, deviation: float, count: int, paired: bool = False, level: float = LEVEL
) -> float:
    """How often the test with `count` seeds a side finds a true difference, and its sign. NaN where
    the deviation is.

    deviation: standard deviation over the seeds of a side, the same for both; where paired, that of
    the differences.
    """
    if count < 2:
        return 0.0
    if deviation == 0:
        return float(difference != 0)
    quantile = (1 + level) / 2
    freedom = count - 1
    if paired:
        center = abs(difference) / deviation * math.sqrt(count)
        return float(stats.nct.sf(stats.t.ppf(quantile, freedom), freedom, center))
    center = abs(difference) / deviation * math.sqrt(count / 2)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    share = stats.beta.ppf((1 + nodes) / 2, freedom / 2, freedom / 2)
    welchs_freedom = freedom / (share**2 + (1 - share) ** 2)
    beyond = stats.nct.sf(stats.t.ppf(quantile, welchs_freedom), 2 * freedom, center)
    return float(np.average(beyond, weights=weights))


def resolvable(
    deviation: float,
    count: int,
    paired: bool = False,
    power: float = POWER,
    level: float = LEVEL,
) -> float:
    """The smallest true difference, in the deviation's unit, that the test finds with this power.
    Infinite for one seed. Arguments as of power_of."""
    if count < 2:
        return math.inf
    if deviation == 0 or math.isnan(deviation):
        return deviation

    def excess(difference: float) -> float:
        return power_of(difference, 1.0, count, paired, level) - power

    high = 1.0
    while excess(high) < 0:
        high *= 2
    return deviation * float(optimize.brentq(excess, 0.0, high, rtol=1e-9))


def seeds_needed(
    difference: float,
    deviation: float,
    paired: bool = False,
    power: float = POWER,
    level: float = LEVEL,
) -> int | None:
    """The fewest seeds a side with which the test finds a true difference with this power; None
    where MOST_SEEDS do not suffice, or it cannot be told. Arguments as of power_of."""

    def suffices(count: int) -> bool:
        return power_of(difference, deviation, count, paired, level) >= power

    if not suffices(MOST_SEEDS):
        return None
    too_few, enough = 1, MOST_SEEDS
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if suffices(middle):
            enough = middle
        else:
            too_few = middle
    return enough

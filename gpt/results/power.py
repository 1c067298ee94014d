"""What a number of seeds can show: the power of the t tests of gpt/results/intervals.py. Needs
scipy (extra `plot`).

Under a true difference, a t statistic follows the noncentral t distribution (Johnson, Kotz and
Balakrishnan, Continuous Univariate Distributions 2, chapter 31; Cohen, Statistical Power Analysis
for the Behavioral Sciences, 1988). The paired test's follows it as it stands, with count - 1
degrees of freedom. Welch's critical value changes with the share that one side has in the variance
that is seen; given this share, his statistic follows the noncentral t of 2 (count - 1) degrees of
freedom, and the share follows a beta distribution, over which the power is averaged. Nothing is
approximated for few seeds.

A deviation is the standard deviation over the seeds of a side, taken to be the same for both; where
paired, that of the differences. One that was estimated from few seeds is itself uncertain: by three
seeds a side, the true one lies between 0.6 and 2.9 times what is seen (95%, by chi-squared).
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

from gpt.results.intervals import LEVEL

POWER = 0.8
MOST_SEEDS = 1000
# standard errors beyond which a difference is always seen, and scipy's noncentral t no number
FARTHEST = 1e6
NODES = 64  # of an average over a distribution, at the quantiles of Gauss and Legendre


def power_of(
    difference: float, deviation: float, count: int, paired: bool = False, level: float = LEVEL
) -> float:
    """How often the two-sided test with `count` seeds a side finds a true difference, and its sign.
    NaN where the deviation is."""
    if count < 2:
        return 0.0
    if deviation == 0:
        return float(difference != 0)
    center = min(abs(difference) / _error(deviation, count, paired), FARTHEST)
    freedoms, weights = _freedoms(count, paired)
    critical = special.stdtrit(freedoms, (1 + level) / 2)
    powers = stats.nct.sf(critical, _freedom_of_variance(count, paired), center)
    return float(np.average(powers, weights=weights))


def resolvable(
    deviation: float,
    count: int,
    paired: bool = False,
    power: float = POWER,
    level: float = LEVEL,
) -> float:
    """The smallest true difference, in the deviation's unit, that the two-sided test finds with
    this power. Infinite for one seed, NaN where the deviation is."""
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
    """The fewest seeds a side with which the two-sided test finds a true difference with this
    power; None where MOST_SEEDS do not suffice, or the deviation is NaN."""
    return _fewest(lambda count: power_of(difference, deviation, count, paired, level) >= power)


def power_of_equivalence(
    margin: float, deviation: float, count: int, paired: bool = False, level: float = LEVEL
) -> float:
    """How often the two one-sided tests show methods that do not differ at all to be equivalent
    within the margin: averaged over the variance that is seen, the probability that the difference
    that is seen leaves the interval within the margin. NaN where the deviation is.
    """
    if count < 2:
        return 0.0
    if deviation == 0:
        return 1.0
    freedom = _freedom_of_variance(count, paired)
    freedoms, weights = _freedoms(count, paired)
    critical = special.stdtrit(freedoms, level)[:, None]  # (shares, 1)
    quantiles, weights_of_variance = _nodes()
    seen_over_true = np.sqrt(special.chdtri(freedom, 1 - quantiles) / freedom)  # (variances,)
    inside = margin / _error(deviation, count, paired) - critical * seen_over_true
    equivalent = special.erf(np.maximum(inside, 0) / math.sqrt(2))  # (shares, variances)
    return float(np.average(equivalent, weights=np.outer(weights, weights_of_variance)))


def seeds_for_equivalence(
    margin: float,
    deviation: float,
    paired: bool = False,
    power: float = POWER,
    level: float = LEVEL,
) -> int | None:
    """The fewest seeds a side that show methods that do not differ at all to be equivalent with
    this power; None as in seeds_needed."""
    return _fewest(
        lambda count: power_of_equivalence(margin, deviation, count, paired, level) >= power
    )


def _error(deviation: float, count: int, paired: bool) -> float:
    """The true standard error of the difference of means."""
    return deviation * math.sqrt((1 if paired else 2) / count)


def _freedom_of_variance(count: int, paired: bool) -> int:
    return (1 if paired else 2) * (count - 1)


def _freedoms(count: int, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """The degrees of freedom that the test takes, and the weights of these cases."""
    if paired:
        return np.array([count - 1.0]), np.ones(1)
    quantiles, weights = _nodes()
    share = stats.beta.ppf(quantiles, (count - 1) / 2, (count - 1) / 2)
    return (count - 1) / (share**2 + (1 - share) ** 2), weights


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Quantiles in (0, 1), and weights, of an average over a distribution."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (1 + nodes) / 2, weights


def _fewest(suffices: Callable[[int], bool]) -> int | None:
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

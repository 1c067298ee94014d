"""Power laws of final loss over compute, with what the data say about them. Needs scipy (extra
`plot`).

Two laws are fitted by least squares on log L, so that residuals are relative:

    plain     L(C) = A (C / C0)^-alpha        Kaplan et al., arXiv 2001.08361, equation 1.3
    offset    L(C) = E + A (C / C0)^-alpha    Hestness et al., arXiv 1712.00409;
                                              Hoffmann et al., arXiv 2203.15556

C0 is the geometric mean of the compute that was measured, where A is known best. The offset is
taken where the data carry it: at least four scales, E > 0, and an extra-sum-of-squares F test at 5%
(Bates and Watts, Nonlinear Regression Analysis and Its Applications, 1988) in its favour.
Uncertainty is by the delta method (same book): the variance of a function g of the parameters is
s^2 g' (J'J)^-1 g with the Jacobian J of log L and s^2 = RSS / (points - parameters); intervals and
bands take Student's t at 95%. They tell the scatter about the law, not whether the law holds beyond
the data.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from gpt.errors import UserError

LEVEL = 0.95
MIN_SCALES = 3
# ratio of compute up to which two runs are of one scale: their steps are whole numbers
SAME_SCALE = 1.02
EXACT = 1e-9  # relative residuals below which there is nothing left for an offset to explain


@dataclass(frozen=True)
class Fit:
    """A law fitted to n points. `offset` is 0 in a plain one. log L and its uncertainty are
    functions of compute."""

    amplitude: float  # A
    exponent: float  # alpha
    offset: float  # E, in the unit of the loss
    reference: float  # C0, in the unit of compute
    covariance: np.ndarray  # of (log A, alpha) or (log A, alpha, E)
    freedom: int  # points - parameters
    residual: float  # s: relative standard deviation about the law
    offset_p: float | None  # of the F test for an offset; None with fewer than four scales
    compute: np.ndarray  # the points
    loss: np.ndarray

    def log_loss(self, compute) -> np.ndarray:
        return np.log(self.offset + self._power(compute))

    def loss_at(self, compute) -> np.ndarray:
        return np.exp(self.log_loss(compute))

    def _power(self, compute):
        return self.amplitude * (np.asarray(compute, float) / self.reference) ** -self.exponent

    def variance(self, compute) -> np.ndarray:
        """Of log_loss, by the delta method."""
        compute = np.atleast_1d(np.asarray(compute, float))
        parameters = np.array([math.log(self.amplitude), self.exponent, self.offset])[
            : len(self.covariance)
        ]
        gradient = _jacobian(parameters, np.log(compute / self.reference))
        return np.einsum("ni,ij,nj->n", gradient, self.covariance, gradient)

    def band(self, compute):
        """(low, high) of the law's mean at 95%."""
        half = _t(self.freedom) * np.sqrt(self.variance(compute))
        middle = self.log_loss(compute)
        return np.exp(middle - half), np.exp(middle + half)

    def half_widths(self) -> np.ndarray:
        """Half of the 95% intervals of log A, alpha and, with an offset, E."""
        return _t(self.freedom) * np.sqrt(np.diag(self.covariance))

    def formula(self, unit: str) -> str:
        power = f"{self.amplitude:.4g} (C / {self.reference:.3g} {unit})^{-self.exponent:.4f}"
        return f"{self.offset:.4g} + {power}" if self.offset else power


def _t(freedom):
    return stats.t.ppf((1 + LEVEL) / 2, freedom)


def scales(compute) -> list:
    """Distinct scales, rising: what lies within 2% of a scale's smallest is of it."""
    found = []
    for value in sorted(compute):
        if not found or value > found[-1] * SAME_SCALE:
            found.append(value)
    return found


def fit(compute, loss) -> Fit:
    """The law that points (compute, loss) carry. Raises UserError with fewer than three scales."""
    compute = np.asarray(compute, float)
    loss = np.asarray(loss, float)
    count = len(scales(compute))
    if count < MIN_SCALES:
        raise UserError(
            f"a power law needs final losses at {MIN_SCALES} scales of compute at least, and there "
            f"{'is' if count == 1 else 'are'} {count}"
        )
    reference = math.exp(np.log(compute).mean())
    x, y = np.log(compute / reference), np.log(loss)
    slope, level = np.polyfit(x, y, 1)
    plain = np.array([level, -slope])
    p, chosen = None, plain
    if count > MIN_SCALES:
        bent = _fit_offset(x, y)
        p = _f_test(_rss(plain, x, y), _rss(bent, x, y), len(x) - 3)
        if p < 1 - LEVEL and bent[2] > 0 and _rss(plain, x, y) > len(x) * EXACT**2:
            chosen = bent
    jacobian = _jacobian(chosen, x)
    freedom = len(x) - len(chosen)
    variance = _rss(chosen, x, y) / freedom
    return Fit(
        math.exp(chosen[0]),
        float(chosen[1]),
        float(chosen[2]) if len(chosen) == 3 else 0.0,
        reference,
        variance * np.linalg.inv(jacobian.T @ jacobian),
        freedom,
        math.sqrt(variance),
        p,
        compute,
        loss,
    )


def _predict(parameters, x):
    log_a, alpha, offset = (*parameters, 0.0)[:3]
    return np.log(offset + np.exp(log_a - alpha * x))


def _rss(parameters, x, y):
    return float(((_predict(parameters, x) - y) ** 2).sum())


def _jacobian(parameters, x):
    """(points, parameters): of log L by log A, alpha and, where there is one, E."""
    log_a, alpha, offset = (*parameters, 0.0)[:3]
    power = np.exp(log_a - alpha * x)
    share = power / (offset + power)
    return np.stack([share, -share * x, 1 / (offset + power)], axis=1)[:, : len(parameters)]


def _fit_offset(x, y):
    """(log A, alpha, E) of least squares, from the best of a row of offsets, for each of which the
    rest is a line."""
    lowest, starts = math.exp(y.min()), []
    for share in np.linspace(0, 0.995, 200):
        slope, level = np.polyfit(x, np.log(np.exp(y) - share * lowest), 1)
        start = np.array([level, -slope, share * lowest])
        starts.append((_rss(start, x, y), *start))
    start = np.array(min(starts)[1:])
    return optimize.least_squares(
        lambda p: _predict(p, x) - y,
        start,
        lambda p: _jacobian(p, x),
        x_scale="jac",
        bounds=([-np.inf, -np.inf, 0], np.inf),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    ).x


def _f_test(plain_rss, bent_rss, freedom):
    """Chance of an improvement by one parameter at least this good where it explains nothing."""
    if bent_rss >= plain_rss:
        return 1.0
    return float(stats.f.sf((plain_rss - bent_rss) / max(bent_rss / freedom, 1e-300), 1, freedom))


@dataclass(frozen=True)
class Crossing:
    """Where two laws meet. low, high: between them the laws do not differ at 95%; None: as far as
    was looked."""

    at: float
    low: float | None
    high: float | None
    measured: bool  # whether both families were measured on both sides of it


# crossings are looked for up to so many times the most compute that was measured, and the least
# over it
REACH = 100.0


def crossings(one: Fit, other: Fit) -> list:
    """Where the loss of `one` meets that of `other`, within a hundredfold of what was measured."""
    points = np.concatenate([one.compute, other.compute])
    grid = np.linspace(math.log(points.min() / REACH), math.log(points.max() * REACH), 4001)

    def gap(log_c):
        return one.log_loss(np.exp(log_c)) - other.log_loss(np.exp(log_c))

    gaps, (v1, v2) = gap(grid), (law.variance(np.exp(grid)) for law in (one, other))
    # Welch, Satterthwaite
    freedom = (v1 + v2) ** 2 / np.maximum(v1**2 / one.freedom + v2**2 / other.freedom, 1e-300)
    alike = np.abs(gaps) <= _t(np.maximum(freedom, 1)) * np.sqrt(v1 + v2)
    found = []
    for index in np.flatnonzero(np.sign(gaps[:-1]) * np.sign(gaps[1:]) < 0):
        at = optimize.brentq(gap, grid[index], grid[index + 1], xtol=1e-12)
        low = _edge(alike, index, -1)
        high = _edge(alike, index + 1, 1)
        inside = (
            max(one.compute.min(), other.compute.min())
            <= math.exp(at)
            <= min(one.compute.max(), other.compute.max())
        )
        found.append(
            Crossing(
                math.exp(at),
                *(None if e is None else math.exp(grid[e]) for e in (low, high)),
                inside,
            )
        )
    return found


def _edge(alike, index, step):
    """The first place from `index` on where the laws differ, or None before the end."""
    while 0 <= index < len(alike):
        if not alike[index]:
            return index
        index += step
    return None


def pairs(names) -> list:
    """All pairs, each once."""
    names = list(names)
    return [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]


def describe(laws: dict, unit: str) -> list:
    """Lines that tell the laws of families, {family: Fit}, their uncertainty and where
    they cross."""
    lines = []
    for family, law in laws.items():
        lines.append(f"{family}: L(C) = {law.formula(unit)}")
        lines += [f"  {text}" for text in _uncertainty(law)]
    for one, other in pairs(laws):
        found = crossings(laws[one], laws[other])
        if not found:
            lines.append(
                f"{one} and {other}: no crossing within a hundredfold of the compute that was"
                " measured"
            )
        for crossing in found:
            lines.append(
                f"{one} and {other} cross at C = {crossing.at:.3g} {unit},"
                f" {_interval(crossing, unit)}; "
                + ("within what was measured" if crossing.measured else "an extrapolation")
            )
    return lines


def _uncertainty(law: Fit):
    widths = law.half_widths()
    yield (
        f"exponent {-law.exponent:.4f} +- {widths[1]:.4f}, amplitude {law.amplitude:.4g} (+-"
        f" {math.expm1(widths[0]):.2%})"
        + (f", offset {law.offset:.4g} +- {widths[2]:.2g}" if law.offset else "")
        + f" (95%, delta method, {law.freedom} degree{'s' * (law.freedom != 1)} of freedom)"
    )
    carried = (
        "an offset needs 4 scales"
        if law.offset_p is None
        else (
            f"an offset is {'' if law.offset else 'not '}carried by the data (F test: p ="
            f" {law.offset_p:.2g})"
        )
    )
    yield f"{len(law.compute)} points, relative residuals {law.residual:.2%}; {carried}"


def _interval(crossing, unit):
    if crossing.low is None and crossing.high is None:
        return "which the data do not bound (95%)"
    if crossing.low is None:
        return f"at most {crossing.high:.3g} {unit} (95%)"
    if crossing.high is None:
        return f"at least {crossing.low:.3g} {unit} (95%)"
    return f"between {crossing.low:.3g} and {crossing.high:.3g} {unit} (95%)"

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

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from gpt.errors import UserError

# of confidence, and of the F test
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

    def log_loss(self, compute: ArrayLike) -> np.ndarray:
        return np.log(self.offset + self._power(compute))

    def loss_at(self, compute: ArrayLike) -> np.ndarray:
        return np.exp(self.log_loss(compute))

    def _power(self, compute: ArrayLike) -> np.ndarray:
        return self.amplitude * (np.asarray(compute, float) / self.reference) ** -self.exponent

    def variance(self, compute: ArrayLike) -> np.ndarray:
        """Of log_loss, by the delta method."""
        compute = np.atleast_1d(np.asarray(compute, float))
        parameters = np.array([math.log(self.amplitude), self.exponent, self.offset])
        parameters = parameters[: len(self.covariance)]
        gradient = _jacobian(parameters, np.log(compute / self.reference))
        return np.einsum("ni,ij,nj->n", gradient, self.covariance, gradient)

    def band(self, compute: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
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


def _t(freedom: Any) -> Any:
    return stats.t.ppf((1 + LEVEL) / 2, freedom)


def scales(compute: Iterable[float]) -> list[float]:
    """Distinct scales, rising: what lies within 2% of a scale's smallest is of it."""
    smallest: list[float] = []
    for value in sorted(compute):
        if not smallest or value > smallest[-1] * SAME_SCALE:
            smallest.append(value)
    return smallest


def fit(compute: ArrayLike, loss: ArrayLike) -> Fit:
    """The law that points (compute, loss) carry. Raises UserError with fewer than three scales."""
    compute = np.asarray(compute, float)
    loss = np.asarray(loss, float)
    count = len(scales(compute))
    if count < MIN_SCALES:
        raise UserError(
            f"a power law needs final losses at {MIN_SCALES} scales of compute at least, and there"
            f" {'is' if count == 1 else 'are'} {count}"
        )
    reference = math.exp(np.log(compute).mean())
    x = np.log(compute / reference)
    y = np.log(loss)
    parameters, offset_p = _choose(x, y, count)
    jacobian = _jacobian(parameters, x)
    freedom = len(x) - len(parameters)
    variance = _rss(parameters, x, y) / freedom
    return Fit(
        amplitude=math.exp(parameters[0]),
        exponent=float(parameters[1]),
        offset=float(parameters[2]) if len(parameters) == 3 else 0.0,
        reference=reference,
        covariance=variance * np.linalg.inv(jacobian.T @ jacobian),
        freedom=freedom,
        residual=math.sqrt(variance),
        offset_p=offset_p,
        compute=compute,
        loss=loss,
    )


def _choose(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, float | None]:
    """(parameters of the plain law or of that with an offset, p of the F test): the offset is taken
    where the data carry it."""
    slope, level = np.polyfit(x, y, 1)
    plain = np.array([level, -slope])
    if count <= MIN_SCALES:
        return plain, None
    bent = _fit_offset(x, y)
    plain_rss = _rss(plain, x, y)
    p = _f_test(plain_rss, _rss(bent, x, y), len(x) - 3)
    is_carried = p < 1 - LEVEL and bent[2] > 0
    is_exact = plain_rss <= len(x) * EXACT**2
    return (bent if is_carried and not is_exact else plain), p


def _predict(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    log_a, alpha, offset = (*parameters, 0.0)[:3]
    return np.log(offset + np.exp(log_a - alpha * x))


def _rss(parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(((_predict(parameters, x) - y) ** 2).sum())


def _jacobian(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(points, parameters): of log L by log A, alpha and, where there is one, E."""
    log_a, alpha, offset = (*parameters, 0.0)[:3]
    power = np.exp(log_a - alpha * x)
    share = power / (offset + power)
    return np.stack([share, -share * x, 1 / (offset + power)], axis=1)[:, : len(parameters)]


def _fit_offset(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(log A, alpha, E) of least squares, from the best of a row of offsets, for each of which the
    rest is a line."""
    lowest = math.exp(y.min())
    starts = []
    for share in np.linspace(0, 0.995, 200):
        slope, level = np.polyfit(x, np.log(np.exp(y) - share * lowest), 1)
        start = np.array([level, -slope, share * lowest])
        starts.append((_rss(start, x, y), *start))
    start = np.array(min(starts)[1:])
    solution = optimize.least_squares(
        lambda p: _predict(p, x) - y,
        start,
        lambda p: _jacobian(p, x),
        x_scale="jac",
        bounds=([-np.inf, -np.inf, 0], np.inf),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    return solution.x


def _f_test(plain_rss: float, bent_rss: float, freedom: int) -> float:
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
    measured: bool  # whether both methods were measured on both sides of it


# crossings are looked for up to so many times the most compute that was measured, and the least
# over it
REACH = 100.0
GRID_POINTS = 4001


def crossings(first: Fit, second: Fit) -> list[Crossing]:
    """Where the losses of two laws meet, within a hundredfold of what was measured."""
    points = np.concatenate([first.compute, second.compute])
    lowest = math.log(points.min() / REACH)
    highest = math.log(points.max() * REACH)
    grid = np.linspace(lowest, highest, GRID_POINTS)

    def gap(log_compute: ArrayLike) -> np.ndarray:
        compute = np.exp(log_compute)
        return first.log_loss(compute) - second.log_loss(compute)

    gaps = gap(grid)
    alike = _are_alike(first, second, np.exp(grid), gaps)
    # both were measured from here
    overlap_low = max(first.compute.min(), second.compute.min())
    overlap_high = min(first.compute.max(), second.compute.max())
    changes_sign = np.sign(gaps[:-1]) * np.sign(gaps[1:]) < 0
    result = []
    for index in np.flatnonzero(changes_sign).tolist():
        at = math.exp(optimize.brentq(gap, grid[index], grid[index + 1], xtol=1e-12))
        low = _edge(alike, index, -1)
        high = _edge(alike, index + 1, 1)
        crossing = Crossing(
            at=at,
            low=None if low is None else math.exp(grid[low]),
            high=None if high is None else math.exp(grid[high]),
            measured=overlap_low <= at <= overlap_high,
        )
        result.append(crossing)
    return result


def _are_alike(first: Fit, second: Fit, compute: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Where two laws do not differ at 95%, bool: Welch's test, freedom by Satterthwaite."""
    v1 = first.variance(compute)
    v2 = second.variance(compute)
    spread = v1**2 / first.freedom + v2**2 / second.freedom
    freedom = (v1 + v2) ** 2 / np.maximum(spread, 1e-300)
    return np.abs(gaps) <= _t(np.maximum(freedom, 1)) * np.sqrt(v1 + v2)


def _edge(alike: np.ndarray, index: int, step: int) -> int | None:
    """The first place from `index` on where the laws differ, or None before the end."""
    while 0 <= index < len(alike):
        if not alike[index]:
            return index
        index += step
    return None


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """All pairs, each once."""
    return list(itertools.combinations(names, 2))


def describe(laws: dict[str, Fit], unit: str) -> list[str]:
    """Lines that tell the laws of methods, {method: Fit}, their uncertainty and where they
    cross."""
    lines = []
    for method, law in laws.items():
        lines.append(f"{method}: L(C) = {law.formula(unit)}")
        lines.append(f"  {_uncertainty(law)}")
        lines.append(f"  {_evidence(law)}")
    for first, second in pairs(laws):
        met = crossings(laws[first], laws[second])
        if not met:
            lines.append(
                f"{first} and {second}: no crossing within a hundredfold of the compute that was"
                " measured"
            )
        for crossing in met:
            place = f"{crossing.at:.3g} {unit}, {_interval(crossing, unit)}"
            kind = "within what was measured" if crossing.measured else "an extrapolation"
            lines.append(f"{first} and {second} cross at C = {place}; {kind}")
    return lines


def _uncertainty(law: Fit) -> str:
    widths = law.half_widths()
    parts = [
        f"exponent {-law.exponent:.4f} +- {widths[1]:.4f}",
        f"amplitude {law.amplitude:.4g} (+- {math.expm1(widths[0]):.2%})",
    ]
    if law.offset:
        parts.append(f"offset {law.offset:.4g} +- {widths[2]:.2g}")
    freedom = f"{law.freedom} degree{'s' * (law.freedom != 1)} of freedom"
    return f"{', '.join(parts)} (95%, delta method, {freedom})"


def _evidence(law: Fit) -> str:
    """What the law rests on, and whether the data carry an offset."""
    count = f"{len(law.compute)} points at {len(scales(law.compute))} scales"
    points = f"{count}, relative residuals {law.residual:.2%}"
    if law.offset_p is None:
        return f"{points}; an offset needs 4 scales"
    carried = "carried" if law.offset else "not carried"
    return f"{points}; an offset is {carried} by the data (F test: p = {law.offset_p:.2g})"


def _interval(crossing: Crossing, unit: str) -> str:
    if crossing.low is None and crossing.high is None:
        return "which the data do not bound (95%)"
    if crossing.low is None:
        return f"at most {crossing.high:.3g} {unit} (95%)"
    if crossing.high is None:
        return f"at least {crossing.low:.3g} {unit} (95%)"
    return f"between {crossing.low:.3g} and {crossing.high:.3g} {unit} (95%)"

"""What a difference is worth: the compute that the baseline would need for the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gpt.errors import UserError
from gpt.metrics.runs import read_runs
from gpt.referee.scores import AXIS_OF, WORDS_OF, Sides
from gpt.results.intervals import LEVEL, Difference
from gpt.results.power_law import Fit, fit
from gpt.results.scores import final_scores

STEP = 1e-4  # of log compute, and of a parameter, in differences for derivatives


@dataclass(frozen=True)
class Worth:
    """ratio: of the compute with which the baseline, by its own power law, would come as low as the
    contender, to that which both had; low, high: its 95% interval. slope: of log nats per byte over
    log compute there. points: (compute, nats per byte) that the law was fitted to."""

    ratio: float
    low: float
    high: float
    slope: float
    unit: str
    points: tuple[tuple[float, float], ...]

    def in_words(self) -> str:
        return (
            f"worth {self.ratio - 1:+.1%} of compute (95%: {self.low - 1:+.1%} to"
            f" {self.high - 1:+.1%}) by the baseline's ladder of {len(self.points)} runs, on which"
            f" nats a byte go with {self.unit} to the power {self.slope:.4f}"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "slope": self.slope,
            "unit": self.unit,
            "points": [list(point) for point in self.points],
        }


def worth_of(sides: Sides, per_byte: Difference, ladder: Sequence[Path]) -> Worth:
    """By the slope of the baseline's law at the compute of both sides.

    ladder: the baseline's runs at other compute, beside which its own runs count. Raises UserError
    where they do not measure the same, or are of fewer than three scales.
    """
    points = _points(sides, ladder)
    law = fit(*zip(*points))
    compute = sides.baseline.compute[sides.over]
    assert compute is not None, "a side without it is refused before"
    baseline_loss = float(np.mean([score.normalised_loss for score in sides.baseline.scores]))
    slope, slope_error = _slope(law, compute)
    gain = math.log1p(per_byte.value / baseline_loss)
    gain_error = per_byte.error / baseline_loss
    log_ratio = gain / slope
    # the delta method, of a quotient of two that were measured apart
    parts = [(gain_error / slope) ** 2, (gain * slope_error / slope**2) ** 2]
    half = _half_width(parts, [per_byte.freedom, law.freedom])
    return Worth(
        ratio=math.exp(log_ratio),
        low=math.exp(log_ratio - half),
        high=math.exp(log_ratio + half),
        slope=slope,
        unit=WORDS_OF[sides.over],
        points=tuple(points),
    )


def _points(sides: Sides, ladder: Sequence[Path]) -> list[tuple[float, float]]:
    """(compute, nats per byte) of the ladder and of the baseline's own runs, rising."""
    runs = read_runs(ladder)
    axis = AXIS_OF[sides.over]
    measured = final_scores(runs, [])
    points = []
    for run in runs:
        amount = run.planned(axis)
        figures = measured.figures[run.name]
        if amount is None or not run.finished:
            raise UserError(
                f"--ladder: {run.name} is {run.state}, or does not tell its {WORDS_OF[sides.over]}",
                mend="give finished runs of the baseline",
            )
        if figures["bytes"] != sides.measured_on["bytes"]:
            raise UserError(
                f"--ladder: {run.name} scored {figures['bytes']:,} bytes, and what is judged"
                f" {sides.measured_on['bytes']:,}",
                mend="evaluate the whole split of each (gpt/eval.py --join)",
            )
        points.append((amount, figures["normalised_loss"]))
    own = sides.baseline.compute[sides.over]
    assert own is not None
    points += [(own, score.normalised_loss) for score in sides.baseline.scores]
    return sorted(points)


def _slope(law: Fit, compute: float) -> tuple[float, float]:
    """d log loss / d log compute of a law, and its standard error by the delta method."""
    parameters = [math.log(law.amplitude), law.exponent, law.offset][: len(law.covariance)]
    slope = _slope_at(parameters, law.reference, compute)
    gradient = np.empty(len(parameters))
    for index, value in enumerate(parameters):
        step = STEP * max(abs(value), STEP)
        moved = [list(parameters), list(parameters)]
        moved[0][index] -= step
        moved[1][index] += step
        low, high = (_slope_at(changed, law.reference, compute) for changed in moved)
        gradient[index] = (high - low) / (2 * step)
    return slope, math.sqrt(max(float(gradient @ law.covariance @ gradient), 0.0))


def _slope_at(parameters: Sequence[float], reference: float, compute: float) -> float:
    """Of E + A (C / C0)^-alpha; parameters: log A, alpha and, with an offset, E."""
    log_amplitude, exponent, offset = [*parameters, 0.0][:3]
    power = math.exp(log_amplitude) * (compute / reference) ** -exponent
    return -exponent * power / (offset + power)


def _half_width(variances: Sequence[float], freedoms: Sequence[float]) -> float:
    """Half of the 95% interval of a sum, freedom by Satterthwaite; NaN where one is unknown."""
    total = sum(variances)
    if not math.isfinite(total):
        return math.nan
    if total == 0:
        return 0.0
    spread = sum(
        variance**2 / freedom for variance, freedom in zip(variances, freedoms) if variance
    )
    return math.sqrt(total) * float(stats.t.ppf((1 + LEVEL) / 2, total**2 / spread))

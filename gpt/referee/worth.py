"""What a difference is worth: the compute that the baseline would need for the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gpt.config.identity import BATCH_SETTING, differing
from gpt.errors import UserError
from gpt.metrics.run import Run
from gpt.metrics.runs import read_runs
from gpt.referee.scores import AXIS_OF, SHOWN, WORDS_OF, Side, Sides
from gpt.results.intervals import LEVEL, Difference
from gpt.results.power_law import REACH, Fit, fit
from gpt.results.scores import final_scores

# settings in which the runs of a ladder may differ: their size and length, and what goes with these
OF_SCALE = (
    "model.",
    "parameters",
    "kernels",
    "scheduler.params.",
    "optimizer.params.lr",
    "gradient_clipping",
    "max_train_steps",
    "fp16.",
    BATCH_SETTING,
)
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
        interval = ""
        if math.isfinite(self.low):
            interval = f" (95%: {self.low - 1:+.1%} to {self.high - 1:+.1%})"
        return (
            f"worth {self.ratio - 1:+.1%} of compute{interval} by the baseline's ladder of"
            f" {len(self.points)} runs, on which nats a byte go with {self.unit} to the power"
            f" {self.slope:.4f}"
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


def worth_of(
    sides: Sides, per_byte: Difference, ladder: Sequence[Path]
) -> tuple[Worth | None, str | None]:
    """(worth by the slope of the baseline's law at the compute of both sides, or why its ladder
    tells none).

    ladder: the baseline's runs at other compute, beside which its own runs count. Raises UserError
    where they are of another method or do not measure the same, or are of fewer than three scales.
    """
    points = _points(sides, ladder)
    law = fit(*zip(*points))
    compute = sides.baseline.compute[sides.over]
    assert compute is not None, "a side without it is refused before"
    slope, slope_error = _slope(law, compute)
    if not slope + _t(law.freedom) * slope_error < 0:
        return None, "no worth is told: on the ladder the baseline does not gain by compute"
    baseline_loss = float(np.mean([score.normalised_loss for score in sides.baseline.scores]))
    gain = math.log1p(per_byte.value / baseline_loss)
    gain_error = per_byte.error / baseline_loss
    log_ratio = gain / slope
    if abs(log_ratio) > math.log(REACH):
        return None, f"no worth is told: it would be beyond {REACH:g} times the compute"
    # the delta method, of a quotient of two that were measured apart
    variances = [(gain_error / slope) ** 2, (gain * slope_error / slope**2) ** 2]
    half = _half_width(variances, [per_byte.freedom, law.freedom])
    worth = Worth(
        ratio=math.exp(log_ratio),
        low=_exp(log_ratio - half),
        high=_exp(log_ratio + half),
        slope=slope,
        unit=WORDS_OF[sides.over],
        points=tuple(points),
    )
    return worth, None


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def _points(sides: Sides, ladder: Sequence[Path]) -> list[tuple[float, float]]:
    """(compute, nats per byte) of the ladder and of the baseline's own runs, rising."""
    runs = read_runs(ladder)
    _require_method(sides.baseline, runs)
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


def _require_method(baseline: Side, runs: Sequence[Run]) -> None:
    """Raise UserError where a run of a ladder differs from the baseline in more than its size and
    length, and what goes with these."""
    for run in runs:
        paths = differing([baseline.settings, run.identity])
        others = [path for path in paths if not path.startswith(OF_SCALE)]
        if others:
            raise UserError(
                f"--ladder: {run.name} is of another method than the baseline"
                f" ({', '.join(others[:SHOWN])})",
                mend="give runs of the baseline that differ in their size and length alone",
            )


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
    return math.sqrt(total) * _t(total**2 / spread)


def _t(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))

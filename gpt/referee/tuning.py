"""The learning rate of each side: the best of as many trials, each at a declared multiple of the
side's own max_lr, under a seed that no final run has.

What was chosen follows from the trials' folders alone, so that whoever has them finds the same.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.config.identity import RUN
from gpt.config.resolve import read
from gpt.config.run_config import value_at
from gpt.config.schedule import own_schedule
from gpt.errors import UserError
from gpt.metrics.events import FAILED, METRICS
from gpt.metrics.run import Run
from gpt.metrics.runs import read_run
from gpt.referee import budget
from gpt.referee.entry import Entry
from gpt.training import study

# by which a trial is told from another one
OF_A_TRIAL = (
    "gpt.seed",
    "gpt.max_train_steps",
    "scheduler.params.decay_steps",
    "scheduler.params.max_lr",
    "scheduler.params.min_lr",
)


def settings_of(
    entry: Entry, side: str, flops_per_token: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """{dotted path: value} that the final runs of a side lay over its JSON, each beside its seed
    and folder. flops_per_token: as of `budget.of`. Raises UserError where throughputs are not
    measured, or trials not made, yet."""
    if not entry.tuning.trials:
        return _untuned(entry, side, flops_per_token)
    settings = trial_settings(entry, side, flops_per_token)
    return settings[factor_of(entry, side, trial_losses(entry, side, settings))]


def trial_settings(
    entry: Entry, side: str, flops_per_token: Mapping[str, int] | None = None
) -> dict[float, dict[str, Any]]:
    """{factor: the same at so many times the side's own learning rate}."""
    settings = _untuned(entry, side, flops_per_token)
    draft = read(entry.config_file(side), 1, settings)
    draft.refuse_mistakes()
    schedule = own_schedule(draft.get("scheduler"))
    assert schedule is not None, "of a side without one no budget is known"
    by_factor = {}
    for factor in entry.tuning.factors:
        by_factor[factor] = {
            **settings,
            "scheduler.params.max_lr": schedule.max_lr * factor,
            "scheduler.params.min_lr": schedule.min_lr * factor,
        }
    return by_factor


def _untuned(entry: Entry, side: str, flops_per_token: Mapping[str, int] | None) -> dict[str, Any]:
    return {**entry.overrides(side), **budget.settings(entry, side, flops_per_token)}


def factor_of(entry: Entry, side: str, losses: Mapping[float, float | None]) -> float:
    """The multiple of its own learning rate at which a side's trials ended best. losses: of
    `trial_losses`. Raises UserError where a trial is not finished, or all have diverged."""
    known = []
    for factor, loss in losses.items():
        if loss is None:
            raise UserError(
                f"{entry.path}: the trial of the {side} at {factor:g} times its max_lr is not"
                " finished",
                mend=f"make it with `python tools/referee.py run {entry.path}`",
            )
        known.append(loss)
    best = study.best(list(losses), known)
    if best is None:
        raise UserError(
            f"{entry.path}: all trials of the {side} diverged",
            mend=f"make the entry anew with a lower max_lr in {entry.config_file(side).name}, or"
            " with gradient_clipping",
        )
    return best


def trial_losses(
    entry: Entry, side: str, settings: Mapping[float, Mapping[str, Any]]
) -> dict[float, float | None]:
    """{factor: nats per token of the trial's last evaluation}: NaN of one that diverged, None of
    one that is not finished. settings: of `trial_settings`. Raises UserError where a trial's files
    are damaged, or it was made with other steps, rate or seed than the entry gives it."""
    losses = {}
    for name, (of_side, factor) in entry.trial_names.items():
        if of_side == side:
            declared = {**settings[factor], "gpt.seed": entry.tuning.seed}
            losses[factor] = _final_loss(entry.tuning_runs / name, declared)
    return losses


def _final_loss(folder: Path, declared: Mapping[str, Any]) -> float | None:
    if not (folder / METRICS).is_file():
        return None
    run = read_run(folder)
    for path in OF_A_TRIAL:
        actual = value_at(run.config[RUN], path)
        if actual != declared[path]:
            raise UserError(
                f"{folder} is not the trial that the entry declares: {path} is {actual} there, and"
                f" {declared[path]} by the entry",
                mend="move it away, and make the trial with `python tools/referee.py run`",
            )
    if has_diverged(run):
        return math.nan
    evaluation = run.whole() or run.final()
    if not run.finished or evaluation is None:
        return None
    return evaluation["loss"]


def has_diverged(run: Run) -> bool:
    """Whether the same again would find no more than that it diverges: training reached its end
    without numbers, or gave up at a gradient or a loss that is not finite, and did not go on
    since."""
    return run.has_ended_diverged or run.last_event.get("event") == FAILED


def in_words(entry: Entry, side: str, flops_per_token: Mapping[str, int] | None = None) -> str:
    """One line on what a side's trials came to. flops_per_token: as of `budget.of`."""
    losses = trial_losses(entry, side, trial_settings(entry, side, flops_per_token))
    best = factor_of(entry, side, losses)
    trials = []
    for factor, loss in losses.items():
        has_diverged = loss is None or math.isnan(loss)
        trials.append(f"{factor:g}: diverged" if has_diverged else f"{factor:g}: {loss:.4f}")
    is_at_the_edge = best in (min(losses), max(losses))
    edge = ", at the edge of those tried," if is_at_the_edge else ""
    return (
        f"{side}: {best:g} times its max_lr{edge} by the losses of {len(trials)} trials"
        f" ({', '.join(trials)})"
    )

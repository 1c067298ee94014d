"""Runs side by side: those that differ in their seeds alone, and whether final evaluations measure
the same."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.metrics.runs import Run, missing_axis, values
from gpt.results.methods import in_words, method_keys, method_names, settings_of


@dataclass
class Group:
    """Runs that differ in nothing but their seeds."""

    name: str  # of its runs, as short as it is common to them
    runs: list[Run]
    settings: dict[str, Any] = field(default_factory=dict)  # {path: value} that they share
    # of what it compares, whatever the length of training; groups of one law and one colour
    method: str = ""

    @property
    def seeds(self) -> list[int | None]:
        return _seeds(self.runs)

    @property
    def title(self) -> str:
        return f"{self.name} ({len(self.runs)} seeds)" if len(self.runs) > 1 else self.name

    @property
    def family(self) -> str:
        return self.runs[0].family

    @property
    def variant(self) -> str | None:
        return self.runs[0].variant

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run."""
        run = self.runs[0]
        return run.tokens_until(run.options["max_train_steps"])

    def mean(
        self, axis: str, kind: str, quantity: str | Callable, split: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
        """(x, mean, spread) of a quantity over the steps that all runs have, float64 each.

        The spread is the sample standard deviation, None for one run. None where the axis is not
        to be had.
        """
        tables = []
        for run in self.runs:
            events = run.curve(kind, split)
            x = run.over(axis, events)
            if x is None:
                return None
            steps = [event["step"] for event in events]
            tables.append(dict(zip(steps, zip(x, values(events, quantity)))))
        common = sorted(set.intersection(*(set(table) for table in tables)))
        rows = [[table[step] for step in common] for table in tables]
        points = np.array(rows).reshape(len(tables), len(common), 2)
        x = points[..., 0]
        y = points[..., 1]
        spread = y.std(axis=0, ddof=1) if len(tables) > 1 else None
        return x.mean(axis=0), y.mean(axis=0), spread

    def final(self, axis: str, quantity: str) -> tuple[float, np.ndarray]:
        """(x, values) of the last evaluations, one value a run. Raises UserError where the axis is
        not to be had."""
        events = [run.final() or {} for run in self.runs]
        x = self.runs[0].over(axis, events[:1])
        if x is None:
            raise UserError(missing_axis(axis, self.runs))
        return float(x[0]), values(events, quantity)


def group_by_seed(runs: Sequence[Run], equal_code: frozenset[str] = frozenset()) -> list[Group]:
    """Groups, in the order of their first runs. A second run with the same seed is no second seed:
    it begins a group.

    equal_code: versions of the code that count as one, of `methods.same_code`.
    """
    groups: dict[tuple[str, int], Group] = {}
    for run in runs:
        settings = settings_of(run, equal_code)
        # the same curve by the hours of another reference is of another class
        key = json.dumps([settings, run.options.get("tokens_per_second")], default=str)
        repeat = 0
        while (key, repeat) in groups and run.options.get("seed") in groups[key, repeat].seeds:
            repeat += 1
        group = groups.setdefault((key, repeat), Group("", [], settings))
        group.runs.append(run)
    for group in groups.values():
        group.name = _common_name([run.name for run in group.runs])
    name_methods(list(groups.values()))
    return list(groups.values())


def name_methods(groups: Sequence[Group]) -> None:
    """Give each group the name of its method, by what tells it from those of the others."""
    keys = method_keys([group.settings for group in groups], [group.tokens for group in groups])
    first_of_method: dict[str, Group] = {}
    for key, group in zip(keys, groups):
        first_of_method.setdefault(key, group)
    names = method_names(
        [group.variant or group.family for group in first_of_method.values()],
        [in_words(group.runs[0], group.settings) for group in first_of_method.values()],
    )
    name_of = dict(zip(first_of_method, names))
    for key, group in zip(keys, groups):
        group.method = name_of[key]


def _seeds(runs: Sequence[Run]) -> list[int | None]:
    return [run.options.get("seed") for run in runs]


def _common_name(names: Sequence[str]) -> str:
    """What the names of runs share, without the seed."""
    if len(names) == 1:
        return names[0]
    without_seed = {re.sub(r"[-_. ]*seed[-_=]?\d*$", "", name) for name in names}
    if len(without_seed) == 1:
        name = without_seed.pop()
    else:
        name = os.path.commonprefix(names).rstrip("-_. /")
    return name or f"{names[0]} …"


def finished_only(groups: Sequence[Group], notices: list[str]) -> list[Group]:
    """The groups without what is not finished or was never evaluated; notices say what that is."""
    finished = []
    for group in groups:
        runs = []
        for run in group.runs:
            if run.finished and run.final():
                runs.append(run)
            else:
                notices.append(f"{run.name} is left out: {run.state}")
        if runs:
            name = group.name if len(runs) > 1 else runs[0].name
            finished.append(replace(group, name=name, runs=runs))
    return finished


def scored_bytes(run: Run) -> int | None:
    """Of the text that its final evaluation scored; None where it does not tell."""
    final = run.final()
    return final.get("bytes") if final else None


def incomparable(runs: Sequence[Run]) -> str | None:
    """Why the final evaluations of runs do not measure the same, or None: dataset, split, last_n
    and bytes scored must agree."""
    for run in runs:
        if run.fingerprint is None:
            return f"{run.name} does not tell its dataset's fingerprint"
        if not isinstance(scored_bytes(run), int):
            return f"{run.name} does not tell how many bytes its evaluations scored"
    for first, second in zip(runs, runs[1:]):
        difference = _difference(first, second)
        if difference:
            return f"{first.name} and {second.name} {difference}"
    return None


def _difference(first: Run, second: Run) -> str | None:
    """In what the final evaluations of two runs differ, as the rest of a sentence about them."""
    if first.fingerprint != second.fingerprint:
        fingerprints = f"{str(first.fingerprint)[:12]} and {str(second.fingerprint)[:12]}"
        return f"were trained on different datasets (fingerprints {fingerprints})"
    split, other_split = (run.options.get("eval_data_split") for run in (first, second))
    if split != other_split:
        return f"were evaluated on different splits ({split} and {other_split})"
    last_n, other_last_n = (run.options.get("last_n") for run in (first, second))
    if last_n != other_last_n:
        return (
            f"gave the scored tokens different context (last_n {last_n} and {other_last_n}):"
            " evaluate them with the same last_n"
        )
    scored, other_scored = (scored_bytes(run) for run in (first, second))
    if scored != other_scored:
        return (
            f"scored different parts of the split {split!r} ({scored:,} and {other_scored:,}"
            " bytes): evaluate them with the same seq_len, last_n, eval_batch_size and"
            " max_eval_steps"
        )
    return None


def mixed_references(runs: Sequence[Run]) -> list[str]:
    """Sentences on families whose runs tell several throughputs of the reference accelerator.

    Another kernel or precision explains that, but so does another accelerator, whose hours are not
    the same compute.
    """
    speeds_of: dict[str, set] = {}
    for run in runs:
        speeds = speeds_of.setdefault(run.family, set())
        if run.options.get("tokens_per_second") is not None:
            speeds.add(run.options["tokens_per_second"])
    notices = []
    for family, speeds in speeds_of.items():
        if len(speeds) > 1:
            listed = " and at ".join(f"{speed:,}" for speed in sorted(speeds))
            notices.append(
                f"{family} is said to train at {listed} reference tokens/s: that is equal compute"
                " only if one accelerator does both"
            )
    return notices


def final_losses(groups: Sequence[Group], axis: str, notices: list[str]) -> dict[str, list[tuple]]:
    """{method: [(x, mean, spread or None)]} of the final normalised losses over an axis, by rising
    x.

    Runs that are not finished or trained no step, and losses that are not finite, are left out
    with a notice. Raises UserError where losses do not measure the same, or the axis is not to be
    had.
    """
    finished = finished_only(groups, notices)
    runs = [run for group in finished for run in group.runs]
    reason = incomparable(runs)
    if reason:
        raise UserError(f"final losses cannot be compared: {reason}")
    if axis == "reference_hours":
        notices += mixed_references(runs)
    points: dict[str, list[tuple]] = {}
    for group in finished:
        x, losses = group.final(axis, "normalised_loss")
        if not x > 0:
            notices.append(f"{group.name} is left out: it took no step of training")
            continue
        if not (np.isfinite(losses) & (losses > 0)).all():
            notices.append(f"{group.name} is left out: its final normalised loss is not finite")
            continue
        spread = losses.std(ddof=1) if len(losses) > 1 else None
        points.setdefault(group.method, []).append((x, losses.mean(), spread))
    return {method: sorted(of_it, key=lambda point: point[0]) for method, of_it in points.items()}

"""Runs side by side: those that differ in their seeds alone, their methods, and whose hours of a
reference accelerator can be believed."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpt.config.identity import differing
from gpt.metrics.run import Run, missing_axis, values
from gpt.results.methods import (
    ENDS,
    GROWING,
    in_words,
    label,
    method_keys,
    method_names,
    settings_of,
)
from gpt.results.scores import (
    Scores,
    final_scores,
    held_out_text,
    incomparable,
    is_scored,
    whole_split,
)
from gpt.wording import listed


@dataclass
class Group:
    """Runs that differ in nothing but their seeds."""

    name: str  # of its runs, as short as it is common to them
    runs: list[Run]
    settings: dict[str, Any] = field(default_factory=dict)  # {path: value} that they share
    # of what it compares, whatever the length of training; groups of one law and one colour
    method: str = ""
    label: str = ""  # what figures call it instead, by their user's wish

    @property
    def seeds(self) -> list[int | None]:
        return _seeds(self.runs)

    @property
    def title(self) -> str:
        name = f"{self.variant}: {self.name}" if self.variant else self.name
        name = self.label or name
        return f"{name} ({len(self.runs)} seeds)" if len(self.runs) > 1 else name

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

    @property
    def passes(self) -> float | None:
        """How often the training text was read; None where its length is not told."""
        trained_on = (self.runs[0].config.get("dataset") or {}).get("train") or {}
        tokens = trained_on.get("tokens")
        return self.tokens / tokens if tokens else None

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


def group_by_seed(runs: Sequence[Run], equal_code: frozenset[str] = frozenset()) -> list[Group]:
    """Groups, in the order of their first runs. A second run with the same seed is no second seed:
    it begins a group.

    equal_code: versions of the code that count as one, of `methods.same_code`.
    """
    groups: dict[tuple[str, int], Group] = {}
    for run in runs:
        settings = settings_of(run, equal_code)
        # the same curve by the hours of another reference is of another class
        key = json.dumps([settings, _plain_speed(run)], default=str)
        repeat = 0
        while (key, repeat) in groups and run.options.get("seed") in groups[key, repeat].seeds:
            repeat += 1
        group = groups.setdefault((key, repeat), Group("", [], settings))
        group.runs.append(run)
    names = [_common_name([run.name for run in group.runs]) for group in groups.values()]
    for group, name in zip(groups.values(), names):
        is_shared = names.count(name) > 1 and len(group.runs) > 1
        group.name = f"{group.runs[0].name} …" if is_shared else name
    name_methods(list(groups.values()))
    return list(groups.values())


def _plain_speed(run: Run) -> float | None:
    """As one number, however it was written."""
    return None if run.reference_speed is None else float(run.reference_speed)


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


def with_runs(groups: Sequence[Group], is_wanted: Callable[[Run], bool]) -> list[Group]:
    """The groups with those of their runs for which `is_wanted` holds; none is empty."""
    remaining = []
    for group in groups:
        runs = [run for run in group.runs if is_wanted(run)]
        if runs:
            name = group.name if len(runs) > 1 else runs[0].name
            remaining.append(replace(group, name=name, runs=runs))
    return remaining


def unfinished_siblings(groups: Sequence[Group]) -> list[Run]:
    """The runs that are not finished, or diverged, where another seed of their group is finished:
    a mean over both would end where they do."""
    siblings = []
    for group in groups:
        unfinished = [run for run in group.runs if not run.finished or run.diverged_at is not None]
        if len(unfinished) < len(group.runs):
            siblings += unfinished
    return siblings


def finished_only(groups: Sequence[Group], notices: list[str]) -> list[Group]:
    """The groups without what is not finished or was never evaluated; notices say what that is."""

    def is_finished(run: Run) -> bool:
        return run.diverged_at is None and run.finished and is_scored(run)

    for group in groups:
        unfinished = [run for run in group.runs if not is_finished(run)]
        notices += [f"{run.name} is left out: {run.state}" for run in unfinished]
    return with_runs(groups, is_finished)


def on_one_text(groups: Sequence[Group], notices: list[str]) -> Sequence[Group]:
    """The groups that are scored on the held-out text of most of them; notices name the others.

    All of them where no text is that of most, for whoever compares them to say why that cannot be.
    """
    groups_of: dict[Any, list[Group]] = {}
    for group in groups:
        groups_of.setdefault(held_out_text(group.runs[0]), []).append(group)
    by_size = sorted(groups_of.values(), key=len, reverse=True)
    if len(by_size) < 2 or len(by_size[0]) == len(by_size[1]):
        return groups
    most = by_size[0]
    for others in by_size[1:]:
        names = listed([group.name for group in others], shown=3)
        notices.append(f"{names} left out: scored on another text than {most[0].name}")
    return most


def of_one_measure(groups: Sequence[Group], notices: list[str]) -> Sequence[Group]:
    """The groups without the runs that scored a part of their split, where as many scored the whole
    of it and the parts are not the same; notices name them."""
    runs = [run for group in groups for run in group.runs]
    whole = {run.name for run in runs if whole_split(run)[0] is not None}
    partly = [run.name for run in runs if run.name not in whole]
    if not partly or len(partly) > len(whole) or incomparable(runs) is None:
        return groups
    notices.append(
        f"{listed(partly, shown=3)} left out: scored on a part of the split alone;"
        " `python gpt/eval.py --join RUN` scores all of it"
    )
    return with_runs(groups, lambda run: run.name in whole)


def scored_alike(groups: Sequence[Group], notices: list[str]) -> tuple[Sequence[Group], Scores]:
    """(the groups that measure the same, by the split that training scored, their scores). Raises
    UserError where most do not; notices name the others."""
    groups = of_one_measure(on_one_text(groups, notices), notices)
    return groups, final_scores([run for group in groups for run in group.runs], notices)


def trusted_references(groups: Sequence[Group], notices: list[str]) -> list[Group]:
    """The groups whose hours of a reference accelerator can be believed; notices say of the others
    why not.

    A throughput belongs to the model that it was measured for. Where a run's file does not say
    which that was, it is not believed if it is told for models of other FLOPs, too, or if runs of
    one method tell two.
    """
    trusted = []
    lacking: list[Run] = []
    for group in groups:
        if group.runs[0].reference_speed is None:
            lacking += group.runs
            continue
        doubt = None if group.runs[0].tells_reference else _doubt(group, groups)
        if doubt:
            notices.append(f"{group.name} has no reference hours: {doubt}")
        else:
            trusted.append(group)
    if lacking:
        notices.append(missing_axis("reference_hours", lacking))
    return trusted


def _doubt(group: Group, groups: Sequence[Group]) -> str | None:
    """Why the throughput that a group tells is not its model's, as the rest of a sentence."""
    speed = group.runs[0].reference_speed
    flops = group.runs[0].flops_per_token
    for other in groups:
        other_speed = other.runs[0].reference_speed
        other_flops = other.runs[0].flops_per_token
        if other_speed == speed and None not in (flops, other_flops) and other_flops != flops:
            return (
                f"its {speed:,.6g} tokens/s are also those of {other.name}, whose model takes"
                f" {other_flops:,} FLOPs per token and not {flops:,}; measure each with"
                " tools/throughput.py"
            )
        if other.method == group.method and other_speed not in (None, speed):
            return (
                f"it is said to train at {speed:,.6g} reference tokens/s, and {other.name} at"
                f" {other_speed:,.6g}, which is the same model; measure it with tools/throughput.py"
            )
    return None


def mixed_references(groups: Sequence[Group]) -> list[str]:
    """Sentences on models that the runs tell to train at several throughputs of the reference.

    Another kernel or precision explains that, but so does another accelerator, or one that was
    busy, whose hours are not the same compute.
    """
    methods_of: dict[tuple, dict[float, str]] = {}
    for group in groups:
        run = group.runs[0]
        model = run.family, run.flops_per_token, run.own_model
        if run.reference_speed is not None:
            methods_of.setdefault(model, {}).setdefault(run.reference_speed, group.method)
    notices = []
    for (family, *_), methods in methods_of.items():
        if len(methods) > 1:
            speeds = [f"{speed:,} ({method})" for speed, method in sorted(methods.items())]
            notices.append(
                f"{family} is said to train at {' and at '.join(speeds)} reference tokens/s: that"
                " is equal compute only if one accelerator does both, and nothing else ran on it"
            )
    return notices


def untold_code(groups: Sequence[Group]) -> list[str]:
    """A sentence on runs that are taken for seeds of each other, and do not tell their code."""
    names = []
    for group in groups:
        if len(group.runs) > 1 and group.runs[0].code is None:
            names += [run.name for run in group.runs]
    if not names:
        return []
    return [
        f"{listed(names, shown=3)} do not tell their code (an earlier version trained them): they"
        " are taken for seeds of each other by their settings alone"
    ]


def _grown_along(groups: Sequence[Group]) -> list[str]:
    """Sentences on what grows with the length of training within a method."""
    sentences = []
    for method in dict.fromkeys(group.method for group in groups):
        of_method = [group.settings for group in groups if group.method == method]
        for path in differing(of_method):
            if path in GROWING and path not in ENDS:
                numbers = dict.fromkeys(str(settings.get(path)) for settings in of_method)
                sentences.append(
                    f"along the law of {method}, {label(path)} is {', '.join(numbers)}"
                )
    return sentences


def final_losses(groups: Sequence[Group], axis: str, notices: list[str]) -> dict[str, list[tuple]]:
    """{method: [(x, mean, spread or None)]} of the final normalised losses over an axis, by rising
    x.

    Runs that are not finished, trained no step or have no place on the axis, and losses that are
    not finite, are left out with a notice. Raises UserError where losses do not measure the same.
    """
    finished = finished_only(groups, notices)
    if axis == "reference_hours":
        finished = trusted_references(finished, notices)
        notices += mixed_references(finished)
    comparable, scores = scored_alike(finished, notices)
    points: dict[str, list[tuple]] = {}
    for group in comparable:
        x = group.runs[0].planned(axis)
        if x is None:
            notices.append(missing_axis(axis, group.runs))
            continue
        losses = scores.of(group.runs, "normalised_loss")
        if not x:
            notices.append(f"{group.name} is left out: it took no step of training")
            continue
        if not (np.isfinite(losses) & (losses > 0)).all():
            notices.append(f"{group.name} is left out: its final normalised loss is not finite")
            continue
        spread = losses.std(ddof=1) if len(losses) > 1 else None
        points.setdefault(group.method, []).append((x, losses.mean(), spread))
    notices += _grown_along(finished)
    return {method: sorted(of_it, key=lambda point: point[0]) for method, of_it in points.items()}

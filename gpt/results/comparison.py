"""Runs side by side: those that differ in their seeds alone, and whether final evaluations measure
the same."""

import json
import os
import re
from dataclasses import dataclass

import numpy as np

from gpt.config.saved import curve_settings
from gpt.errors import UserError
from gpt.metrics.runs import missing_axis, values


@dataclass
class Group:
    """Runs that differ in nothing but their seeds."""

    name: str
    runs: list

    @property
    def seeds(self) -> list:
        return [run.options.get("seed") for run in self.runs]

    @property
    def title(self) -> str:
        return f"{self.name} ({len(self.runs)} seeds)" if len(self.runs) > 1 else self.name

    @property
    def family(self) -> str:
        return self.runs[0].family

    def mean(self, axis: str, kind: str, name, split: str | None = None):
        """(x, mean, spread) of a value over the steps that all runs have; the spread is the sample
        standard deviation, None for one run. None where the axis is not to be had."""
        tables = []
        for run in self.runs:
            events = run.curve(kind, split)
            x = run.over(axis, events)
            if x is None:
                return None
            tables.append({e["step"]: pair for e, *pair in zip(events, x, values(events, name))})
        steps = sorted(set.intersection(*(set(table) for table in tables)))
        found = np.array([[table[step] for step in steps] for table in tables]).reshape(
            len(tables), len(steps), 2
        )
        spread = found[..., 1].std(axis=0, ddof=1) if len(tables) > 1 else None
        return found[..., 0].mean(axis=0), found[..., 1].mean(axis=0), spread

    def final(self, axis: str, name: str):
        """(x, values) of the last evaluations, one value a run. Raises UserError where the axis is
        not to be had."""
        events = [run.final() for run in self.runs]
        x = self.runs[0].over(axis, events[:1])
        if x is None:
            raise UserError(missing_axis(axis, self.runs))
        return float(x[0]), values(events, name)


OF_A_CURVE = (
    "max_train_steps",
    "tokens_per_second",
    "spike_policy",
    "eval_data_split",
    "max_eval_steps",
    "eval_batch_size",
    "last_n",
)


def group_by_seed(runs) -> list:
    """Groups, in the order of their first runs. A second run with the same seed is no second seed:
    it begins a group."""
    groups = {}
    for run in runs:
        settings = {
            **curve_settings(run.config),
            "seed": None,
            **{name: run.options.get(name) for name in OF_A_CURVE},
        }
        key = json.dumps(settings, sort_keys=True, default=str)
        repeat = 0
        while run.options.get("seed") in [
            other.options.get("seed") for other in groups.get((key, repeat), [])
        ]:
            repeat += 1
        groups.setdefault((key, repeat), []).append(run)
    return [Group(_common_name([run.name for run in found]), found) for found in groups.values()]


def _common_name(names) -> str:
    """What the names of runs share, without the seed."""
    if len(names) == 1:
        return names[0]
    bare = {re.sub(r"[-_. ]*seed[-_=]?\d*$", "", name) for name in names}
    name = bare.pop() if len(bare) == 1 else os.path.commonprefix(names).rstrip("-_. /")
    return name or f"{names[0]} …"


def finished_only(groups, notices: list) -> list:
    """The groups without what is not finished or was never evaluated; notices say what that is."""
    found = []
    for group in groups:
        ready = [run for run in group.runs if run.finished and run.final()]
        notices += [
            f"{run.name} is left out: {run.state}" for run in group.runs if run not in ready
        ]
        if ready:
            found.append(Group(group.name if len(ready) > 1 else ready[0].name, ready))
    return found


def incomparable(runs) -> str | None:
    """Why the final evaluations of runs do not measure the same, or None: dataset, split, last_n
    and bytes scored must agree."""
    for run in runs:
        missing = (
            "its dataset's fingerprint"
            if run.fingerprint is None
            else (
                "how many bytes its evaluations scored"
                if not isinstance(run.final().get("bytes"), int)
                else None
            )
        )
        if missing:
            return f"{run.name} does not tell {missing}"
    for first, other in zip(runs, runs[1:]):
        names = f"{first.name} and {other.name}"
        splits = [run.options.get("eval_data_split") for run in (first, other)]
        if first.fingerprint != other.fingerprint:
            return (
                f"{names} were trained on different datasets (fingerprints {first.fingerprint[:12]}"
                f" and {other.fingerprint[:12]})"
            )
        if splits[0] != splits[1]:
            return f"{names} were evaluated on different splits ({splits[0]} and {splits[1]})"
        last_n = [run.options.get("last_n") for run in (first, other)]
        if last_n[0] != last_n[1]:
            return (
                f"{names} gave the scored tokens different context (last_n {last_n[0]} and"
                f" {last_n[1]}): evaluate them with the same last_n"
            )
        scored = [run.final()["bytes"] for run in (first, other)]
        if scored[0] != scored[1]:
            return (
                f"{names} scored different parts of the split {splits[0]!r} ({scored[0]:,} and"
                f" {scored[1]:,} bytes): evaluate them with the same seq_len, last_n,"
                " eval_batch_size and max_eval_steps"
            )
    return None


def mixed_references(runs) -> list:
    """Sentences on families whose runs tell several throughputs of the reference accelerator.
    Another kernel or precision explains that, but so does another accelerator, whose hours are not
    the same compute."""
    speeds = {}
    for run in runs:
        speeds.setdefault(run.family, set()).add(run.options.get("tokens_per_second"))
    return [
        f"{name} is said to train at"
        f" {' and at '.join(f'{speed:,}' for speed in sorted(found - {None}))} reference tokens/s:"
        " that is equal compute only if one accelerator does both"
        for name, found in speeds.items()
        if len(found - {None}) > 1
    ]


def final_losses(groups, axis: str, notices: list) -> dict:
    """{family: [(x, mean, spread or None)]} of the final normalised losses over an axis, by rising
    x. Runs that are not finished or trained no step, and losses that are not finite, are left out
    with a notice. Raises UserError where losses do not measure the same, or the axis is not to be
    had."""
    whole, found = finished_only(groups, notices), {}
    reason = incomparable([run for group in whole for run in group.runs])
    if reason:
        raise UserError(f"final losses cannot be compared: {reason}")
    if axis == "reference_hours":
        notices += mixed_references([run for group in whole for run in group.runs])
    for group in whole:
        x, losses = group.final(axis, "normalised_loss")
        if not x > 0:
            notices.append(f"{group.name} is left out: it took no step of training")
            continue
        if not (np.isfinite(losses) & (losses > 0)).all():
            notices.append(f"{group.name} is left out: its final normalised loss is not finite")
            continue
        found.setdefault(group.family, []).append(
            (x, losses.mean(), losses.std(ddof=1) if len(losses) > 1 else None)
        )
    return {family: sorted(points, key=lambda point: point[0]) for family, points in found.items()}

"""Runs at equal compute, best first: a table for every compute class."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt.errors import UserError
from gpt.metrics.events import TRAIN
from gpt.metrics.run import Run, values
from gpt.results.comparison import (
    Group,
    finished_only,
    mixed_references,
    scored_alike,
    trusted_references,
    untold_code,
    with_runs,
)
from gpt.results.methods import code_parts, in_words, table_settings
from gpt.results.scores import (
    Scores,
    held_out_text,
    how_much,
    joined_scores,
    split_of,
)

HOURS = "reference_hours"
# what equal compute can be measured by; --over
COMPUTE = (HOURS, "tokens", "flops")
# ratio of compute up to which runs are of one class: a step more or less is no other class
SAME_CLASS = 1.02
FIGURES = ("normalised_ppl", "bits_per_byte", "loss")
WITHOUT_A_CLASS = (
    "no run has hours of a reference accelerator, so training tokens stand for compute; a class is"
    " made with `python tools/throughput.py --ds_config FILE --sweep --write_config FOLDER`"
)


class Place(NamedTuple):
    """A group on the axis that stands for compute."""

    group: Group
    compute: float
    half_step: float  # steps are whole numbers, so compute is known to half a step


def leaderboard(
    groups: Sequence[Group], notices: list[str], over: str = HOURS, split: str | None = None
) -> dict[str, Any]:
    """The tables as plain values. over: one of COMPUTE, by which compute is equal. split: which is
    ranked by, as eval.py joined it to the runs; None: the one that training scored.

    Raises UserError where runs cannot be compared; notices get what was left out.
    """
    sound = with_runs(groups, lambda run: run.diverged_at is None)
    diverged = with_runs(groups, lambda run: run.diverged_at is not None)
    finished = finished_only(sound, notices)
    if not finished:
        notices += [f"{run.name} {run.state}" for group in diverged for run in group.runs]
        raise UserError("; ".join(["none of the runs is finished and evaluated", *notices]))
    over, comparable = _over(finished, notices, over)
    comparable, scores = _scored(comparable, split, notices)
    runs = [run for group in comparable for run in group.runs]
    shown = [*comparable, *_beside(comparable, diverged, over, notices)]
    notices += untold_code(comparable)
    if over == "tokens" and not scores.one_tokenizer:
        notices.append(
            "as many training tokens are not as much training text under different tokenizers"
        )
    first = runs[0]
    return {
        "dataset": first.fingerprint if len({run.fingerprint for run in runs}) == 1 else None,
        "split": split or first.options["eval_data_split"],
        "documents": _documents(first, scores, split),
        "bytes": scores.figures[first.name]["bytes"],
        "scored": how_much(runs, scores),
        "whole_split": scores.whole,
        "over": over,
        "classes": [
            _class_table(places, over, scores)
            for places in by_class([_place(group, over) for group in shown])
        ],
    }


def _scored(
    groups: Sequence[Group], split: str | None, notices: list[str]
) -> tuple[Sequence[Group], Scores]:
    """(the groups that measure the same, by what they are ranked)."""
    if split is None:
        return scored_alike(groups, notices)
    scores = joined_scores([run for group in groups for run in group.runs], split, notices)
    return with_runs(groups, lambda run: run.name in scores.figures), scores


def _documents(run: Run, scores: Scores, split: str | None) -> str | None:
    """The hash of the documents that were scored."""
    return (split_of(run) if split is None else scores.figures[run.name]).get("documents")


def _over(finished: Sequence[Group], notices: list[str], over: str) -> tuple[str, Sequence[Group]]:
    """(what compute is measured by, the groups that have it): tokens where no run has hours."""
    if over != HOURS:
        return over, finished
    reasons: list[str] = []
    trusted = trusted_references(finished, reasons)
    notices += reasons
    if not trusted:
        notices.append(WITHOUT_A_CLASS)
        return "tokens", finished
    if len(trusted) < len(finished):
        notices.append("runs without a class are shown by --over tokens, or --over flops")
    notices += mixed_references(trusted)
    return over, trusted


def _beside(
    comparable: Sequence[Group], diverged: Sequence[Group], over: str, notices: list[str]
) -> list[Group]:
    """Of the groups that diverged, those that stand in a table with the comparable ones."""
    groups = []
    for group in diverged:
        run = group.runs[0]
        if run.planned(over) and held_out_text(run) == held_out_text(comparable[0].runs[0]):
            groups.append(group)
        else:
            notices += [f"{run.name} is left out: {run.state}" for run in group.runs]
    return groups


def _place(group: Group, over: str) -> Place:
    run = group.runs[0]
    compute = run.planned(over)
    assert compute is not None, "of a group that is not to be left out"
    return Place(group, compute, compute / max(1, run.options["max_train_steps"]) / 2)


def by_class(places: Sequence[Place]) -> list[list[Place]]:
    """Groups by compute class, rising."""
    classes: list[list[Place]] = []
    for place in sorted(places, key=lambda place: place.compute):
        if classes:
            smallest = classes[-1][0]
            tolerance = smallest.half_step + place.half_step
            limit = max(smallest.compute * SAME_CLASS, smallest.compute + tolerance)
            if place.compute <= limit:
                classes[-1].append(place)
                continue
        classes.append([place])
    return classes


def _class_table(places: Sequence[Place], over: str, scores: Scores) -> dict[str, Any]:
    """A class, as plain values: its rows, best first, and the settings in which they differ."""
    groups = [place.group for place in places]
    words = [in_words(group.runs[0], group.settings) for group in groups]
    paths = table_settings(words)
    rows = []
    for place, settings in zip(places, words):
        row = _row(place.group, scores)
        row["settings"] = {path: settings.get(path) for path in paths}
        rows.append(row)
    return {
        over: places[0].compute,
        "settings": paths,
        "code_parts": code_parts([group.settings for group in groups]),
        "rows": sorted(rows, key=_rank),
    }


def _row(group: Group, scores: Scores) -> dict[str, Any]:
    """A row of a table, as plain values."""
    first = group.runs[0]
    row = {
        "name": group.name,
        "method": group.method,
        "variant": group.variant,
        "model": group.family,
        "parameters": first.parameters,
        "steps": first.options["max_train_steps"],
        "tokens_per_step": first.tokens_per_step,
        "tokens": group.tokens,
        "flops": first.planned("flops"),
        HOURS: first.planned(HOURS),
        "passes": group.passes,
        "seeds": group.seeds,
        "run_dirs": [str(run.path) for run in group.runs],
    }
    row["diverged_at"] = [run.diverged_at for run in group.runs if run.diverged_at is not None]
    for name in FIGURES:
        row[name] = None if row["diverged_at"] else _statistics(scores.of(group.runs, name))
    if not scores.one_tokenizer:
        row["loss"] = None
    last_events = [
        (run.curve(TRAIN) or [run.whole() or run.final() or {}])[-1] for run in group.runs
    ]
    row["hours"] = _statistics(values(last_events, "hours"))
    return row


def _statistics(numbers: np.ndarray) -> dict[str, Any] | None:
    """Mean, sample standard deviation (null for one run) and values; null where a value is absent
    or not finite."""
    if not np.isfinite(numbers).all():
        return None
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std(ddof=1)) if len(numbers) > 1 else None,
        "values": numbers.tolist(),
    }


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    """What diverged comes last."""
    figure = row["normalised_ppl"]
    return bool(row["diverged_at"]), figure["mean"] if figure else math.inf

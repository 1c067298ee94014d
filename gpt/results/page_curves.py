"""What the script of the report's page draws: the curves of groups of seeds, as columns."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.metrics.events import (
    ACTIVATIONS,
    ALARMS,
    AXES,
    EVAL,
    HAPPENINGS,
    NORMS,
    TRAIN,
)
from gpt.metrics.run import Run, values
from gpt.results.comparison import Group
from gpt.results.looks import Place, places
from gpt.results.panels import DEVICE, INSIDE, LOSS_SCALE, LOSSES, TRAINING, drawable, in_unit

CHARTS = (*LOSSES, *TRAINING, *DEVICE, *INSIDE)
# of a curve's steps; each keeps its least and greatest loss, and its greatest gradient norm
BUCKETS = 700
SHOWN_EVENTS = 300  # of each run


def data(groups: Sequence[Group], reload: float | None) -> dict:
    """All that the page's script draws. reload: seconds after which an open page reloads itself."""
    payloads = [
        payload(group, place)
        for group, place in zip(groups, places([group.method for group in groups]))
    ]
    axes = []
    for name, axis in AXES.items():
        largest = _largest(payloads, axis.key)
        if name != "steps" and largest is None:
            continue
        label, per_unit = in_unit(axis.label, largest or 0)
        _scale(payloads, axis.key, per_unit)
        axes.append({"key": axis.key, "label": label, "log": axis.log})
    charts = [{"key": panel.key, "label": panel.label, "log": panel.log} for panel in CHARTS]
    return {"axes": axes, "charts": charts, "groups": payloads, "reload": reload}


def payload(group: Group, place: Place) -> dict:
    """Of one group: its name and look, its curves, and where things happened on each axis."""
    splits = group.runs[0].splits()
    curves = [_columns(group, kind, None) for kind in (TRAIN, NORMS, ACTIVATIONS)]
    curves += [_columns(group, EVAL, split) for split in splits]
    marks = []
    for run in group.runs:
        marks += _marks(run)
    look = {
        "hue": place.hue,
        "paleness": round(place.paleness, 3),
        "dashes": place.dashes,
        "marker": place.marker,
    }
    return {
        "name": group.title,
        "look": look,
        "curves": [curve for curve in curves if curve["columns"]["step"]],
        "events": marks,
    }


def _columns(group: Group, kind: str, split: str | None) -> dict:
    """A curve over the steps that all seeds have: means of the quantities that hold a number, their
    spread where there are several seeds, and places on the axes."""
    events_of = _common_events(group, kind, split)
    steps = len(events_of[0])
    columns: dict[str, np.ndarray] = {}
    spreads: dict[str, np.ndarray] = {}
    for panel in CHARTS:
        if kind not in panel.kinds:
            continue
        seeds = np.stack([values(events, panel.quantity) for events in events_of])
        unused = panel is LOSS_SCALE and (seeds == 1).all()
        mean = seeds.mean(axis=0)
        if np.isfinite(mean).any() and not unused:
            columns[panel.key] = mean
            if len(seeds) > 1 and kind == EVAL:
                spreads[panel.key] = seeds.std(axis=0, ddof=1)
    for name, axis in AXES.items():
        seeds_at = [run.over(name, events) for run, events in zip(group.runs, events_of)]
        placed = [at for at in seeds_at if at is not None]
        if len(placed) == len(seeds_at):
            columns[axis.key] = np.mean(placed, axis=0)
    kept = np.arange(steps)
    if kind == TRAIN and steps > 3 * BUCKETS:
        kept = _outline(columns, steps)
    return {"split": split, "columns": _short(columns, kept), "spread": _short(spreads, kept)}


def _common_events(group: Group, kind: str, split: str | None) -> list[list[dict]]:
    """For each run its events of the steps that all runs of the group have."""
    by_step = [{event["step"]: event for event in run.curve(kind, split)} for run in group.runs]
    common = sorted(set.intersection(*(set(events) for events in by_step)))
    return [[events[step] for step in common] for events in by_step]


def _outline(columns: dict[str, np.ndarray], steps: int) -> np.ndarray:
    """Numbers of the steps of which a curve keeps its shape: of each stretch, its extremes."""
    absent = np.zeros(steps)
    losses = np.nan_to_num(columns.get("loss", absent))
    norms = np.nan_to_num(columns.get("grad_norm", absent))
    kept = {0, steps - 1}
    for part in np.array_split(np.arange(steps), BUCKETS):
        kept.add(int(part[np.argmin(losses[part])]))
        kept.add(int(part[np.argmax(losses[part])]))
        kept.add(int(part[np.argmax(norms[part])]))
    return np.array(sorted(kept))


def _short(columns: dict[str, np.ndarray], kept: np.ndarray) -> dict[str, list]:
    return {
        name: [_rounded(float(number)) for number in drawable(column[kept])]
        for name, column in columns.items()
    }


def _rounded(number: float) -> int | float | None:
    """As JSON: six digits, whole numbers whole, null for what is not finite."""
    if not math.isfinite(number):
        return None
    if number.is_integer() and abs(number) < 2**53:
        return int(number)
    return float(f"{number:.6g}")


def _largest(payloads: list[dict], key: str) -> float | None:
    """The greatest place of curves on an axis; None where no run has gone along it."""
    found = []
    for group in payloads:
        for curve in group["curves"]:
            found += [place for place in curve["columns"].get(key, []) if place is not None]
    return max(found, default=None)


def _scale(payloads: list[dict], key: str, per_unit: float) -> None:
    """Give the places on an axis in another unit."""
    if per_unit == 1:
        return
    for group in payloads:
        for columns in [curve["columns"] for curve in group["curves"]]:
            if key in columns:
                columns[key] = [_times(place, per_unit) for place in columns[key]]
        for mark in group["events"]:
            if key in mark["at"]:
                mark["at"][key] = _times(mark["at"][key], per_unit)


def _times(number: float | None, factor: float) -> float | None:
    return None if number is None else _rounded(float(number) * factor)


def _marks(run: Run) -> list[dict]:
    """Where things happened: their places on the axes, by those of training."""
    train = run.curve(TRAIN)
    axes = {}
    for name, axis in AXES.items():
        at_steps = run.over(name, train) if train else None
        if at_steps is not None:
            axes[axis.key] = at_steps
    marks = []
    for event in happenings(run)[-SHOWN_EVENTS:]:
        step = event["step"]
        at = {
            key: _rounded(float(np.interp(step, axes["step"], at_steps)))
            for key, at_steps in axes.items()
        }
        text = f"{run.name}: {event['event']} at step {step}"
        marks.append({"at": at, "text": text, "alarm": event["event"] in ALARMS})
    return marks


def happenings(run: Run) -> list[dict[str, Any]]:
    """Events that are no curve's, by time of writing."""
    events = []
    for kind in HAPPENINGS:
        events += run.events.get(kind, [])
    return sorted(events, key=lambda event: values([event], "time")[0])

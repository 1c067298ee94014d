"""Runs at equal compute, best first: a table for every compute class."""

import math

import numpy as np

from gpt.errors import UserError
from gpt.metrics.runs import missing_axis, values
from gpt.results.comparison import (
    Group,
    finished_only,
    incomparable,
    mixed_references,
    scored_bytes,
)

# ratio of hours up to which runs are of one class: a step more or less is no other class
SAME_CLASS = 1.02
# {quantity: format} of the final evaluation, as they stand in a table
FIGURES = {"normalised_ppl": ".4f", "bits_per_byte": ".4f", "loss": ".4f", "hours": ".3g"}
HEAD = (
    "| | run | model | parameters | steps x tokens | seeds | normalised perplexity |"
    " bits per byte | loss | measured hours |"
)
RULE = "|-:|-|-|-:|-:|-:|-:|-:|-:|-:|"


def leaderboard(groups: list[Group], notices: list[str]) -> dict:
    """The tables as plain values. Raises UserError where runs cannot be compared; notices get what
    was left out."""
    groups = finished_only(groups, notices)
    runs = [run for group in groups for run in group.runs]
    if not runs:
        raise UserError("; ".join(["none of the runs is finished and evaluated", *notices]))
    if reason := incomparable(runs):
        raise UserError(f"these runs cannot be compared: {reason}")
    classless = [run for run in runs if run.planned_reference_hours is None]
    if classless:
        raise UserError(f"no compute class: {missing_axis('reference_hours', classless)}")
    notices += mixed_references(runs)
    first = runs[0]
    classes = by_class([(_row(group), _half_a_step(group)) for group in groups])
    return {
        "dataset": first.fingerprint,
        "split": first.options["eval_data_split"],
        "bytes": scored_bytes(first),
        "classes": [
            {"reference_hours": rows[0]["reference_hours"], "rows": sorted(rows, key=_rank)}
            for rows in classes
        ],
    }


def by_class(rows: list[tuple[dict, float]]) -> list[list[dict]]:
    """Rows by compute class, rising, from (row, half a step of its run in reference hours): steps
    are whole numbers, so hours are known to half a step."""
    classes: list[list[dict]] = []
    # of the present class's first row
    class_hours = 0.0
    class_half_step = 0.0
    for row, half_step in sorted(rows, key=lambda pair: pair[0]["reference_hours"]):
        hours = row["reference_hours"]
        limit = max(class_hours * SAME_CLASS, class_hours + class_half_step + half_step)
        if not classes or hours > limit:
            classes.append([])
            class_hours = hours
            class_half_step = half_step
        classes[-1].append(row)
    return classes


def _row(group: Group) -> dict:
    """A row of a table, as plain values."""
    first = group.runs[0]
    events = [run.final() or {} for run in group.runs]
    row = {
        "name": group.name,
        "model": group.family,
        "parameters": first.model.parameters(),
        "steps": first.options["max_train_steps"],
        "tokens_per_step": first.tokens_per_step,
        "reference_hours": first.planned_reference_hours,
        "seeds": group.seeds,
        "run_dirs": [str(run.path) for run in group.runs],
    }
    for name in FIGURES:
        row[name] = _statistics(values(events, name))
    return row


def _half_a_step(group: Group) -> float:
    """In reference hours."""
    run = group.runs[0]
    return run.planned_reference_hours / max(1, run.options["max_train_steps"]) / 2


def _statistics(numbers: np.ndarray) -> dict | None:
    """Mean, sample standard deviation (null for one run) and values; null where a value is absent
    or not finite."""
    if not np.isfinite(numbers).all():
        return None
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std(ddof=1)) if len(numbers) > 1 else None,
        "values": numbers.tolist(),
    }


def _rank(row: dict) -> float:
    return row["normalised_ppl"]["mean"] if row["normalised_ppl"] else math.inf


def markdown(tables: dict) -> list[str]:
    """The lines of what `leaderboard` returned."""
    lines = [
        f"Final evaluation on `{tables['split']}`, {tables['bytes']:,} bytes,"
        f" dataset {tables['dataset'][:12]}."
    ]
    for table in tables["classes"]:
        title = f"### {table['reference_hours']:.3g} reference accelerator-hours"
        lines += ["", title, "", HEAD, RULE]
        lines += [_line(place, row) for place, row in enumerate(table["rows"], 1)]
    return lines


def _line(place: int, row: dict) -> str:
    cells = [
        str(place),
        _cell(row["name"]),
        row["model"],
        f"{row['parameters'] / 1e6:,.4g} M",
        f"{row['steps']:,} x {row['tokens_per_step']:,}",
        str(len(row["seeds"])),
    ]
    cells += [_mean(row[name], digits) for name, digits in FIGURES.items()]
    return f"| {' | '.join(cells)} |"


def _mean(figure: dict | None, digits: str) -> str:
    if figure is None:
        return "-"
    mean = f"{figure['mean']:{digits}}"
    return mean if figure["std"] is None else f"{mean} ± {figure['std']:{digits}}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

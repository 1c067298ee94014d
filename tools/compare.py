"""A leaderboard: runs at equal compute, best first.

    python tools/compare.py runs/24h-seed0 runs/24h-seed1 runs/other [--json leaderboard.json]
    python tools/compare.py runs/sweep                     a folder of runs stands for all in it

Prints a Markdown table for every compute class, the hours that the reference accelerator takes for
the whole run. Runs that differ only in their seeds are one row: mean +- sample standard deviation.
What is not finished is named and left out. Refuses runs whose final evaluations do not measure the
same: the dataset's fingerprint, the split, last_n, and the bytes that were scored must agree.
"""

import json
import math
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from gpt.errors import Parser, UserError, command
from gpt.files import require_place_for
from gpt.metrics.runs import missing_axis, read_runs, values
from gpt.results.comparison import finished_only, group_by_seed, incomparable, mixed_references

# ratio of hours up to which runs are of one class: a step more or less is no other class
SAME_CLASS = 1.02
FIGURES = ("normalised_ppl", "bits_per_byte", "loss", "hours")


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs"
    )
    parser.add_argument("--json", metavar="FILE", help="write the tables here as well")
    args = parser.parse_args()
    if args.json:
        require_place_for("--json", args.json)
    runs = read_runs(args.runs)
    notices = [notice for one in runs for notice in one.notices]
    result = leaderboard(group_by_seed(runs), notices)
    print("\n".join(markdown(result)))
    for notice in notices:
        print(f"\nnotice: {notice}")
    if args.json:
        Path(args.json).write_text(
            json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


def leaderboard(groups, notices: list) -> dict:
    """The tables as plain values. Raises UserError where runs cannot be compared; notices get what
    was left out."""
    groups = finished_only(groups, notices)
    runs = [one for group in groups for one in group.runs]
    if not runs:
        raise UserError("; ".join(["none of the runs is finished and evaluated", *notices]))
    if reason := incomparable(runs):
        raise UserError(f"these runs cannot be compared: {reason}")
    classless = [one for one in runs if one.planned_reference_hours is None]
    if classless:
        raise UserError(f"no compute class: {missing_axis('reference_hours', classless)}")
    notices += mixed_references(runs)
    first = runs[0]
    classes = [
        {"reference_hours": rows[0]["reference_hours"], "rows": sorted(rows, key=_rank)}
        for rows in _classes(groups)
    ]
    return {
        "dataset": first.fingerprint,
        "split": first.options["eval_data_split"],
        "bytes": first.final()["bytes"],
        "classes": classes,
    }


def _classes(groups):
    """Rows by compute class, rising. Steps are whole numbers, so hours are known to half a step."""
    # first: (hours, half a step) of the present class's first row
    found = []
    first = None
    for row, half_step in sorted(map(_row, groups), key=lambda pair: pair[0]["reference_hours"]):
        hours = row["reference_hours"]
        if first is None or hours > max(first[0] * SAME_CLASS, first[0] + first[1] + half_step):
            found.append([])
            first = hours, half_step
        found[-1].append(row)
    return found


def _row(group):
    """(a row of a table, half a step in reference hours)."""
    first = group.runs[0]
    hours = group.runs[0].planned_reference_hours
    events = [one.final() for one in group.runs]
    row = {
        "name": group.name,
        "model": group.family,
        "parameters": first.model.parameters(),
        "steps": first.options["max_train_steps"],
        "tokens_per_step": first.tokens_per_step,
        "reference_hours": hours,
        "seeds": group.seeds,
        "run_dirs": [str(one.path) for one in group.runs],
    }
    for name in FIGURES:
        row[name] = _statistics(values(events, name))
    return row, hours / max(1, row["steps"]) / 2


def _statistics(found):
    """Mean, sample standard deviation (null for one run) and values; null where a value is absent
    or not finite."""
    if not np.isfinite(found).all():
        return None
    return {
        "mean": float(found.mean()),
        "std": float(found.std(ddof=1)) if len(found) > 1 else None,
        "values": found.tolist(),
    }


def _rank(row):
    return row["normalised_ppl"]["mean"] if row["normalised_ppl"] else math.inf


def markdown(result) -> list:
    """The tables' lines."""
    lines = [
        f"Final evaluation on `{result['split']}`, {result['bytes']:,} bytes, dataset"
        f" {result['dataset'][:12]}."
    ]
    for found in result["classes"]:
        lines += [
            "",
            f"### {found['reference_hours']:.3g} reference accelerator-hours",
            "",
            (
                "| | run | model | parameters | steps x tokens | seeds | normalised perplexity |"
                " bits per byte | loss | measured hours |"
            ),
            "|-:|-|-|-:|-:|-:|-:|-:|-:|-:|",
        ]
        for place, row in enumerate(found["rows"], 1):
            cells = [
                str(place),
                _cell(row["name"]),
                row["model"],
                f"{row['parameters'] / 1e6:,.4g} M",
                f"{row['steps']:,} x {row['tokens_per_step']:,}",
                str(len(row["seeds"])),
                *(_mean(row[name], ".3g" if name == "hours" else ".4f") for name in FIGURES),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(found, digits):
    if found is None:
        return "-"
    spread = "" if found["std"] is None else f" ± {found['std']:{digits}}"
    return f"{found['mean']:{digits}}{spread}"


def _cell(text):
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    command(main)

"""Figures of runs, as PNG and SVG, from their metrics.jsonl and config.yaml.

    python tools/plot.py runs/24h-seed0 runs/24h-seed1 --out figures
    python tools/plot.py runs/sweep --out figures --scaling    a folder of runs stands for all in it

Writes loss and normalised perplexity over every axis that the runs have (steps, tokens, FLOPs,
measured hours, reference accelerator-hours); learning rate, gradient norm, loss scale and
throughput; and what the runs told about their weights and activations (--log_grads_every,
--log_activations_every of train.py). Runs that differ only in their seeds become one line, their
mean, with a band of one standard deviation. --scaling fits power laws to the final normalised
losses of finished runs, one for each model shape, prints them with their uncertainty, and draws
them with their crossings. The same command writes the same bytes.
"""

import importlib.util
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command
from gpt.metrics.events import AXES
from gpt.metrics.runs import missing_axis, read_runs
from gpt.results.comparison import final_losses, group_by_seed


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the figures go")
    parser.add_argument(
        "--scaling",
        nargs="?",
        const="reference_hours",
        choices=("reference_hours", "flops"),
        help="fit power laws over reference accelerator-hours (default) or FLOPs",
    )
    args = parser.parse_args()
    missing = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"figures need {' and '.join(missing)}: run `pip install -e '.[plot]'` in the project's"
            " folder"
        )

    from gpt.results import figures, power_law

    runs = read_runs(args.runs)
    groups = group_by_seed(runs)
    notices = [notice for one in runs for notice in one.notices]
    if len({(one.fingerprint, one.options.get("eval_data_split")) for one in runs}) > 1:
        notices.append(
            "the runs are of different datasets or splits: their losses do not measure the same"
        )
    # a mistake is told before a file is written
    laws = fit_laws(groups, args.scaling, notices) if args.scaling else None
    if not any(one.last_step for one in runs):
        raise UserError("no run has a line of training yet: there is nothing to draw")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    paths = figures.training(groups, out) + figures.inside(groups, out)
    for axis in AXES:
        lacking = [
            one for one in runs if one.over(axis, one.curve("train") + one.curve("eval")) is None
        ]
        notices += [missing_axis(axis, lacking)] if lacking else []
        for quantity in figures.QUANTITIES:
            paths += figures.curves(groups, axis, quantity, out)
    if laws:
        paths += figures.scaling(*laws, args.scaling, out)
        print("\n".join(power_law.describe(laws[0], figures.UNITS[args.scaling])))
    for notice in notices:
        print(f"notice: {notice}")
    print(f"{out}: {', '.join(path.stem for path in paths[::2])} (.png, .svg)")


def fit_laws(groups, axis, notices):
    """({family: Fit}, {family: [(compute, mean loss, spread)]}, split). A point is a group of
    seeds; what is not finished, and families with too few scales, are left out with a notice."""
    from gpt.results import power_law

    points = final_losses(groups, axis, notices)
    laws = {}
    refused = []
    for family, found in points.items():
        try:
            laws[family] = power_law.fit([x for x, *_ in found], [mean for _, mean, _ in found])
        except UserError as error:
            refused.append(f"{family}: {error}")
    if not laws:
        raise UserError(
            "--scaling: " + ("; ".join(refused) or "none of the runs is finished and evaluated")
        )
    notices += refused
    return laws, points, groups[0].runs[0].options["eval_data_split"]


if __name__ == "__main__":
    command(main)

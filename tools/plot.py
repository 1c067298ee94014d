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

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.metrics.events import AXES
from gpt.metrics.runs import missing_axis, read_runs
from gpt.results.comparison import final_losses, group_by_seed


def main():
    args = parse()
    require_packages()

    from gpt.results import figures, power_law

    runs = read_runs(args.runs)
    groups = group_by_seed(runs)
    notices = []
    for run in runs:
        notices += run.notices
    if len({(run.fingerprint, run.options.get("eval_data_split")) for run in runs}) > 1:
        notices.append(
            "the runs are of different datasets or splits: their losses do not measure the same"
        )
    laws = None
    if args.scaling:  # a mistake is told before a file is written
        points = final_losses(groups, args.scaling, notices)
        laws = fit_laws(points, notices)
    if not any(run.last_step for run in runs):
        raise UserError("no run has a line of training yet: there is nothing to draw")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    paths = figures.training(groups, out) + figures.inside(groups, out)
    for axis in AXES:
        lacking = [run for run in runs if not has_axis(run, axis)]
        if lacking:
            notices.append(missing_axis(axis, lacking))
        for quantity in figures.QUANTITIES:
            paths += figures.curves(groups, axis, quantity, out)
    if laws:
        split = groups[0].runs[0].options["eval_data_split"]
        paths += figures.law_figure(laws, points, split, args.scaling, out)
        print("\n".join(power_law.describe(laws, figures.UNITS[args.scaling])))
    for notice in notices:
        print(f"notice: {notice}")
    print(f"{out}: {', '.join(path.stem for path in paths[::2])} (.png, .svg)")


def parse():
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
    return parser.parse_args()


def require_packages():
    """Raise UserError where what draws is not installed."""
    packages = ("matplotlib", "scipy")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"figures need {' and '.join(missing)}",
            mend="run `pip install -e '.[plot]'` in the project's folder",
        )


def has_axis(run, axis):
    """Whether all curves of a run have a place on an axis."""
    return run.over(axis, run.curve("train") + run.curve("eval")) is not None


def fit_laws(points, notices):
    """{family: Fit} of points, {family: [(compute, mean loss, spread)]}; families with too few
    scales are left out with a notice."""
    from gpt.results import power_law

    laws = {}
    refused = []
    for family, points_of_family in points.items():
        compute = [x for x, _, _ in points_of_family]
        losses = [mean for _, mean, _ in points_of_family]
        try:
            laws[family] = power_law.fit(compute, losses)
        except UserError as error:
            refused.append(f"{family}: {error}")
    if not laws:
        reasons = "; ".join(refused) or "none of the runs is finished and evaluated"
        raise UserError(f"--scaling: {reasons}")
    notices += refused
    return laws


if __name__ == "__main__":
    command(main)

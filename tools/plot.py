"""Figures of runs, as PNG and SVG, from their metrics.jsonl and config.yaml.

    python tools/plot.py runs/24h-seed0 runs/24h-seed1 --out figures
    python tools/plot.py runs/sweep --out figures --scaling    a folder of runs stands for all in it

Writes loss and normalised perplexity over every axis that the runs have (steps, tokens, FLOPs,
measured hours, reference accelerator-hours); learning rate, gradient norm, loss scale and
throughput; and what the runs told about their weights and activations (--log_grads_every,
--log_activations_every of train.py). Runs that differ only in their seeds become one line, their
mean, with a band of one standard deviation; once one of them is finished, of the finished ones.
--scaling fits power laws to the final normalised losses of finished runs, one for each method,
prints them with their uncertainty, and draws them with their crossings. A method keeps its hue and
dashes in every figure. The same command writes the same bytes.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.metrics.events import AXES
from gpt.metrics.run import missing_axis
from gpt.metrics.runs import read_runs
from gpt.results.comparison import final_losses, group_by_seed, unfinished_siblings, with_runs
from gpt.results.methods import add_same_code, same_code
from gpt.results.scores import texts_differ

MOST_LINES = 200  # in a figure
# nothing is shown on a screen, and what a notebook has set may be no package of this Python
os.environ["MPLBACKEND"] = "agg"


def main():
    args = parse()
    require_packages()

    from gpt.results import figures, power_law

    notices: list[str] = []
    runs = read_runs(args.runs, notices)
    groups = group_by_seed(runs, same_code(runs, args.same_code, notices))
    relabel(groups, args.label)
    notices += texts_differ(runs)
    points, laws = {}, {}
    if args.scaling:
        points, laws = fit_laws(groups, args.scaling, notices)
    if not any(run.last_step for run in runs):
        raise UserError("no run has a line of training yet: there is nothing to draw")
    out = Path(args.out)
    require_folder(out)
    output = figures.Output(out, args.format, args.title)
    paths = []
    if len(groups) <= MOST_LINES:
        paths += draw_curves(without_unfinished_siblings(groups, notices), output, notices)
    else:
        notices.append(f"no curves: {len(groups)} lines cannot be told apart in a figure")
    if laws:
        split = groups[0].runs[0].options["eval_data_split"]
        classes = figures.class_names(groups, args.scaling)
        paths += figures.law_figure(laws, points, classes, split, args.scaling, output)
        print("\n".join(power_law.describe(laws, figures.UNITS[args.scaling])))
    for notice in dict.fromkeys(notices):
        print(f"notice: {notice}")
    if not paths:
        return
    names = ", ".join(dict.fromkeys(path.stem for path in paths))
    print(f"{out}: {names} ({', '.join(f'.{name}' for name in args.format)})")


def without_unfinished_siblings(groups, notices):
    """The groups whose curves reach the end of their finished seeds; notices name the others."""
    siblings = unfinished_siblings(groups)
    notices += [f"{run.name} is left out: {run.state}" for run in siblings]
    names = {run.name for run in siblings}
    return with_runs(groups, lambda run: run.name not in names)


def draw_curves(groups, output, notices):
    """The paths of the figures of curves; notices get the axes that runs lack."""
    from gpt.results import figures

    paths = figures.training(groups, output) + figures.inside(groups, output)
    runs = [run for group in groups for run in group.runs]
    for axis in AXES:
        lacking = [run for run in runs if not has_axis(run, axis)]
        if lacking:
            notices.append(missing_axis(axis, lacking))
        for quantity in figures.QUANTITIES:
            paths += figures.curves(groups, axis, quantity, output)
    return paths


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
    add_same_code(parser)
    parser.add_argument(
        "--format",
        nargs="+",
        default=["png", "svg"],
        choices=("png", "svg", "pdf"),
        help="kinds of files (default: png svg)",
    )
    parser.add_argument("--title", metavar="TEXT", help="stands above every figure")
    parser.add_argument(
        "--label",
        nargs="+",
        default=[],
        metavar="NAME=TEXT",
        help="what the figures call a run, a group of seeds or a method instead of its name",
    )
    return parser.parse_args()


def relabel(groups, labels):
    """Call groups and methods as --label says. Raises UserError where it names neither, or gives
    two methods one name."""
    methods = {group.method for group in groups}
    known = methods | {group.name for group in groups}
    texts = {}
    for label in labels:
        names = [name for name in known if label.startswith(f"{name}=")]
        name = max(names, key=len, default=None)
        if name is None:
            listed = ", ".join(f"'{name}'" for name in sorted(known))
            raise UserError(
                f"--label {label} names no run, group of seeds or method",
                mend=f"give NAME=TEXT with one of {listed}",
            )
        texts[name] = label.removeprefix(f"{name}=")
    for group in groups:
        group.label = texts.get(group.name, "")
        if group.method in texts and not group.label:
            group.label = f"{texts[group.method]}: {group.name}"
        group.method = texts.get(group.method, group.method)
    if len({group.method for group in groups}) < len(methods):
        raise UserError("--label gives two methods one name", mend="give each its own")


def require_folder(out):
    """Make the folder of the figures. Raises UserError where no file can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written to ({error.strerror})", mend="name another folder"
        ) from error


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


def fit_laws(groups, axis, notices):
    """({method: [(compute, mean loss, spread)]}, {method: Fit}) over an axis. What has no law gets
    a notice: methods with too few scales, losses that do not measure the same."""
    from gpt.results import power_law

    laws = {}
    try:
        points = final_losses(groups, axis, notices)
    except UserError as reason:
        notices.append(f"no power law: {reason}")
        return {}, {}
    for method, points_of_method in points.items():
        compute = [x for x, _, _ in points_of_method]
        losses = [mean for _, mean, _ in points_of_method]
        try:
            laws[method] = power_law.fit(compute, losses)
        except UserError as reason:
            notices.append(f"no power law of {method}: {reason}")
    return points, laws


if __name__ == "__main__":
    command(main)

"""A leaderboard: runs at equal compute, best first.

    python tools/compare.py runs/24h-seed0 runs/24h-seed1 runs/other [--json leaderboard.json]
    python tools/compare.py runs/sweep                     a folder of runs stands for all in it
    python tools/compare.py runs/* --over tokens           equal compute is equal training tokens

Prints a Markdown table for every compute class: the hours that the reference accelerator takes for
the whole run, or its training tokens or FLOPs (--over). Runs that differ only in their seeds are
one row: both values of two, mean ± sample standard deviation from three on. What else differs
within a class is a column: settings, code, data, changes on resuming. Ranked by the evaluation of
the whole split where all runs have one (final_eval, or eval.py --join), else by the part that all
scored. What is not finished or cannot be used is named and left out. Refuses runs whose final
evaluations do not measure the same: the held-out text and the bytes that were scored must agree.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, command, explain_imports

explain_imports()

from gpt.files import require_place_for, write_output
from gpt.metrics.runs import read_runs
from gpt.results.comparison import group_by_seed
from gpt.results.leaderboard import COMPUTE, HOURS, leaderboard
from gpt.results.leaderboard_text import markdown
from gpt.results.methods import add_same_code, same_code


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs"
    )
    parser.add_argument(
        "--over",
        choices=COMPUTE,
        default=HOURS,
        help="what equal compute is measured by (default: reference accelerator-hours)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="rank by this split, as gpt/eval.py --join scored it; default: the one that training"
        " scored",
    )
    add_same_code(parser)
    parser.add_argument("--json", metavar="FILE", help="write the tables here as well")
    args = parser.parse_args()
    if args.json:
        require_place_for("--json", args.json)
    notices: list[str] = []
    runs = read_runs(args.runs, notices)
    groups = group_by_seed(runs, same_code(runs, args.same_code, notices))
    tables = leaderboard(groups, notices, args.over, args.split)
    print("\n".join(markdown(tables)))
    for notice in dict.fromkeys(notices):
        print(f"\nnotice: {notice}")
    if args.json:
        text = json.dumps(tables, indent=1, allow_nan=False)
        write_output("--json", args.json, text + "\n")


if __name__ == "__main__":
    command(main)

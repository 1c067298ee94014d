"""A leaderboard: runs at equal compute, best first.

    python tools/compare.py runs/24h-seed0 runs/24h-seed1 runs/other [--json leaderboard.json]
    python tools/compare.py runs/sweep                     a folder of runs stands for all in it

Prints a Markdown table for every compute class, the hours that the reference accelerator takes for
the whole run. Runs that differ only in their seeds are one row: mean +- sample standard deviation.
What is not finished is named and left out. Refuses runs whose final evaluations do not measure the
same: the dataset's fingerprint, the split, last_n, and the bytes that were scored must agree.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, command, explain_imports

explain_imports()

from gpt.files import require_place_for
from gpt.metrics.runs import read_runs
from gpt.results.comparison import group_by_seed
from gpt.results.leaderboard import leaderboard, markdown


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
    notices = []
    for run in runs:
        notices += run.notices
    tables = leaderboard(group_by_seed(runs), notices)
    print("\n".join(markdown(tables)))
    for notice in notices:
        print(f"\nnotice: {notice}")
    if args.json:
        text = json.dumps(tables, indent=1, allow_nan=False)
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    command(main)

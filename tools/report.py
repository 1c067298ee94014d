"""One self-contained HTML page about runs, from their metrics.jsonl and config.yaml.

    python tools/report.py runs/24h --out report.html
    python tools/report.py runs/24h --out report.html --watch   again every 10 s while it trains

Curves (drag to zoom, double click for the whole; runs that differ only in their seeds are one line,
their mean, with a band of one standard deviation), the leaderboard of compare.py, what each run is
(code, dataset, changes on resuming, command), what happened (checkpoints, overflows, spikes, skips,
rewinds, resumes), evaluation per split, environment, and the configuration with the source of every
value. The page loads nothing from anywhere. With --watch an open page reloads itself and
keeps its zoom; the tool ends when all runs are finished, or by Ctrl-C.
"""

import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.files import require_place_for, write_output
from gpt.metrics.runs import read_runs
from gpt.results.methods import add_same_code, same_code
from gpt.results.page import page
from gpt.wording import plural


def main():
    args = parse()
    out = Path(args.out)
    finished = args.watch is None
    while True:
        notices: list[str] = []
        runs = read_runs(args.runs, notices)
        equal_code = same_code(runs, args.same_code, notices)
        is_last = finished
        reload = None if is_last else args.watch
        text = page(runs, notices, reload, equal_code)
        write(out, text, is_last)
        if is_last:
            break
        # the last checkpoint comes after the last evaluation: look once more
        finished = all(run.finished for run in runs)
        time.sleep(args.watch)
    for notice in notices:
        print(f"notice: {notice}")
    print(f"{out}: {plural(len(runs), 'run')}, {len(text) / 1e6:.2f} MB")


def write(out, text, is_last):
    """Raises UserError where the last page cannot be written. Before that a disk that is full costs
    a line: the next page may fit."""
    try:
        write_output("--out", out, text)
    except UserError as problem:
        if is_last:
            raise
        print(f"notice: {problem}", flush=True)


def parse():
    parser = Parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs"
    )
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=10.0,
        metavar="SECONDS",
        help="write it again so often, and have open pages follow (default 10)",
    )
    add_same_code(parser)
    args = parser.parse_args()
    out = Path(args.out)
    require_place_for("--out", out)
    if out.suffix not in (".html", ".htm") and (out.is_file() or not out.exists()):
        raise UserError(f"--out {out} is no page", mend="give the name of an .html file")
    if args.watch is not None and not 1 <= args.watch <= 86400:
        raise UserError(f"--watch {args.watch:g}", mend="give seconds from 1 to 86400")
    return args


if __name__ == "__main__":
    command(main)

"""Run this project's commands on damaged files, hostile values and odd names, and tell which of
them broke a rule that holds of every command.

    python -m tests.fuzz --tries 100                 of each family
    python -m tests.fuzz --minutes 60 --seed 7 --jobs 8 --out failures
    python -m tests.fuzz --families dataset names    these only
    python -m tests.fuzz --again failures/dataset-7-123

The rules stand in invariant.py: exit code 0, 1 or 2, one sentence at most, no traceback, nothing
printed that a terminal obeys, nothing changed that is not the command's own, an end, and bounded
memory. Each failure is a folder in --out. The same seed makes the same tries. Exit code 1: there
are failures.
"""

import argparse
import collections
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import material, server, tries
from .families import FAMILIES, SLOW

TRIES_OF_A_ROUND = 10
# of one kind that are kept
CASES_OF_A_KIND = 2


def main() -> int:
    args = parse()
    server.prepare_server()
    # not a TemporaryDirectory: each forked command would remove it at its end
    folder = Path(tempfile.mkdtemp(prefix="gpt-fuzz-"))
    try:
        if args.again:
            held = run_again(args.again, folder)
        else:
            made = args.material or folder / "material"
            if not made.exists():
                material.make(made)
            for family, make in SLOW.items():
                if family in args.families and not (made / family).exists():
                    make(made)
            held = fuzz(args, folder, made)
    finally:
        shutil.rmtree(folder)
    return 0 if held else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tries", type=int, metavar="N", help="of each family")
    parser.add_argument("--minutes", type=float, help="go on for so long, if --tries is not given")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), metavar="FOLDER")
    parser.add_argument(
        "--material", type=Path, metavar="FOLDER", help="where good inputs are kept between calls"
    )
    parser.add_argument("--again", type=Path, metavar="CASE", help="run a failure again")
    args = parser.parse_args()
    if not (args.again or args.tries or args.minutes):
        parser.error("give --tries or --minutes")
    return args


def fuzz(args: argparse.Namespace, folder: Path, made: Path) -> bool:
    """Try, and tell what came of it; whether no rule was broken."""
    counts: dict[str, collections.Counter] = {name: collections.Counter() for name in args.families}
    seen: collections.Counter = collections.Counter()
    keeper = tries.Fuzzer(folder / "keeper", made)
    context = multiprocessing.get_context("fork")
    with context.Pool(args.jobs, initializer=be_worker, initargs=(folder, made)) as pool:
        for tasks in rounds(args):
            for result in pool.imap_unordered(work, tasks):
                count(counts[result.family], result)
                for signature in signatures(result):
                    seen[signature] += 1
                    if seen[signature] <= CASES_OF_A_KIND:
                        print(tell(keeper, result, args.out), flush=True)
    print(table(counts))
    for signature, number in seen.most_common():
        print(f"{number:6} x {signature}")
    return not seen


def rounds(args: argparse.Namespace) -> Iterator[list[tuple[str, int, int]]]:
    """(family, seed, number) of the tries, some at a time."""
    began = time.monotonic()
    for first in itertools.count(step=TRIES_OF_A_ROUND):
        last = first + TRIES_OF_A_ROUND
        if args.tries:
            last = min(last, args.tries)
        numbers = range(first, last)
        is_over = not args.tries and time.monotonic() - began > 60 * args.minutes
        if is_over or not numbers:
            return
        yield [(family, args.seed, number) for number in numbers for family in args.families]


_fuzzers: list[tries.Fuzzer] = []


def be_worker(folder: Path, made: Path) -> None:
    _fuzzers.append(tries.Fuzzer(folder / str(os.getpid()), made))


def work(task: tuple[str, int, int]) -> tries.Result:
    return _fuzzers[0].try_one(*task)


def count(counter: collections.Counter, result: tries.Result) -> None:
    counter["tries"] += 1
    counter[f"exit {result.outcome.code}"] += 1
    counter["failures"] += bool(result.broken)


def signatures(result: tries.Result) -> list[str]:
    """What tells a kind of failure from others: the rule, the tool, the place in the code."""
    kinds = []
    for rule, what in result.broken:
        place = what.partition(" (")[0] if rule in ("unforeseen", "traceback") else ""
        kinds.append(f"{rule} {place} {result.command.tool}")
    return kinds


def tell(keeper: tries.Fuzzer, result: tries.Result, out: Path) -> str:
    """Keep a failure's case, and tell of it in a line."""
    case = keeper.keep(result, out)
    what = "; ".join(f"{failure.rule}: {failure.what}" for failure in result.broken)
    return f"{case}: {ascii(what)}"


def table(counts: dict[str, collections.Counter]) -> str:
    columns = ("tries", "exit 0", "exit 1", "exit 2", "failures")
    lines = ["{:14}{:>10}{:>10}{:>10}{:>10}{:>10}".format("family", *columns)]
    for family, counter in counts.items():
        numbers = [counter[column] for column in columns]
        lines.append("{:14}{:10,}{:10,}{:10,}{:10,}{:10,}".format(family, *numbers))
    return "\n".join(lines)


def run_again(case: Path, folder: Path) -> bool:
    outcome, broken, traceback = tries.again(case, folder)
    print(f"exit code {outcome.code} after {outcome.seconds:.1f} s")
    print(ascii_lines(outcome.stdout), ascii_lines(outcome.stderr), traceback, sep="\n")
    for rule, what in broken:
        print(f"{rule}: {ascii(what)}")
    return not broken


def ascii_lines(text: bytes) -> str:
    return "\n".join(ascii(line)[1:-1] for line in text.decode(errors="replace").splitlines())


if __name__ == "__main__":
    sys.exit(main())

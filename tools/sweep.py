"""Train a ladder of configurations one after another; finished runs are skipped, unfinished ones go
on.

    python tools/sweep.py --classes 6h 12h 24h --out runs/small
    python tools/sweep.py --classes ladder/*.json --seeds 0 1 2 --out runs/ladder
    python tools/sweep.py --classes 24h 48h --out runs/gpt --data_root data/books \\
        --launcher "deepspeed --num_gpus 8"

A class is a run's JSON, or the name of one in ds_configs/. Options of train.py hold for all runs.
Every run is kept in OUT/CLASS, or OUT/CLASS-seedN; OUT/sweep.json tells how far each is. SIGTERM,
SIGINT or SIGUSR1 has the present run saved, and the sweep ends; after that, or after a kill, the
same command goes on. Exit code 1: some runs could not be finished.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from gpt.errors import Parser, RunError, UserError, command

TRAIN = ROOT / "gpt" / "train.py"
SUMMARY = "sweep.json"


def main():
    from gpt.files import FolderLock

    args, rest, overrides = parse()
    runs = plan(args, overrides)

    out, stop = Path(args.out), Stop()
    for entry in runs:
        entry.look()
    lock = FolderLock(
        out, other="another sweep is at work in", mend="wait for it, or name another --out"
    )
    write_summary(out, runs)
    for number, entry in enumerate(runs, 1):
        if stop.reason:
            break
        entry.wait_for_others(stop)
        if entry.look() != "finished" and not stop.reason:
            print(
                f"--- run {number} of {len(runs)}: {entry.name}, from step {entry.step} of"
                f" {entry.last}",
                flush=True,
            )
            entry.status = "running"
            write_summary(out, runs)
            entry.train(args.launcher, rest, stop)
            write_summary(out, runs)
    lock.release()
    print(table(runs))
    if stop.reason:
        print(f"stopped by {stop.reason}: the same command goes on")
    elif any(entry.status != "finished" for entry in runs):
        names = ", ".join(entry.name for entry in runs if entry.status != "finished")
        raise RunError(
            f"not finished: {names}; what stood in the way is told above, and the same command"
            " tries again"
        )


def parse():
    """(own options, options that every run gets, {dotted path: value} of those)."""
    from gpt.config.command_line import parse_command_line

    parser = Parser(__doc__, prog="sweep.py")
    parser.add_argument(
        "--classes",
        nargs="+",
        required=True,
        metavar="CLASS",
        help="JSON files of runs, or names in ds_configs/",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the runs are kept")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="train every class once with each; default: its own",
    )
    parser.add_argument(
        "--launcher",
        metavar="COMMAND",
        help='what starts gpt/train.py, such as "deepspeed --num_gpus 8"; default: one process',
    )
    args, rest = parser.parse_known_args()
    parsed = parse_command_line(["--ds_config", "", *rest])
    taken = {"gpt.run_dir", "gpt.seed"} & parsed.overrides.keys()
    if (
        taken
        or parsed.dry_run
        or parsed.explain
        or parsed.world_size
        or parsed.allow_change
        or parsed.resume != "auto"
    ):
        raise UserError(
            "command line: --run_dir, --seed, --resume, --allow_change, --dry_run, --explain and"
            " --world_size are not for a sweep: give --out and --seeds"
        )
    try:
        args.launcher = shlex.split(args.launcher) if args.launcher else [sys.executable]
    except ValueError as error:
        raise UserError(f"command line: --launcher {args.launcher}: {error}") from error
    if shutil.which(args.launcher[0]) is None:
        raise UserError(f"command line: --launcher {args.launcher[0]}: there is no such command")
    return args, rest, parsed.overrides


def plan(args, overrides) -> list:
    """All runs, each checked before the first one starts. Raises UserError with the first
    mistake."""
    files = [class_file(name) for name in args.classes]
    names = [file.stem for file in files]
    if len(set(names)) < len(names):  # families of classes in folders of their own
        names = [f"{file.resolve().parent.name}-{file.stem}" for file in files]
    seeds = args.seeds or [None]
    for values, what in ((names, "class"), (seeds, "seed")):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"command line: the {what} {twice} is given twice")
    return [
        Entry(file, name, seed, Path(args.out), overrides)
        for file, name in zip(files, names)
        for seed in seeds
    ]


def class_file(name) -> Path:
    shipped = ROOT / "ds_configs" / f"{name}.json"
    if Path(name).is_file() or not shipped.is_file():
        return Path(name)  # where it is neither, reading it says so
    return shipped


class Entry:
    """One run of the sweep."""

    def __init__(self, file, class_name, seed, out, overrides):
        from gpt.config.resolve import load
        from gpt.data.run_data import SAMPLE, Data

        self.file = file
        self.class_name = class_name
        self.seed = seed
        self.name = class_name if seed is None else f"{class_name}-seed{seed}"
        own = {"gpt.run_dir": str(out / self.name), **({} if seed is None else {"gpt.seed": seed})}
        self._data = Data(may_be_absent=False)
        self.config = load(file, 1, {**overrides, **own}, self._data.mistakes)
        # the first run makes it
        self._sample = self.config.options.data_root == SAMPLE and not Path(SAMPLE).exists()
        self.last = self.config.options.max_train_steps
        self.step = 0
        self.status = "waiting"
        self.final = {}

    def look(self) -> str:
        """Find out how far the run is; returns "finished", "unfinished" or "waiting" (to begin)."""
        from gpt.training.start import reached

        if self._sample and not Path(self.config.options.data_root).exists():
            return self.status
        self.step, finished = reached(self.config, self._data.open(self.config))
        self.status = "finished" if finished else "unfinished" if self.step else "waiting"
        self.final = self._final_evaluation() if finished else {}
        return self.status

    def _final_evaluation(self) -> dict:
        """That of the last step, {} without one."""
        from gpt.metrics.runs import read_run

        found = read_run(self.config.run_dir).final()
        return found if found and found["step"] == self.last else {}

    def wait_for_others(self, stop=None):
        """Wait while processes of this run are still at work, such as those that a killed sweep
        left behind."""
        from gpt.files import FolderLock, LockedError

        told = False
        while self.config.run_dir.exists() and not (stop and stop.reason):
            try:
                return FolderLock(self.config.run_dir).release()
            except LockedError:
                if not told:
                    print(
                        f"waiting for another process that is training in {self.config.run_dir}",
                        flush=True,
                    )
                told = True
                time.sleep(0.5)

    def train(self, launcher, rest, stop):
        own = ["--ds_config", self.file, "--run_dir", self.config.run_dir]
        own += [] if self.seed is None else ["--seed", self.seed]
        code = stop.wait_for(
            subprocess.Popen([*launcher, *map(str, [TRAIN, *own]), *rest], start_new_session=True)
        )
        self.wait_for_others()  # a launcher may end before its ranks have saved
        if self.look() != "finished" and code != 0 and not stop.reason:
            self.status = "failed"
            print(f"{self.name} ended with exit code {code} at step {self.step}", flush=True)

    def summary(self) -> dict:
        tokens = self.last * self.config.batch.train_batch_size * self.config.model.seq_len
        speed = self.config.options.tokens_per_second
        return {
            "name": self.name,
            "run_dir": self.name,
            "config": str(self.file),
            "class": self.class_name,
            "seed": self.config.options.seed,
            "reference_hours": tokens / speed / 3600 if speed else None,
            "steps": self.last,
            "status": self.status,
            "step": self.step,
            "normalised_loss": self.final.get("normalised_loss"),
            "normalised_ppl": self.final.get("normalised_ppl"),
        }


class Stop:
    """A request to stop, from a signal, which is passed on to the run that is training; a second
    SIGINT kills it."""

    def __init__(self):
        self.reason = None
        self._process = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame):
        again = self.reason is not None and number == signal.SIGINT
        self.reason = self.reason or signal.Signals(number).name
        self._pass_on(signal.SIGKILL if again else signal.SIGTERM)
        if again:
            os._exit(130)

    def _pass_on(self, number):
        if self._process is not None and self._process.poll() is None:
            # launcher and ranks: a launcher alone would leave them behind
            os.killpg(self._process.pid, number)

    def wait_for(self, process) -> int:
        """Exit code of a process that leads a session of its own."""
        self._process = process
        if self.reason:
            self._pass_on(signal.SIGTERM)
        code = process.wait()
        self._process = None
        return code


def write_summary(out, runs):
    from gpt.files import write_atomically

    write_atomically(
        out / SUMMARY, json.dumps({"runs": [entry.summary() for entry in runs]}, indent=1) + "\n"
    )


def table(runs) -> str:
    width = max(len(entry.name) for entry in runs)
    lines = [
        f"{'run':{width}s} {'steps':>9s} {'reference hours':>15s} {'normalised perplexity':>21s}"
    ]
    for facts in (entry.summary() for entry in runs):
        hours = "-" if facts["reference_hours"] is None else f"{facts['reference_hours']:.4g}"
        quality = (
            facts["status"] if facts["normalised_ppl"] is None else f"{facts['normalised_ppl']:.4f}"
        )
        lines.append(f"{facts['name']:{width}s} {facts['steps']:>9,} {hours:>15s} {quality:>21s}")
    return "\n".join(lines)


if __name__ == "__main__":
    command(main)

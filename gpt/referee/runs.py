"""The runs of an entry: trained, exported and evaluated, and every start on record."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.config.saved import CONFIG, read_config
from gpt.errors import RunError, UserError
from gpt.locking import FolderLock
from gpt.metrics.runs import read_run
from gpt.referee import entry as entries
from gpt.referee import fairness, final_evaluation, starts, tuning
from gpt.referee.entry import SIDES, Entry
from gpt.results import evaluations
from gpt.training import sweep
from gpt.training.sweep import DIVERGED, FINISHED, Stop, SweptRun

HEAD = ("run", "steps", "max_lr", "nats per byte", "starts")


class EntryRun(SweptRun):
    """A run that an entry declares, kept in out/CLASS_NAME-seedN. settings: {dotted path: value}
    to lay over its side's JSON."""

    def __init__(
        self,
        entry: Entry,
        side: str,
        class_name: str,
        seed: int,
        out: Path,
        settings: dict[str, Any],
    ):
        super().__init__(entry.config_file(side), class_name, seed, out, {}, settings)
        self.entry = entry
        self.side = side
        self.record = f"{out.name}/{self.name}"  # what starts.jsonl calls it

    def look(self) -> str:
        """As a SweptRun; one that gave up at what is not finite has diverged, too."""
        is_over = super().look() in (FINISHED, DIVERGED)
        if not is_over and _has_diverged(self.config.run_dir):
            self.status = DIVERGED
        return self.status

    def train(self, launcher: list[str], train_args: list[str], stop: Stop) -> None:
        assert self.seed is not None
        place = (self.entry, self.record, self.side, self.seed)
        starts.begin(*place, self.step)
        super().train(launcher, train_args, stop)
        assert self.exit_code is not None
        starts.end(*place, self.step, self.exit_code, self.status)


class FinalRun(EntryRun):
    """One that is judged."""

    def train(self, launcher: list[str], train_args: list[str], stop: Stop) -> None:
        super().train(launcher, train_args, stop)
        if self.status == FINISHED and not stop.reason:
            final_evaluation.evaluate(self, stop)


def _has_diverged(run_dir: Path) -> bool:
    try:
        return tuning.has_diverged(read_run(run_dir))
    except UserError:  # there is none yet, or it has only begun
        return False


def train(path: Path, seeds: Sequence[int] | None, launcher: str | None) -> None:
    """Train what is not finished of the declared runs. Whatever ends it, the same command goes on.
    Raises UserError and RunError."""
    entry = entries.read_unsealed(path)
    chosen = _declared(entry, seeds)
    command = sweep.launcher_command(launcher)
    lock = FolderLock(path, "another process trains the runs of", "wait for it")
    try:
        starts.require_unchanged(entry, starts.read(entry))
        fairness.require_fair(entry)
        stop = Stop()
        _train_trials(entry, command, stop)
        runs: list[FinalRun] = []
        if not stop.reason:
            runs = _train_final_runs(entry, chosen, command, stop)
    finally:
        lock.release()
    if stop.reason:
        print(f"stopped by {stop.reason}: the same command goes on")
        return
    print(table(entry, runs))
    print(_what_comes_next(entry, runs))


def _declared(entry: Entry, seeds: Sequence[int] | None) -> list[int]:
    """The seeds to train. Raises UserError for those that are not declared."""
    for seed in seeds or ():
        if seed not in entry.seeds:
            raise UserError(
                f"command line: the seed {seed} is not one of those that"
                f" {entry.path / entries.FILE} declares ({', '.join(map(str, entry.seeds))})",
                mend="seeds are declared before training: give one of those",
            )
    return [seed for seed in entry.seeds if not seeds or seed in seeds]


def _train_trials(entry: Entry, launcher: list[str], stop: Stop) -> None:
    """Make the trials that are declared. Raises RunError where one cannot be."""
    if not entry.tuning.trials:
        return
    settings = {side: tuning.trial_settings(entry, side) for side in SIDES}
    seed = entry.tuning.seed
    runs = []
    for side, factor in entry.trial_names.values():
        name = f"{side}-x{factor}"
        run = EntryRun(entry, side, name, seed, entry.tuning_runs, settings[side][factor])
        runs.append(run)
    _train_all(runs, entry.tuning_runs, launcher, stop)
    if stop.reason:
        return
    for side in SIDES:
        print(tuning.in_words(entry, side), flush=True)


def _train_final_runs(
    entry: Entry, seeds: Sequence[int], launcher: list[str], stop: Stop
) -> list[FinalRun]:
    settings = {side: tuning.settings_of(entry, side) for side in SIDES}
    runs = []
    for seed in seeds:
        for side in SIDES:
            runs.append(FinalRun(entry, side, side, seed, entry.runs, settings[side]))
    # what a call before had no time for
    for run in runs:
        if run.look() == FINISHED and not stop.reason:
            final_evaluation.evaluate(run, stop)
    _train_all(runs, entry.runs, launcher, stop)
    return runs


def _train_all(runs: Sequence[EntryRun], out: Path, launcher: list[str], stop: Stop) -> None:
    """Raises RunError where one came to no end."""
    sweep.train_all(list(runs), out, launcher, [], stop)
    unfinished = [run.name for run in runs if run.status not in (FINISHED, DIVERGED)]
    if unfinished and not stop.reason:
        raise RunError(
            f"not finished: {', '.join(unfinished)}; what stood in the way is told above, and the"
            " same command tries again"
        )


def table(entry: Entry, runs: Sequence[EntryRun]) -> str:
    """What the final runs came to, as lines of text."""
    record = starts.read(entry)
    rows: list[Sequence[str]] = [HEAD]
    for run in runs:
        schedule = run.config.schedule
        own_starts = [start for start in record if start.run == run.record]
        abandoned = sum(start.is_abandoned for start in own_starts)
        rate = "-" if schedule is None else f"{schedule.max_lr:g}"
        count = f"{len(own_starts)} ({abandoned} abandoned)" if abandoned else f"{len(own_starts)}"
        rows.append((run.name, f"{run.last_step:,}", rate, _quality(run), count))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def _quality(run: EntryRun) -> str:
    """Nats per byte on the whole split, or what became of the run."""
    if run.status != FINISHED:
        return run.status
    saved = read_config(run.config.run_dir / CONFIG)
    split = run.config.options.eval_data_split
    evaluation = evaluations.read(run.config.run_dir, saved, split, run.last_step)
    return "not evaluated" if evaluation is None else f"{evaluation['normalised_loss']:.5f}"


def _what_comes_next(entry: Entry, runs: Sequence[EntryRun]) -> str:
    lines = []
    diverged = [run.name for run in runs if run.status == DIVERGED]
    if diverged:
        lines.append(f"diverged, which is a result, and not trained again: {', '.join(diverged)}")
    seeds = {run.seed for run in runs}
    remaining = [f"{seed}" for seed in entry.seeds if seed not in seeds]
    if remaining:
        lines.append(f"declared, and not among these: the seeds {', '.join(remaining)}")
    return "\n".join([*lines, f"next: python tools/referee.py judge {entry.path}"])

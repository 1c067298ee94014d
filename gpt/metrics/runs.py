"""Runs read back from their folders: metrics.jsonl and config.yaml alone, without torch.

Steps that were lost (a kill, a rewind, a restart) stand in metrics.jsonl twice. What counts is the
course that led to the last line: a line of a step takes away earlier lines of that step and later
ones, `resume` and `rewind` those after the step they go back to. Of a branch, steps before its
first are its trunk's.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpt.config.saved import CONFIG, read_run_config
from gpt.errors import UserError, in_brief
from gpt.escaping import in_one_line
from gpt.metrics import events
from gpt.metrics.chain import Follower, is_whole, lines_of
from gpt.metrics.events import CURVES, METRICS
from gpt.metrics.lines import parse
from gpt.metrics.run import Run
from gpt.quantities import contradiction
from gpt.reading import open_regular
from gpt.wording import first_of

# of metrics.jsonl: a million steps take a third of it
MOST_BYTES = 1 << 30
SHOWN_LINES = 10  # of those that are damaged
NAME_A_RUN = "give the folder that training made (--run_dir)"


def read_runs(paths: Iterable[str | Path], notices: list[str] | None = None) -> list[Run]:
    """Runs in their order; a folder of runs stands for all in it, 6h before 12h.

    notices: gets a sentence for each folder that holds no usable run, and for each damaged line of
    one. Raises UserError where a path does not exist, where no run is usable, and, without notices,
    where one is not.
    """
    places = [Path(path) for path in paths]
    for path in places:
        if not os.path.lexists(path):
            raise UserError(f"{path} does not exist", mend=NAME_A_RUN)
    folders = {}
    problems: list[UserError] = []
    for path in places:
        problems_of_path: list[UserError] = []
        for folder in _run_folders(path, problems_of_path):
            folders[folder.resolve()] = folder
        problems += problems_of_path
    runs = {}
    for whole_path, folder in folders.items():
        try:
            runs[whole_path] = read_run(folder)
        except UserError as problem:
            problems.append(problem)
    if problems and notices is None:
        raise problems[0]
    if not runs:
        raise UserError(f"no run can be used; {'; '.join(map(str, problems))}")
    for run, name in zip(runs.values(), _short_names(list(runs))):
        run.name = name
    if notices is not None:
        runs = _without_copies(runs, notices)
        notices += [f"left out: {problem}" for problem in problems]
        for run in runs.values():
            notices += run.notices
    return list(runs.values())


def _without_copies(runs: dict[Path, Run], notices: list[str]) -> dict[Path, Run]:
    """The runs without copies of a folder, which began at one time on one host with one seed."""
    first: dict[str, Run] = {}
    kept = {}
    for path, run in runs.items():
        starts = run.events.get(events.START, [])
        beginning = [starts[0].get(name) for name in ("time", "host", "seed")] if starts else []
        key = json.dumps([beginning, run.identity], default=str)
        if beginning and None not in beginning and key in first:
            notices.append(f"{run.name} is left out: it is a copy of {first[key].name}")
            continue
        first.setdefault(key, run)
        kept[path] = run
    return kept


def _run_folders(path: Path, problems: list[UserError]) -> list[Path]:
    """The run's folder itself, or the folders of runs in it, those of which nothing can be read
    too. problems: gets why a folder cannot be looked into."""
    try:
        if _holds_run(path):
            return [path]
        entries = list(os.scandir(path)) if path.is_dir() else []
    except OSError as error:
        problems.append(_cannot_enter(path, error))
        return []
    inside = []
    names = [entry.name for entry in entries if _may_be_folder(entry)]
    for name in sorted(names, key=_natural):
        try:
            if _holds_run(path / name):
                inside.append(path / name)
        except OSError as error:
            problems.append(_cannot_enter(path / name, error))
    if not inside and not problems:
        reason = f"{path} holds no run (no {METRICS}), nor do the folders in it"
        problems.append(UserError(reason, mend=NAME_A_RUN))
    return inside


def _may_be_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link that leads nowhere."""
    if not entry.is_symlink():
        return entry.is_dir()
    try:
        return stat.S_ISDIR(entry.stat().st_mode)
    except OSError:
        return True


def _holds_run(folder: Path) -> bool:
    """Raises OSError where the folder cannot be looked into."""
    try:
        os.lstat(folder / METRICS)
    except NotADirectoryError:
        return False
    except FileNotFoundError:
        os.stat(folder)
        return False
    return True


def _cannot_enter(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder} cannot be looked into ({error.strerror})",
        mend="have it made readable, or name the runs that are to be read",
    )


def _natural(name: str) -> list:
    """A key by which names sort as their numbers do: 0.25h, 0.5h, 6h, 12h."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]


def read_run(path: Path) -> Run:
    """One run's folder. Raises UserError where it has no config.yaml that tells what was run."""
    if not (path / CONFIG).is_file():
        raise UserError(
            f"{path} has no {CONFIG}, which tells what was run",
            mend="copy it from the run's folder",
        )
    run = Run(path, read_run_config(path / CONFIG), str(path))
    _read_metrics(run)
    if run.first_step:
        _take_away_before(run.events, run.first_step)
    return run


def _read_metrics(run: Run) -> None:
    path = run.path / METRICS
    damaged: list[int] = []
    follower = Follower()
    try:
        with open_regular(path, MOST_BYTES) as file:
            for number, line in enumerate(lines_of(file), 1):
                event = parse(line)
                if event is not None:
                    _require_agreement(event, path, number)
                if not follower.follows(line, event is not None):
                    raise _not_the_next(path, number)
                if event is not None:
                    event.pop("chain", None)
                    _add(run.events, event)
                    run.last_event = event
                elif line.strip() and is_whole(line) and len(damaged) <= SHOWN_LINES:
                    damaged.append(number)
    except OSError as error:
        raise UserError(f"cannot read {in_brief(error, path)}") from error
    if damaged:
        numbers = first_of(damaged, SHOWN_LINES)
        which = f"lines {numbers} are" if len(damaged) > 1 else f"line {numbers} is"
        run.notices.append(f"{path}: {which} damaged and left out")


def _require_agreement(event: dict, path: Path, number: int) -> None:
    """Raise UserError where the figures of an evaluation contradict themselves. path, number: of
    its line."""
    if event["event"] not in (events.EVAL, events.FINAL_EVAL):
        return
    problem = contradiction(event)
    if problem:
        raise UserError(
            f"{path}:{number} contradicts itself: {problem}",
            mend="bring back the line that training wrote",
        )


def _not_the_next(path: Path, number: int) -> UserError:
    problem = "does not follow from the line before it: a line was changed, added or removed"
    if number == 1:
        problem = "is not the first line that training wrote, or was changed"
    return UserError(f"{path}:{number} {problem}", mend="bring back the file that training wrote")


def _add(history: dict, event: dict) -> None:
    """Add an event to {kind: [event]}, and take away the lines of the courses that it ends."""
    kind = event["event"]
    step = event["step"]
    if kind == events.RESUME:
        _take_away(history, CURVES, step)
    elif kind == events.REWIND:
        _take_away(history, CURVES, event.get("to"))
    elif kind == events.EVAL and event.get("split") is not None:
        _take_away_split(history, step - 1, event["split"])
    elif kind in CURVES:
        _take_away(history, (kind,), step - 1)
    # a run that was started again without a checkpoint tells so by nothing else
    if kind == events.TRAIN:
        _take_away(history, CURVES, step)
        _take_away(history, (events.EVAL, events.FINAL_EVAL), step - 1)
    history.setdefault(kind, []).append(event)


def _take_away_before(history: dict, first: int) -> None:
    """Take away the lines of a branch that are of steps its trunk made: those of an attempt that
    began from an earlier checkpoint."""
    for kind in history.keys() & set(CURVES):
        earliest = first if kind in (events.EVAL, events.FINAL_EVAL) else first + 1
        history[kind] = [line for line in history[kind] if line["step"] >= earliest]


def _take_away(history: dict, kinds: tuple, after: Any) -> None:
    """Take away the lines of steps after `after`, which a damaged line may not have."""
    if type(after) is not int:
        return
    for kind in kinds:
        lines = history.get(kind, [])
        while lines and lines[-1]["step"] > after:
            lines.pop()


def _take_away_split(history: dict, after: int, split: str) -> None:
    """Take away the evaluations of a split after a step."""
    lines = history.get(events.EVAL, [])
    of_others = []
    while lines and lines[-1]["step"] > after:
        line = lines.pop()
        if line.get("split") != split:
            of_others.append(line)
    lines += reversed(of_others)


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of paths, in one line each, as few as tell them apart."""
    names = []
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = [in_one_line("/".join(folder.parts[-parts:])) for folder in folders]
        if len(set(names)) == len(folders):
            return names
    # of names that differ in what a line cannot show
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]

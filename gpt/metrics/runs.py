"""Runs read back from their folders: metrics.jsonl and config.yaml alone, without torch.

Steps that were lost (a kill, a rewind, a restart) stand in metrics.jsonl twice. What counts is the
course that led to the last line: a line of a step takes away earlier lines of that step and later
ones, `resume` and `rewind` those after the step they go back to.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpt.config.saved import CONFIG, read_run_config
from gpt.errors import UserError, in_brief
from gpt.metrics import events
from gpt.metrics.events import CURVES, METRICS
from gpt.metrics.lines import parse
from gpt.metrics.run import Run
from gpt.quantities import contradiction
from gpt.wording import first_of

NAME_A_RUN = "give the folder that training made (--run_dir)"


def read_runs(paths: Iterable[str | Path], notices: list[str] | None = None) -> list[Run]:
    """Runs in their order; a folder of runs stands for all in it, 6h before 12h.

    notices: gets a sentence for each folder that holds no usable run, and for each damaged line of
    one. Raises UserError where a path does not exist, where no run is usable, and, without notices,
    where one is not.
    """
    places = [Path(path) for path in paths]
    for path in places:
        if not path.exists():
            raise UserError(f"{path} does not exist", mend=NAME_A_RUN)
    folders = {}
    problems = []
    for path in places:
        inside = _run_folders(path)
        if not inside:
            reason = f"{path} holds no run (no {METRICS}), nor do the folders in it"
            problems.append(UserError(reason, mend=NAME_A_RUN))
        for folder in inside:
            folders[folder.resolve()] = folder
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


def _run_folders(path: Path) -> list[Path]:
    """The run's folder itself, or the folders of runs in it."""
    if (path / METRICS).is_file():
        return [path]
    inside = [file.parent for file in path.glob(f"*/{METRICS}")]
    return sorted(inside, key=lambda folder: _natural(folder.name))


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
    return run


def _read_metrics(run: Run) -> None:
    damaged = []
    try:
        lines = (run.path / METRICS).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {in_brief(error, run.path / METRICS)}") from error
    # what follows the last line's end: nothing, or a line that is being written
    last = len(lines)
    for number, line in enumerate(lines, 1):
        event = parse(line)
        if event is not None:
            _require_agreement(event, f"{run.path / METRICS}:{number}")
            _add(run.events, event)
        elif line.strip() and number != last:
            damaged.append(number)
    if damaged:
        numbers = first_of(damaged, shown=10)
        which = f"lines {numbers} are" if len(damaged) > 1 else f"line {numbers} is"
        run.notices.append(f"{run.path / METRICS}: {which} damaged and left out")


def _require_agreement(event: dict, where: str) -> None:
    """Raise UserError where the figures of an evaluation contradict themselves."""
    if event["event"] not in (events.EVAL, events.FINAL_EVAL):
        return
    problem = contradiction(event)
    if problem:
        raise UserError(
            f"{where} contradicts itself: {problem}",
            mend="bring back the line that training wrote",
        )


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
    lines[:] = [line for line in lines if line["step"] <= after or line.get("split") != split]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of paths, as few as tell them apart."""
    parts = 1
    while True:
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(folders):
            return names
        parts += 1

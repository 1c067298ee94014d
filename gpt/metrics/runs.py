"""Runs read back from their folders: metrics.jsonl and config.yaml alone, without torch.

Steps that were lost (a kill, a rewind, a restart) stand in metrics.jsonl twice. What counts is the
course that led to the last line: a line of a step takes away earlier lines of that step and later
ones, `resume` and `rewind` those after the step they go back to.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config.identity import changes_of, identity, sequences_until
from gpt.config.saved import CONFIG, read_run_config
from gpt.config.shape import ModelConfig, family
from gpt.errors import UserError, in_brief
from gpt.metrics import events
from gpt.metrics.events import AXES, CURVES, METRICS
from gpt.metrics.lines import parse
from gpt.quantities import contradiction
from gpt.wording import first_of, listed

# axes that follow exactly from a run's config.yaml
COMPUTE = ("tokens", "flops", "reference_hours")


@dataclass
class Run:
    """A run's folder as it is now. Made by `read_runs`.

    events: {kind: [event]}, in the order of the course; lines of abandoned courses are left out of
    CURVES.
    """

    path: Path
    config: dict
    name: str = ""  # as short as it is distinct among the runs read together
    events: dict = field(default_factory=dict)
    notices: list = field(default_factory=list)  # sentences on what could not be read

    @property
    def options(self) -> dict:
        return self.config["run"]["gpt"]

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(**self.config["model"])

    @property
    def fingerprint(self) -> str | None:
        """sha256 of the dataset's manifest."""
        return (self.config.get("dataset") or {}).get("fingerprint")

    @property
    def family(self) -> str:
        return family(self.config)

    @property
    def variant(self) -> str | None:
        """The free name that its method was given."""
        return self.options.get("variant")

    @property
    def identity(self) -> dict[str, Any]:
        """{path: value} of all that seeds of it have in common."""
        return identity(self.config)

    @property
    def code(self) -> str | None:
        """The hash of the code that made its curve; None where it does not tell."""
        return (self.config.get("code") or {}).get("hash")

    @property
    def parameters(self) -> int:
        """The module's, where config.yaml tells them; else those that the shape has."""
        return self.config.get("parameters") or self.model.parameters()

    def tokens_until(self, step: int) -> int:
        """Training tokens of the steps up to `step`, each at the batch that it had."""
        batch_size = self.config["batch"]["global_size"]
        sequences = sequences_until(step, batch_size, changes_of(self.config))
        return sequences * self.model.seq_len

    @property
    def tokens_per_step(self) -> int:
        return self.config["batch"]["global_size"] * self.config["model"]["seq_len"]

    @property
    def last_step(self) -> int:
        """Optimiser steps completed, as far as the lines tell."""
        kinds = (events.TRAIN, events.EVAL, events.FINAL_EVAL)
        lines = [event for kind in kinds for event in self.events.get(kind, [])]
        return max((event["step"] for event in lines), default=0)

    @property
    def finished(self) -> bool:
        """Whether the last of its steps is done, and evaluated where evaluation is on; on the whole
        split where `final_eval` asks for that."""
        planned = self.options["max_train_steps"]
        if self.last_step != planned or self._lacks_training:
            return False
        if self.options.get("final_eval"):
            whole = self.whole()
            return whole is not None and whole["step"] == planned
        if (self.options.get("eval_every") or 0) <= 0:
            return True
        last_evaluation = self.final()
        return last_evaluation is not None and last_evaluation["step"] == planned

    @property
    def state(self) -> str:
        """In words: finished, or how far it is."""
        planned = self.options["max_train_steps"]
        if self.finished:
            is_evaluated = self.final() is not None or self.whole() is not None
            return "finished" if is_evaluated else "finished, and never evaluated"
        if self.last_step > planned:
            return (
                f"at step {self.last_step:,}, and its {CONFIG} ends at {planned:,}: one of the two"
                " is not as training wrote it"
            )
        if self.last_step == planned and self._lacks_training:
            return f"evaluated at step {planned:,}, and its {METRICS} has no line of training"
        if self.last_step == planned:
            return (
                f"at its last step, {planned:,}, and its evaluation is missing: the command that"
                " trained it makes up for it"
            )
        return f"at step {self.last_step:,} of {planned:,}"

    @property
    def _lacks_training(self) -> bool:
        """Whether there is no line of training, where its options make some."""
        every = self.options.get("log_metrics_every", 1)
        is_due = every is not None and 0 < every <= self.options["max_train_steps"]
        return is_due and not self.events.get(events.TRAIN)

    def planned(self, axis: str) -> float | None:
        """Its compute class: what the whole run takes, over "tokens", "flops" or
        "reference_hours"; None where it has no hours of a reference accelerator."""
        return self._compute(axis, self.options["max_train_steps"])

    @property
    def reference_speed(self) -> float | None:
        """Tokens per second of the reference accelerator with this model; None where the run tells
        none, or one that was measured for another model or precision."""
        flops = self.options.get("reference_flops_per_token")
        precision = self.options.get("reference_precision")
        if flops not in (None, self.model.matmul_flops_per_token()):
            return None
        if precision not in (None, self.config.get("precision")):
            return None
        return self.options.get("tokens_per_second")

    @property
    def tells_reference(self) -> bool:
        """Whether its file says which model its throughput was measured for."""
        return self.options.get("reference_flops_per_token") is not None

    def curve(self, kind: str, split: str | None = None) -> list:
        """Events of one of CURVES by rising step; those of `split` where they are evaluations."""
        curve = self.events.get(kind, [])
        if kind != events.EVAL:
            return curve
        return [event for event in curve if event.get("split") == split]

    def splits(self) -> list:
        """Splits that were evaluated, the one that the configuration names first."""
        splits = {event.get("split") for event in self.events.get(events.EVAL, [])}
        own = self.options.get("eval_data_split")
        return sorted(splits, key=lambda split: (split != own, str(split)))

    def final(self) -> dict | None:
        """The last evaluation of the configuration's split."""
        evaluations = self.curve(events.EVAL, self.options.get("eval_data_split"))
        return evaluations[-1] if evaluations else None

    def whole(self) -> dict | None:
        """The last evaluation of the whole split that training made (final_eval)."""
        split = self.options.get("eval_data_split")
        of_split = [
            event for event in self.events.get(events.FINAL_EVAL, []) if event.get("split") == split
        ]
        return of_split[-1] if of_split else None

    def over(self, axis: str, curve: list) -> np.ndarray | None:
        """Where a curve's events lie on one of AXES, float64; None where that is not to be had.

        Lines of older runs hold no axes: all but the measured hours follow exactly from
        config.yaml.
        """
        if axis == "reference_hours" and self.reference_speed is None:
            return None
        key = AXES[axis].key
        places: list[Any]
        if all(key in event for event in curve):
            places = [event[key] for event in curve]
        elif axis in COMPUTE:
            places = [self._compute(axis, event["step"]) for event in curve]
        else:
            return None
        return None if None in places else np.array([_number(place) for place in places])

    def _compute(self, axis: str, step: int) -> float | None:
        """What the steps up to `step` take, over one of COMPUTE."""
        tokens = self.tokens_until(step)
        if axis == "tokens":
            return tokens
        if axis == "flops":
            return tokens * self.model.matmul_flops_per_token()
        speed = self.reference_speed
        return tokens / speed / 3600 if speed else None


def missing_axis(axis: str, runs: Sequence[Run]) -> str:
    """A sentence on runs for which an axis is not to be had."""
    names = listed([run.name for run in runs], shown=3)
    if axis == "reference_hours":
        return (
            f"no reference accelerator-hours for {names}: config.yaml has no gpt.tokens_per_second"
            " that was measured for its model, which tools/throughput.py --write_config writes into"
            " a class's file"
        )
    return f"no {AXES[axis].label} for {names}: {METRICS} does not hold them"


def values(curve: Iterable[dict], name: str | Callable[[dict], Any]) -> np.ndarray:
    """A number of every event, float64; NaN where it is absent, null or no number. name: "loss",
    "seconds/data" for one inside a block, or a function that makes a number of an event."""
    numbers = []
    for event in curve:
        value = _computed(event, name) if callable(name) else _nested(event, name)
        numbers.append(_number(value))
    return np.array(numbers)


def _computed(event: dict, function: Callable[[dict], Any]) -> Any:
    try:
        return function(event)
    # of an event that lacks a number, or has one that no float can hold
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None


def _nested(event: dict, name: str) -> Any:
    value: Any = event
    for part in name.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


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

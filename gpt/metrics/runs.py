"""Runs read back from their folders: metrics.jsonl and config.yaml alone, without torch.

Steps that were lost (a kill, a rewind, a restart) stand in metrics.jsonl twice. What counts is the
course that led to the last line: a line of a step takes away earlier lines of that step and later
ones, `resume` and `rewind` those after the step they go back to.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt.config.saved import CONFIG, read_config, require_run_config
from gpt.config.shape import ModelConfig, family
from gpt.errors import UserError
from gpt.metrics.events import AXES, CURVES, METRICS


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
        return self.config.get("dataset", {}).get("fingerprint")

    @property
    def family(self) -> str:
        return family(self.config)

    @property
    def tokens_per_step(self) -> int:
        return self.config["batch"]["global_size"] * self.config["model"]["seq_len"]

    @property
    def last_step(self) -> int:
        """Optimiser steps completed, as far as the lines tell."""
        return max(
            (e["step"] for kind in ("train", "eval") for e in self.events.get(kind, [])), default=0
        )

    @property
    def finished(self) -> bool:
        """Whether the last of its steps is done, and evaluated where evaluation is on."""
        planned = self.options["max_train_steps"]
        evaluated = (
            self.options.get("eval_every", 0) <= 0 or (self.final() or {}).get("step") == planned
        )
        return self.last_step >= planned and evaluated

    @property
    def state(self) -> str:
        """In words: finished, or how far it is."""
        if self.finished:
            return "finished" if self.final() else "finished, and never evaluated"
        return f"at step {self.last_step:,} of {self.options['max_train_steps']:,}"

    @property
    def planned_reference_hours(self) -> float | None:
        """Its compute class: hours that the reference accelerator takes for the whole run."""
        return self._reference_hours(self.options["max_train_steps"])

    def curve(self, kind: str, split: str | None = None) -> list:
        """Events of one of CURVES by rising step; those of `split` where they are evaluations."""
        found = self.events.get(kind, [])
        return [e for e in found if e.get("split") == split] if kind == "eval" else found

    def splits(self) -> list:
        """Splits that were evaluated, the one that the configuration names first."""
        found = dict.fromkeys(e.get("split") for e in self.events.get("eval", []))
        return sorted(
            found, key=lambda split: (split != self.options.get("eval_data_split"), str(split))
        )

    def final(self) -> dict | None:
        """The last evaluation of the configuration's split."""
        return next(reversed(self.curve("eval", self.options.get("eval_data_split"))), None)

    def over(self, axis: str, events: list) -> np.ndarray | None:
        """Where events lie on one of AXES, float64; None where that is not to be had.

        Lines of older runs hold no axes: all but the measured hours follow exactly from
        config.yaml.
        """
        key, steps = AXES[axis].key, [e["step"] for e in events]
        if all(key in e for e in events):
            found = [e[key] for e in events]
        elif key == "train_tokens":
            found = [step * self.tokens_per_step for step in steps]
        elif key == "flops":
            per_step = self.tokens_per_step * self.model.matmul_flops_per_token()
            found = [step * per_step for step in steps]
        elif key == "reference_hours":
            found = [self._reference_hours(step) for step in steps]
        else:
            return None
        return None if None in found else np.array([_number(x) for x in found])

    def _reference_hours(self, step):
        speed = self.options.get("tokens_per_second")
        return step * self.tokens_per_step / speed / 3600 if speed else None


def missing_axis(axis: str, runs) -> str:
    """A sentence on runs for which an axis is not to be had."""
    names = ", ".join(run.name for run in runs[:3]) + (
        f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    )
    if axis == "reference_hours":
        return (
            f"no reference accelerator-hours for {names}: config.yaml has no gpt.tokens_per_second,"
            " the reference's throughput, which tools/throughput.py writes into a class's file"
        )
    return f"no {AXES[axis].label} for {names}: {METRICS} does not hold them"


def values(events: list, name) -> np.ndarray:
    """A number of every event, float64; NaN where it is absent, null or no number. name: "loss",
    "seconds/data" for one inside a block, or a function that makes a number of an event."""
    found = []
    for event in events:
        if callable(name):
            found.append(_made(name, event))
            continue
        value = event
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        found.append(_number(value))
    return np.array(found)


def _made(function, event) -> float:
    try:
        return _number(function(event))
    # of an event that lacks a number
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return math.nan


def _number(value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def read_runs(paths) -> list:
    """Runs in their order; a folder of runs stands for all in it, 6h before 12h. Raises UserError
    where one holds no run."""
    folders = {}
    for path in map(Path, paths):
        found = [path / METRICS] if (path / METRICS).is_file() else path.glob(f"*/{METRICS}")
        inside = sorted((file.parent for file in found), key=lambda folder: _natural(folder.name))
        if not inside:
            what = (
                "does not exist"
                if not path.exists()
                else f"holds no run (no {METRICS}), nor do the folders in it"
            )
            raise UserError(f"{path} {what}: give the folder that training made (--run_dir)")
        folders |= {folder.resolve(): folder for folder in inside}
    runs = [read_run(folder) for folder in folders.values()]
    for run, name in zip(runs, _short_names(list(folders))):
        run.name = name
    return runs


def _natural(name):
    """A key by which names sort as their numbers do: 0.25h, 0.5h, 6h, 12h."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]


def read_run(path: Path) -> Run:
    """One run's folder. Raises UserError where it has no config.yaml that tells what was run."""
    if not (path / CONFIG).is_file():
        raise UserError(
            f"{path} has no {CONFIG}, which tells what was run: copy it from the run's folder"
        )
    config = read_config(path / CONFIG)
    require_run_config(path, config)
    run = Run(path, config, str(path))
    _read_metrics(run)
    return run


def _read_metrics(run):
    damaged = []
    lines = (run.path / METRICS).read_bytes().split(b"\n")
    # what follows the last line's end: nothing, or a line that is being written
    last = len(lines)
    for number, line in enumerate(lines, 1):
        event = _parse(line)
        if event is not None:
            _add(run.events, event)
        elif line.strip() and number != last:
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:10])) + (", …" if len(damaged) > 10 else "")
        many = len(damaged) > 1
        run.notices.append(
            f"{run.path / METRICS}: line{'s' * many} {shown} {'are' if many else 'is'} damaged and"
            " left out"
        )


def _parse(line):
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = (
        isinstance(event, dict)
        and isinstance(event.get("event"), str)
        and type(event.get("step")) is int
    )
    return event if whole else None


def _add(events, event):
    kind, step = event["event"], event["step"]
    if kind in ("resume", "rewind"):
        _take_away(events, CURVES, (event.get("to") if kind == "rewind" else step), None)
    elif kind in CURVES:
        _take_away(events, (kind,), step - 1, event.get("split"))
    # a run that was started again without a checkpoint tells so by nothing else
    if kind == "train":
        _take_away(events, CURVES, step, None)
        _take_away(events, ("eval",), step - 1, None)
    events.setdefault(kind, []).append(event)


def _take_away(events, kinds, after, split):
    """Take away the lines of steps after `after`; of `split` only, where one is given."""
    if type(after) is not int:
        return
    for kind in kinds:
        found = events.get(kind, [])
        while found and found[-1]["step"] > after and split is None:
            found.pop()
        if split is not None:
            found[:] = [e for e in found if e["step"] <= after or e.get("split") != split]


def _short_names(folders) -> list:
    """The last parts of paths, as few as tell them apart."""
    parts = 1
    while len(set(names := ["/".join(folder.parts[-parts:]) for folder in folders])) < len(folders):
        parts += 1
    return names

"""Where a run's numbers go: metrics.jsonl always, TensorBoard and wandb if asked."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.metrics import events
from gpt.metrics.events import AXES, METRICS, TENSORBOARD, finite
from gpt.metrics.terminal import say_line

# metrics that TensorBoard gets over every axis
OVER_ALL_AXES = ("loss", "normalised_ppl")


class Sink(Protocol):
    """A place for events. Its methods raise OSError where it cannot be written to."""

    name: str  # what a person calls it

    def write(self, event: dict) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one JSON object a line, appended. Non-finite numbers are written as null. What
    a full disk does not take is written with a later line."""

    name = METRICS

    def __init__(self, folder: Path):
        _drop_partial_line(folder / self.name)
        self._file = open(folder / self.name, "ab", buffering=0)
        self._unwritten = b""

    def write(self, event: dict) -> None:
        self._unwritten += json.dumps(finite(event), allow_nan=False).encode() + b"\n"
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        self._file.close()


def _drop_partial_line(path: Path) -> None:
    """Cut off a last line without its end, which a killed run may leave behind."""
    if not path.exists() or not path.stat().st_size:
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _scalars(event: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) pairs of an event, nested names joined by "/"."""
    for key, value in event.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and key not in ("step", "time"):
            yield prefix + key, value


def _prefix(event: dict) -> str:
    kind = event["event"]
    return f"{kind}/{event['split']}/" if "split" in event else f"{kind}/"


class TensorBoard:
    """Scalars over steps. Its axis is one whole number per curve, so losses and perplexities are
    written once more over every other axis, as over_train_tokens/…, over_gigaflops/…,
    over_seconds/… and over_reference_seconds/…."""

    name = "TensorBoard's file"

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=10)  # all that a killed run loses

    def write(self, event: dict) -> None:
        prefix = _prefix(event)
        for name, value in _scalars(event, prefix):
            self._writer.add_scalar(name, value, event["step"])
        for axis in AXES.values():
            if axis.key == "step" or event.get(axis.key) is None:
                continue
            place = round(event[axis.key] * axis.per_unit)
            for metric in OVER_ALL_AXES:
                if event.get(metric) is not None:
                    name = f"over_{axis.whole}/{prefix}{metric}"
                    self._writer.add_scalar(name, event[metric], place)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. Offline, so nothing is uploaded, unless the environment's WANDB_MODE says
    otherwise.

    The axes are logged under their own names, beside each metric, so that any of them can be chosen
    in a chart. By default evaluations are drawn over the reference's hours, or tokens where it has
    none, and all else over steps.
    """

    name = "wandb's folder"

    def __init__(self, folder: Path, project: str, name: str, notes: str, run: dict):
        """run: what config.yaml holds."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")  # wandb checks it
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                notes=notes,
                config=run,
                dir=str(folder),
                mode=mode,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            first_line = str(error).partition("\n")[0]
            raise UserError(
                f"wandb does not begin ({first_line})",
                mend="`wandb login` first, or leave WANDB_MODE unset, which keeps the run offline",
            ) from error
        for axis in AXES.values():
            self._run.define_metric(axis.key, hidden=True)
        has_reference = run["run"]["gpt"]["tokens_per_second"]
        axis_of_evaluations = AXES["reference_hours"] if has_reference else AXES["tokens"]
        self._axis_of = {events.EVAL: axis_of_evaluations.key}
        self._defined: set[str] = set()

    def write(self, event: dict) -> None:
        kind = event["event"]
        if kind not in self._defined:
            self._defined.add(kind)
            self._run.define_metric(f"{kind}/*", step_metric=self._axis_of.get(kind, "step"))
        axes = {}
        metrics = dict(event)
        for axis in AXES.values():
            value = metrics.pop(axis.key, None)
            if value is not None:
                axes[axis.key] = float(value)  # flops may be beyond 2^63
        scalars = dict(_scalars(metrics, _prefix(event)))
        self._run.log({**axes, "step": event["step"], **scalars})

    def close(self) -> None:
        self._run.finish()


class Metrics:
    """All sinks of a run, on rank 0; on the other ranks an object that does nothing. A sink that
    cannot be written to, on a full disk perhaps, is named once, and the run goes on.

    Nothing is kept anywhere until `open`.
    """

    def __init__(self, active: bool):
        self._active = active
        self._sinks: list[Sink] = []
        self._failing: set[str] = set()

    def open(self, run_dir: Path, config: Config, run: dict) -> None:
        """run: what config.yaml holds."""
        if not self._active:
            return
        options = config.options
        self._sinks.append(JsonLines(run_dir))
        if options.logger_type in ("tb", "all"):
            self._sinks.append(TensorBoard(run_dir / TENSORBOARD))
        if options.logger_type in ("wandb", "all"):
            project = options.wandb_project_name
            self._sinks.append(Wandb(run_dir, project, run_dir.name, options.comment, run))

    def write(self, event: dict) -> None:
        """event: {"event": kind, "step": optimiser steps completed, …}; the time of writing is
        added."""
        # what the machine is makes no curve
        sinks = self._sinks[:1] if event["event"] == events.START else self._sinks
        for sink in sinks:
            timed = {**event, "time": round(time.time(), 3)}
            self._try(sink, partial(sink.write, timed))

    def close(self) -> None:
        for sink in self._sinks:
            self._try(sink, sink.close)

    def _try(self, sink: Sink, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            if sink.name not in self._failing:
                self._failing.add(sink.name)
                reason = error.strerror or error
                say_line(
                    f"WARNING: {sink.name} cannot be written to ({reason}): training goes on"
                    " without it",
                    sys.stderr,
                )

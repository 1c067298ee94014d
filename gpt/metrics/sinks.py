"""Where a run's numbers go: metrics.jsonl always, TensorBoard and wandb if asked, and a progress
line for a person.

Only rank 0 makes these; the other ranks get objects that do nothing.
"""

import json
import os
import sys
import time

from gpt.errors import UserError
from gpt.metrics.events import finite
from gpt.metrics.terminal import say_line

# what every train and eval line can be drawn over
AXES = ("step", "train_tokens", "flops", "hours", "reference_hours")


class JsonLines:
    """metrics.jsonl: one JSON object a line, appended. Non-finite numbers are written as null. What
    a full disk does not take is written with a later line."""

    name = "metrics.jsonl"

    def __init__(self, folder):
        _drop_partial_line(folder / self.name)
        self._file = open(folder / self.name, "ab", buffering=0)
        self._unwritten = b""

    def write(self, event: dict):
        self._unwritten += json.dumps(finite(event), allow_nan=False).encode() + b"\n"
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self):
        self._file.close()


def _drop_partial_line(path):
    """Cut off a last line without its end, which a killed run may leave behind."""
    if not path.exists() or not path.stat().st_size:
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _scalars(event: dict, prefix=""):
    """(name, number) pairs of an event, nested names joined by "/"."""
    for key, value in event.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and key not in ("step", "time")
        ):
            yield prefix + key, value


def _prefix(event):
    return f"{event['event']}/{event['split']}/" if "split" in event else f"{event['event']}/"


class TensorBoard:
    """Scalars over steps. Its axis is one whole number per curve, so losses and perplexities are
    written once more over every other axis, as over_train_tokens/…, over_gigaflops/…,
    over_seconds/… and over_reference_seconds/…."""

    name = "TensorBoard's file"

    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=10)  # all that a killed run loses

    def write(self, event):
        for name, value in _scalars(event, _prefix(event)):
            self._writer.add_scalar(name, value, event["step"])
        for axis, name, unit in (
            ("train_tokens", "train_tokens", 1),
            ("flops", "gigaflops", 1e-9),
            ("hours", "seconds", 3600),
            ("reference_hours", "reference_seconds", 3600),
        ):
            for key in ("loss", "normalised_ppl"):
                if event.get(axis) is not None and event.get(key) is not None:
                    self._writer.add_scalar(
                        f"over_{name}/{_prefix(event)}{key}", event[key], round(event[axis] * unit)
                    )

    def close(self):
        self._writer.close()


class Wandb:
    """Weights & Biases. Offline, so nothing is uploaded, unless the environment's WANDB_MODE says
    otherwise.

    The axes are logged under their own names, beside each metric, so that any of them can be chosen
    in a chart. By default evaluations are drawn over the reference's hours, or tokens where it has
    none, and all else over steps.
    """

    name = "wandb's folder"

    def __init__(self, folder, project, name, notes, config):
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                name=name,
                notes=notes,
                config=config,
                dir=str(folder),
                mode=os.environ.get("WANDB_MODE", "offline"),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb does not begin ({str(error).partition(chr(10))[0]}): `wandb login` first,"
                " or leave WANDB_MODE unset, which keeps the run offline"
            ) from error
        for axis in AXES:
            self._run.define_metric(axis, hidden=True)
        self._axis_of = {
            "eval": (
                "reference_hours" if config["run"]["gpt"]["tokens_per_second"] else "train_tokens"
            )
        }
        self._defined = set()

    def write(self, event):
        kind = event["event"]
        if kind not in self._defined:
            self._defined.add(kind)
            self._run.define_metric(f"{kind}/*", step_metric=self._axis_of.get(kind, "step"))
        # flops may be beyond 2^63
        axes = {axis: float(event[axis]) for axis in AXES if event.get(axis) is not None}
        rest = {key: value for key, value in event.items() if key not in AXES}
        self._run.log({**axes, "step": event["step"], **dict(_scalars(rest, _prefix(event)))})

    def close(self):
        self._run.finish()


class Metrics:
    """All sinks of a run. `write` takes an event: {"event": …, "step": …, …}. A sink that cannot be
    written to, on a full disk perhaps, is named once, and the run goes on."""

    def __init__(self, run_dir, config, resolved: dict, active: bool):
        self._sinks = []
        self._failing = set()
        if not active:
            return
        kind = config.options.logger_type
        self._sinks.append(JsonLines(run_dir))
        if kind in ("tb", "all"):
            self._sinks.append(TensorBoard(run_dir / "tensorboard"))
        if kind in ("wandb", "all"):
            self._sinks.append(
                Wandb(
                    run_dir,
                    config.options.wandb_project_name,
                    run_dir.name,
                    config.options.comment,
                    resolved,
                )
            )

    def write(self, event: dict):
        """event: {"event": kind, "step": optimiser steps completed, …}; the time of writing is
        added."""
        # what the machine is makes no curve
        for sink in self._sinks[:1] if event["event"] == "start" else self._sinks:
            self._try(sink, lambda: sink.write({**event, "time": round(time.time(), 3)}))

    def close(self):
        for sink in self._sinks:
            self._try(sink, sink.close)

    def _try(self, sink, work):
        try:
            work()
        except OSError as error:
            if sink.name not in self._failing:
                self._failing.add(sink.name)
                say_line(
                    f"WARNING: {sink.name} cannot be written to ({error.strerror or error}):"
                    " training goes on without it",
                    sys.stderr,
                )

"""Where a run's numbers go: metrics.jsonl always, TensorBoard and wandb if asked, and a progress line for a person.

Only rank 0 makes these; the other ranks get objects that do nothing.
"""

import json
import math
import os
import sys
import time

from tqdm import tqdm


class JsonLines:
    """metrics.jsonl: one JSON object a line, appended. Non-finite numbers are written as null."""

    def __init__(self, path):
        _drop_partial_line(path)
        self._file = open(path, "a", encoding="utf-8", buffering=1)

    def write(self, event: dict):
        self._file.write(json.dumps(_finite(event), allow_nan=False) + "\n")

    def close(self):
        self._file.close()


def _drop_partial_line(path):
    """Cut off a last line without its end, which a killed run may leave behind."""
    if not path.exists() or not path.stat().st_size:
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(event: dict, prefix=""):
    """(name, number) pairs of an event, nested names joined by "/"."""
    for key, value in event.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("step", "time"):
            yield prefix + key, value


def _prefix(event):
    return f"{event['event']}/{event['split']}/" if "split" in event else f"{event['event']}/"


class TensorBoard:
    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, event):
        for name, value in _scalars(event, _prefix(event)):
            self._writer.add_scalar(name, value, event["step"])

    def close(self):
        self._writer.close()


class Wandb:
    """Weights & Biases. Offline, so nothing is uploaded, unless the environment's WANDB_MODE says otherwise."""

    def __init__(self, folder, project, name, notes, config):
        import wandb

        self._run = wandb.init(project=project, name=name, notes=notes, config=config, dir=str(folder),
                               mode=os.environ.get("WANDB_MODE", "offline"),
                               settings=wandb.Settings(silent=True, console="off"))  # fmt: skip

    def write(self, event):
        self._run.log({"step": event["step"], **dict(_scalars(event, _prefix(event)))})

    def close(self):
        self._run.finish()


class Metrics:
    """All sinks of a run. `write` takes an event: {"event": …, "step": …, …}."""

    def __init__(self, run_dir, config, resolved: dict, active: bool):
        self._sinks = []
        if not active:
            return
        kind = config.options.logger_type
        self._sinks.append(JsonLines(run_dir / "metrics.jsonl"))
        if kind in ("tb", "all"):
            self._sinks.append(TensorBoard(run_dir / "tensorboard"))
        if kind in ("wandb", "all"):
            self._sinks.append(Wandb(run_dir, config.options.wandb_project_name, run_dir.name,
                                     config.options.comment, resolved))  # fmt: skip

    def write(self, event: dict):
        """event: {"event": kind, "step": optimiser steps completed, …}; the time of writing is added."""
        for sink in self._sinks:
            sink.write({**event, "time": round(time.time(), 3)})

    def close(self):
        for sink in self._sinks:
            sink.close()


class Clock:
    """Time spent on optimiser steps, with pauses for evaluations and checkpoints left out."""

    def __init__(self):
        self._running_since, self._spent = time.perf_counter(), 0.0

    def pause(self):
        self._spent, self._running_since = self.seconds(), None

    def go_on(self):
        self._running_since = time.perf_counter()

    def seconds(self) -> float:
        return self._spent + (time.perf_counter() - self._running_since if self._running_since is not None else 0.0)


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Progress:
    """What a person watching sees: a bar on a terminal, plain lines in a log."""

    def __init__(self, first: int, last: int, active: bool):
        self._active, self._last = active, last
        self._bar = None
        if active and sys.stderr.isatty():
            self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, leave=True)

    def advance(self):
        if self._bar is not None:
            self._bar.update()

    def rewind(self, step: int):
        """The run went back to an earlier step."""
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def say(self, text: str):
        if self._bar is not None:
            self._bar.write(text)
        elif self._active:
            print(text, flush=True)

    def report(self, step: int, loss: float, lr: float, tokens_per_second: float, seconds_left: float):
        text = f"loss {loss:.4f}  lr {lr:.2e}  {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.say(f"step {step:>{len(str(self._last))}}/{self._last}  {text}  ETA {duration(seconds_left)}")

    def close(self):
        if self._bar is not None:
            self._bar.close()

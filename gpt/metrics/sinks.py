"""Where a run's numbers go: metrics.jsonl always, TensorBoard and wandb if asked."""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpt.config.options import Options
from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.files import open_own, write_atomically
from gpt.metrics import chain, events
from gpt.metrics.events import AXES, CURVES, METRICS, TENSORBOARD, finite
from gpt.metrics.lines import parse
from gpt.metrics.terminal import say_line
from gpt.reading import name_of_open, open_regular, read_text

if TYPE_CHECKING:  # it loads torch
    from torch.utils.tensorboard import SummaryWriter

# metrics that TensorBoard gets over every axis
OVER_ALL_AXES = ("loss", "normalised_ppl")
WANDB = "wandb"  # the folder that wandb makes in the run's
# events at which metrics.jsonl is looked for under its name
LOOKED_AFTER = (events.EVAL, events.FINAL_EVAL, events.CHECKPOINT)
BLOCK = 1 << 16  # bytes of metrics.jsonl that are looked through at a time
WANDB_MODES = ("offline", "online", "shared", "disabled", "dryrun", "run")


class Sink(Protocol):
    """A place for events. Its methods raise OSError where it cannot be written to."""

    name: str  # what a person calls it

    def write(self, event: dict) -> None: ...

    def go_back(self, kept: Mapping[str, float] | None) -> None:
        """The run goes back to where `kept` says: {key of an axis: how far it is there}, None for
        its beginning. What was written from there on is of a course that was left."""

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one JSON object a line, appended, and chained to the line before it (see
    gpt.metrics.chain). Non-finite numbers are written as null. What a full disk does not take is
    written with a later line."""

    name = METRICS

    def __init__(self, folder: Path):
        path = folder / self.name
        descriptor = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        if os.fstat(descriptor).st_nlink > 1:  # the file of a copy of hard links, too
            with open(descriptor, "rb") as file:
                write_atomically(path, file.read())
            descriptor = open_own(path, os.O_RDWR | os.O_APPEND)
        self._go_on_in(descriptor)
        self._folder = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)

    def _go_on_in(self, descriptor: int) -> None:
        """Append to a file, after its last whole line."""
        _drop_partial_line(descriptor)
        self._chain = chain.before_next(descriptor)
        self._unwritten = b""
        self._file = open(descriptor, "ab", buffering=0)

    def write(self, event: dict) -> None:
        if event["event"] in LOOKED_AFTER:
            self._find_again()
        line = json.dumps(finite(event), allow_nan=False).encode()
        line, self._chain = chain.linked(line, self._chain)
        self._unwritten += line + b"\n"
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def _find_again(self) -> None:
        """Where the file has lost its name, to an editor perhaps, go on in the one of that name, in
        the folder that the run has, whatever that is called now."""
        path = Path(name_of_open(self._folder)) / self.name
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), os.fstat(self._file.fileno())):
                return
        if not path.parent.exists():  # of a system without /proc
            return
        descriptor = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._file.close()
        self._go_on_in(descriptor)
        say_line(
            f"WARNING: {self.name} was removed or replaced by another file: what is measured from"
            " now on goes there, what was measured lately may be lost",
            sys.stderr,
        )

    def go_back(self, kept: Mapping[str, float] | None) -> None:
        """Nothing: the event that says so is a line here."""

    def close(self) -> None:
        if not self._file.closed:
            os.close(self._folder)
        self._file.close()


def _drop_partial_line(descriptor: int) -> None:
    """Cut off a last line without its end, which a killed run may leave behind."""
    end = size = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - BLOCK)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(descriptor, begin + newline + 1)
            return
        end = begin
    if size:
        os.ftruncate(descriptor, 0)


def _last_steps(path: Path) -> dict[str, int]:
    """{kind: the largest step that a metrics.jsonl has a line of}, of the events that make
    curves."""
    steps: dict[str, int] = {}
    with open_regular(path) as file:
        for line in file:
            event = parse(line)
            if event is not None and event["event"] in CURVES:
                steps[event["event"]] = max(event["step"], steps.get(event["event"], 0))
    return steps


def _scalars(event: dict) -> Iterator[tuple[str, float]]:
    """(name, number) pairs of an event, nested names joined by "/"."""
    values = {key: value for key, value in event.items() if key not in ("step", "time")}
    yield from _numbers(values, _prefix(event))


def _prefix(event: dict) -> str:
    kind = event["event"]
    return f"{kind}/{event['split']}/" if "split" in event else f"{kind}/"


def _numbers(values: dict, prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + key, value


class _Board:
    """One of TensorBoard's folders. Its files are made with its first number."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._first: int | None = None  # place from which on what was written before is void

    def write(self, name: str, value: float, place: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self._folder),
                purge_step=self._first,
                flush_secs=10,  # all that a killed run loses
            )
        self._writer.add_scalar(name, value, place)

    def go_back(self, first: int) -> None:
        self.close()
        self._first = first

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class TensorBoard:
    """Scalars over steps. Its axis is one whole number per curve, so losses and perplexities are
    written once more over every other axis, as over_train_tokens/…, over_gigaflops/…,
    over_seconds/… and over_reference_seconds/…. These lie in folders of their own, since
    TensorBoard takes back steps of a folder, not of a curve."""

    name = "TensorBoard's file"

    def __init__(self, folder: Path):
        self._steps = _Board(folder)
        self._over = {
            axis: _Board(folder / f"over_{axis.whole}")
            for axis in AXES.values()
            if axis.key != "step"
        }

    def write(self, event: dict) -> None:
        scalars = dict(_scalars(event))
        for name, value in scalars.items():
            self._steps.write(name, value, event["step"])
        for axis, board in self._over.items():
            if event.get(axis.key) is None:
                continue
            place = axis.place(event[axis.key])
            for metric in OVER_ALL_AXES:
                name = f"{_prefix(event)}{metric}"
                if name in scalars:
                    board.write(f"over_{axis.whole}/{name}", scalars[name], place)

    def go_back(self, kept: Mapping[str, float] | None) -> None:
        self._steps.go_back(0 if kept is None else int(kept["step"]) + 1)
        for axis, board in self._over.items():
            if kept is None:
                board.go_back(0)
            elif kept.get(axis.key) is not None:
                board.go_back(axis.place(kept[axis.key]) + 1)

    def close(self) -> None:
        for board in (self._steps, *self._over.values()):
            board.close()


def require_loggers(options: Options) -> None:
    """Raise UserError where the environment is wrong for a logger that the run asks for."""
    mode = os.environ.get("WANDB_MODE", "offline")
    if options.logger_type in ("wandb", "all") and mode not in WANDB_MODES:
        raise UserError(
            f"the environment's WANDB_MODE is {mode!r}",
            mend=f"wandb has {', '.join(WANDB_MODES)}",
        )


class Wandb:
    """Weights & Biases. Offline, so nothing is uploaded, unless the environment's WANDB_MODE says
    otherwise.

    All that goes on from a run's checkpoints is one run there, by the id that FOLDER/wandb/id
    keeps. wandb takes nothing back, so steps that were lost are not sent again.

    The axes are logged under their own names, beside each metric, so that any of them can be chosen
    in a chart. By default evaluations are drawn over the reference's hours, or tokens where it has
    none, and all else over steps.
    """

    name = "wandb's folder"

    def __init__(self, folder: Path, config: Config, run: dict, goes_on: bool):
        """run: what config.yaml holds. goes_on: whether from a checkpoint in `folder`."""
        import wandb

        identifier, self._sent = _run_of_wandb(folder, goes_on)
        mode: Any = os.environ.get("WANDB_MODE", "offline")  # wandb's type has the names
        try:
            self._run = wandb.init(
                project=_project(config),
                name=os.environ.get("WANDB_NAME", folder.name),
                notes=config.options.comment or None,
                id=identifier,
                resume="allow",
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
        kinds = (events.EVAL, events.FINAL_EVAL)
        self._axis_of = dict.fromkeys(kinds, axis_of_evaluations.key)
        self._defined: set[str] = set()

    def write(self, event: dict) -> None:
        kind = event["event"]
        if kind in CURVES:
            if event["step"] <= self._sent.get(kind, -1):
                return
            self._sent[kind] = event["step"]
        if kind not in self._defined:
            self._defined.add(kind)
            self._run.define_metric(f"{kind}/*", step_metric=self._axis_of.get(kind, "step"))
        axes = {}
        metrics = dict(event)
        for axis in AXES.values():
            value = metrics.pop(axis.key, None)
            if value is not None:
                axes[axis.key] = float(value)  # flops may be beyond 2^63
        self._run.log({**axes, "step": event["step"], **dict(_scalars(metrics))})

    def go_back(self, kept: Mapping[str, float] | None) -> None:
        """Nothing: `write` knows what was sent."""

    def close(self) -> None:
        self._run.finish()


def _run_of_wandb(folder: Path, goes_on: bool) -> tuple[str, dict[str, int]]:
    """(id of the run, {kind of event: last step that was sent}); a run that begins anew has a new
    id. The environment's WANDB_RUN_ID is taken before it."""
    path = folder / WANDB / "id"
    known = read_text(path, most=1000).strip() if goes_on and path.is_file() else None
    identifier = os.environ.get("WANDB_RUN_ID") or known or secrets.token_hex(4)
    if identifier == known:
        return identifier, _last_steps(folder / METRICS)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, identifier + "\n")
    return identifier, {}


def _project(config: Config) -> str:
    """The one that the run names, else the environment's."""
    project = config.options.wandb_project_name
    is_default = config.sources.get("gpt.wandb_project_name", "default") == "default"
    return os.environ.get("WANDB_PROJECT", project) if is_default else project


class Metrics:
    """All sinks of a run, on rank 0; on the other ranks an object that does nothing. A sink that
    cannot be written to, on a full disk perhaps, is named once, and the run goes on.

    Nothing is kept anywhere until `open`.
    """

    def __init__(self, active: bool):
        self._active = active
        self._sinks: list[Sink] = []
        self._failing: set[str] = set()

    def open(
        self, run_dir: Path, config: Config, run: dict, kept: Mapping[str, float] | None
    ) -> None:
        """run: what config.yaml holds. kept: as for `go_back`, of the checkpoint that the run goes
        on from; None where it begins."""
        if not self._active:
            return
        kinds = config.options.logger_type
        self._sinks.append(JsonLines(run_dir))
        if kinds in ("tb", "all"):
            self._sinks.append(TensorBoard(run_dir / TENSORBOARD))
        if kinds in ("wandb", "all"):
            self._sinks.append(Wandb(run_dir, config, run, goes_on=kept is not None))
        self.go_back(kept)

    def write(self, event: dict) -> None:
        """event: {"event": kind, "step": optimiser steps completed, …}; the time of writing is
        added."""
        # what the run and its machine are makes no curve
        is_fact = event["event"] in (events.START, events.RESUME)
        sinks = self._sinks[:1] if is_fact else self._sinks
        for sink in sinks:
            timed = {**event, "time": round(time.time(), 3)}
            self._try(sink, partial(sink.write, timed))

    def go_back(self, kept: Mapping[str, float] | None) -> None:
        """The run goes back. kept: how far it is then, as in `Sink.go_back`."""
        for sink in self._sinks:
            self._try(sink, partial(sink.go_back, kept))

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

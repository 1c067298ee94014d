"""Checks of what happens before a model sees tokens: its file is run, and builds."""

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt.architecture.language_model import LanguageModel
from gpt.architecture.own_module import build_of
from gpt.contract.subject import Subject, own_name, same
from gpt.wording import listed, plural

# what code may change for all that runs beside it: {how messages call it: its value}
SETTINGS: dict[str, Callable[[], Any]] = {
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "torch's number of threads": torch.get_num_threads,
    "whether torch records gradients": torch.is_grad_enabled,
    "torch's autocast": lambda: torch.is_autocast_enabled("cpu"),
    "torch's anomaly detection": torch.is_anomaly_enabled,
    "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "torch's precision of matrix products": torch.get_float32_matmul_precision,
    "torch's setting of TF32": lambda: torch.backends.cudnn.allow_tf32,
    "torch's setting of cuDNN": lambda: torch.backends.cudnn.benchmark,
    "the environment": lambda: dict(os.environ),
    "the working directory": os.getcwd,
    "the path of imports": lambda: list(sys.path),
    "the number of processes' threads": threading.active_count,
}
# of what draws random numbers
STATES: dict[str, Callable[[], Any]] = {
    "torch's random numbers": lambda: torch.get_rng_state().tolist(),
    "NumPy's random numbers": lambda: str(np.random.get_state()),
    "Python's random numbers": random.getstate,
}


# files that Python opens to write to, while somebody looks
_opened: list[str] | None = None


def _hear(event: str, arguments: tuple) -> None:
    if event != "open" or _opened is None:
        return
    path, _, flags = arguments
    if isinstance(path, (str, os.PathLike)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _opened.append(os.path.abspath(path))


@cache
def _listen() -> None:
    sys.addaudithook(_hear)


@contextmanager
def _hearing_of_files() -> Iterator[list[str]]:
    """Inside, the list gets the names of files that are opened to be written to."""
    global _opened
    _listen()
    opened: list[str] = []
    _opened = opened
    try:
        yield opened
    finally:
        _opened = None


class Written:
    """Standard streams that keep nothing, and whether something was written to them."""

    def __init__(self) -> None:
        self.first = ""

    def write(self, text: str) -> int:
        self.first = self.first or text.strip()
        return len(text)

    def flush(self) -> None:
        pass


@contextmanager
def no_side_effects(subject: Subject, what: str, draws: bool = False) -> Iterator[None]:
    """Raise UserError where what runs inside changes settings of the process, or prints; settings
    are put right first.

    what: of the user's code that runs. draws: whether it may draw random numbers.
    """
    looked_at = SETTINGS if draws else {**SETTINGS, **STATES}
    before = {name: value() for name, value in looked_at.items()}
    streams = sys.stdout, sys.stderr
    written = Written()
    sys.stdout = sys.stderr = written  # type: ignore[assignment]
    try:
        with _hearing_of_files() as opened:
            yield
    finally:
        sys.stdout, sys.stderr = streams
        after = {name: value() for name, value in looked_at.items()}
        _restore(before)
    changed = [name for name, value in before.items() if after[name] != value]
    if changed:
        raise subject.mistake(
            f"{what} changes {listed(changed, shown=3)}",
            mend="leave that as it is: it is the run's, and every other run's in this process",
        )
    if written.first:
        raise subject.mistake(
            f"{what} prints {written.first.splitlines()[0][:60]!r}",
            mend="take that out: every rank would print it",
        )
    own_files = [file for file in opened if _is_beside(subject, file)]
    if own_files:
        raise subject.mistake(
            f"{what} writes {own_files[0]}", mend="take that out: every rank would write it"
        )


def _is_beside(subject: Subject, file: str) -> bool:
    """Whether a file is below the model file's folder or the working directory, where no library
    keeps what it has compiled."""
    folders = (subject.code.path.resolve().parent, Path.cwd())
    is_below = any(folder in Path(file).parents for folder in folders)
    return is_below and "__pycache__" not in Path(file).parts


def _restore(before: dict[str, Any]) -> None:
    """What later checks would stumble over."""
    torch.set_default_dtype(before["torch's default dtype"])
    if torch.get_default_device() != before["torch's default device"]:
        # None takes the mode away that stands between torch and all its functions
        torch.set_default_device(None)
    torch.set_num_threads(before["torch's number of threads"])
    torch.set_grad_enabled(before["whether torch records gradients"])
    torch.use_deterministic_algorithms(before["torch's deterministic algorithms"])
    torch.autograd.set_detect_anomaly(before["torch's anomaly detection"])
    torch.set_float32_matmul_precision(before["torch's precision of matrix products"])
    os.chdir(before["the working directory"])
    sys.path[:] = before["the path of imports"]


def imports(subject: Subject) -> str:
    """The file is run, defines build, and changes nothing of the process."""
    with no_side_effects(subject, "importing it"):
        build_of(subject.code)
    files = plural(len(subject.code.files), "file")
    return f"{files}, hash {subject.code.hash}; nothing else is changed by it"


def builds(subject: Subject) -> str:
    """build makes a module of fp32 parameters, and changes nothing of the process."""
    with no_side_effects(subject, "build", draws=True):
        parameters = subject.architecture.parameters()
    return f"{parameters:,} parameters"


def builds_again(subject: Subject) -> str:
    """build makes the same module every time, and other first weights of another seed."""
    architecture = subject.architecture
    require_same_buffers(subject)
    first = subject.first_weights
    again = _drawn(subject, subject.seed)
    if list(first) != list(again):
        raise subject.mistake(
            "build makes other parameters the second time", mend="let it depend on nothing else"
        )
    for name, values in first.items():
        if not same(values, again[name]):
            raise subject.mistake(
                f"build gives {own_name(name)} other first values the second time, though torch's"
                " seed is the same",
                mend="draw them by torch, on the CPU, without a generator of its own",
            )
    shapes = architecture.shapes()
    if shapes != {name: tuple(values.shape) for name, values in first.items()}:
        raise subject.mistake(
            "build makes other parameters with values than on torch's meta device",
            mend="let them depend on the shape and the options alone",
        )
    other = _drawn(subject, subject.seed + 1)
    drawn = [name for name, values in first.items() if values.unique().numel() > 1]
    if drawn and all(same(first[name], other[name]) for name in drawn):
        raise subject.mistake(
            "build gives the same first values whatever the run's seed is",
            mend="take out what seeds random numbers in it",
        )
    return "the same module twice; its first weights follow the seed"


def _drawn(subject: Subject, seed: int) -> dict[str, torch.Tensor]:
    model = subject.architecture.build()
    assert isinstance(model, LanguageModel)
    return dict(model.initial_weights(seed))


def require_same_buffers(subject: Subject) -> None:
    """Raise UserError where a second build gives a buffer other values: every rank, and every
    resumed run, builds for itself."""
    first = dict(subject.architecture.build().named_buffers())
    for name, values in subject.architecture.build().named_buffers():
        if name not in first or not same(values, first[name]):
            raise subject.mistake(
                f"its buffer {own_name(name)} has other values at each build, so ranks and resumed"
                " runs would differ",
                mend="let it depend on the shape and the options alone",
            )

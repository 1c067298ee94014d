"""What is drawn of runs: quantities that stand in their events, with their units."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt.metrics.events import ACTIVATIONS, EVAL, NORMS, TRAIN
from gpt.wording import TIME_NAMES, TIME_UNITS, time_unit

# of the numbers that are drawn: those of two ends of an axis can be divided, and raised to powers
SMALLEST = 1e-100
LARGEST = 1e100
QUANTITIES = {"loss": "loss (nats per token)", "normalised_ppl": "normalised perplexity (per byte)"}


class Panel(NamedTuple):
    """A quantity of events. quantity: a number's name in the events of these kinds, or a function
    of the event."""

    key: str
    kinds: tuple[str, ...]
    quantity: str | Callable
    label: str
    log: bool = False


def _norm(event: dict, what: str) -> float:
    """2-norm of all parameter groups together."""
    return math.hypot(*event[what].values())


def _relative_update(event: dict) -> float:
    return 1e6 * _norm(event, "update") / _norm(event, "weight")


LOSSES = tuple(
    Panel(name, (TRAIN, EVAL), name, label, log=True) for name, label in QUANTITIES.items()
)
LOSS_SCALE = Panel("loss_scale", (TRAIN,), "loss_scale", "loss scale", log=True)
TRAINING = (
    Panel("lr", (TRAIN,), "lr", "learning rate"),
    Panel("grad_norm", (TRAIN,), "grad_norm", "gradient norm", log=True),
    LOSS_SCALE,
    Panel("tokens_per_second", (TRAIN,), "tokens_per_second", "tokens per second"),
)
# of weights and activations: log_grads_every, log_activations_every
INSIDE = (
    Panel("weights", (NORMS,), lambda event: _norm(event, "weight"), "norm of all weights"),
    Panel("update", (NORMS,), _relative_update, "update / weights (ppm)", log=True),
    Panel("rms", (ACTIVATIONS,), "rms/ln_f.stream", "RMS after the last block"),
    Panel(
        "largest",
        (ACTIVATIONS,),
        lambda event: max(event["max_abs"].values()),
        "largest activation",
        log=True,
    ),
)
DEVICE = (
    Panel("mfu", (TRAIN,), "mfu", "model FLOPs utilisation"),
    Panel("memory", (TRAIN,), "memory", "memory, peak so far (bytes)"),
)


def drawable(numbers: np.ndarray) -> np.ndarray:
    """The same with not-a-number for those that are too large or too small for an axis."""
    sizes = np.abs(numbers)
    is_drawable = (sizes <= LARGEST) & ((sizes >= SMALLEST) | (sizes == 0))
    return np.where(is_drawable, numbers, np.nan)


def in_unit(label: str, largest: float) -> tuple[str, float]:
    """(label of an axis that ends at `largest`, how many of its units are one of the axis's in
    AXES): times stand in hours, minutes or seconds."""
    if "hours" not in label:
        return label, 1
    unit = time_unit(largest)
    return label.replace("hours", TIME_NAMES[unit]), TIME_UNITS[unit]


def with_scale(label: str, log: bool) -> str:
    """An axis's label; that of a logarithmic one says so."""
    if not log:
        return label
    return f"{label[:-1]}, log scale)" if label.endswith(")") else f"{label} (log scale)"

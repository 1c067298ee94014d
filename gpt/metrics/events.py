"""The events of metrics.jsonl: their kinds, and the axes that curves are drawn over.

An event is {"event": its kind, "step": optimiser steps completed, …, "time": seconds since 1970}.
"""

import math
from typing import Any, NamedTuple

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"  # the folder beside it

# a process that takes part in the run: what it is, and where it goes on
START = "start"
RESUME = "resume"
STOPPED = "stopped"
FAILED = "failed"
SUSPENDED = "suspended"  # the process stood still, by somebody else's will
CHECKPOINT = "checkpoint"
CHECKPOINT_FAILED = "checkpoint_failed"

# numbers that make curves
TRAIN = "train"
EVAL = "eval"
FINAL_EVAL = "final_eval"  # of the whole split, after the last step
NORMS = "norms"
ACTIVATIONS = "activations"

# numbers that went wrong, and what was done about it
OVERFLOW = "overflow"
SPIKE = "spike"
SKIP = "skip"
REWIND = "rewind"

# the other events are things that happened, and stay so
CURVES = (TRAIN, EVAL, FINAL_EVAL, NORMS, ACTIVATIONS)
ALARMS = (OVERFLOW, SPIKE, SKIP, REWIND, FAILED, CHECKPOINT_FAILED, STOPPED)
HAPPENINGS = (START, RESUME, SUSPENDED, CHECKPOINT, *ALARMS)


def finite(value: Any) -> Any:
    """The same with None, JSON's null, for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Axis(NamedTuple):
    """What a curve is drawn over."""

    key: str  # its name in metrics.jsonl
    label: str
    log: bool  # whether compute spans decades there
    whole: str  # TensorBoard's axis, which is one of whole numbers
    per_unit: float  # of those, in one unit of this axis

    def place(self, value: float) -> int:
        """Where TensorBoard draws what lies at `value` of this axis."""
        return round(value * self.per_unit)


AXES = {
    "steps": Axis("step", "optimiser steps", False, "steps", 1),
    "tokens": Axis("train_tokens", "training tokens", False, "train_tokens", 1),
    "flops": Axis("flops", "training FLOPs", True, "gigaflops", 1e-9),
    "hours": Axis("hours", "measured hours of training", False, "seconds", 3600),
    "reference_hours": Axis(
        "reference_hours", "reference accelerator-hours", True, "reference_seconds", 3600
    ),
}

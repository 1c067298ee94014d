"""The events of metrics.jsonl: their names, their keys, and the axes of curves."""

import math
from typing import NamedTuple


def finite(value):
    """The same with None, JSON's null, for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


METRICS = "metrics.jsonl"

# the other events are things that happened, and stay so
CURVES = ("train", "eval", "norms", "activations")


class Axis(NamedTuple):
    """What a curve is drawn over. `key` is the name in metrics.jsonl."""

    key: str
    label: str
    log: bool  # whether compute spans decades there


AXES = {
    "steps": Axis("step", "optimiser steps", False),
    "tokens": Axis("train_tokens", "training tokens", False),
    "flops": Axis("flops", "training FLOPs", True),
    "hours": Axis("hours", "measured hours of training", False),
    "reference_hours": Axis("reference_hours", "reference accelerator-hours", True),
}

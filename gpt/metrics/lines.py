"""A line of metrics.jsonl: whether it is an event whose fields are what readers rely on."""

import math
from collections.abc import Callable
from typing import Any

from gpt.config.keys import LARGEST
from gpt.config.well_formed import change_problem
from gpt.metrics.events import AXES
from gpt.parsing import parse_json
from gpt.quantities import LARGEST as MOST
from gpt.quantities import is_number


def _is_block(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_real(value: Any) -> bool:
    """Also one that is not finite, which other tools write as NaN or Infinity."""
    if type(value) is float:
        return abs(value) <= MOST or not math.isfinite(value)
    return is_number(value)


def _is_code(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("hash"), (str, type(None)))


def _is_changes(value: Any) -> bool:
    return isinstance(value, list) and not any(map(change_problem, value))


BLOCKS = ("languini", "versions", "weight", "gradient", "update", "rms", "max_abs")
TEXTS = ("split", "command", "device", "host")
COUNTS = ("of_tokens", "tokens", "text_tokens", "bytes")
NUMBERS = (
    *(axis.key for axis in AXES.values()),
    "total_loss",
    "text_nats",
    "loss",
    "ppl",
    "normalised_loss",
    "normalised_ppl",
    "bits_per_byte",
    "top1",
    "top10",
    "lr",
    "grad_norm",
    "loss_scale",
    "tokens_per_second",
    "mfu",
    "memory",
    "passes",
    "time",
)
# {name of a field: whether a value is of its type}
CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(BLOCKS, _is_block),
    **dict.fromkeys(TEXTS, _is_text),
    **dict.fromkeys(COUNTS, _is_count),
    **dict.fromkeys(NUMBERS, _is_real),
    "code": _is_code,
    "changed": _is_changes,
}


def parse(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None where it is damaged."""
    try:
        event = parse_json(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    step = event.get("step")
    if type(step) is not int or not 0 <= step <= LARGEST:
        return None
    return event if is_well_formed(event) else None


def is_well_formed(fields: dict[str, Any]) -> bool:
    """Whether the fields of an event, or of an evaluation by eval.py, are of their types. A field
    may be absent, or null."""
    for name, value in fields.items():
        if value is None:
            continue
        is_right = CHECKS.get(name)
        if is_right is not None and not is_right(value):
            return False
    return True

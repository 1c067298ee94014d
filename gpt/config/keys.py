"""A key of a run's JSON: its type, default, limits and meaning."""

import difflib
import math
from dataclasses import dataclass
from typing import Any

REQUIRED = object()

LARGEST = 2**53  # whole numbers beyond it are no exact floats, and surely mistakes

ANY = "any"  # DeepSpeed's own, passed on as it is


@dataclass(frozen=True)
class Key:
    """One value: its type (int, float, bool, str, "pair" for two floats, or ANY), its default and
    its range."""

    kind: Any
    default: Any = None
    doc: str = ""
    minimum: float | None = None  # inclusive
    above: float | None = None  # exclusive lower bound
    maximum: float | None = None  # inclusive
    choices: tuple | None = None
    when_missing: str | None = None  # what "is missing" is followed by; None: doc

    def problem(self, value):
        """What is wrong with `value`, or None. `value` is never None."""
        if value == "auto" and "auto" not in (self.choices or ()):
            return 'is "auto", which only the Hugging Face Trainer fills in: write the value'
        if self.kind == ANY:
            return None
        if self.kind == "pair":
            numbers = (
                isinstance(value, (list, tuple))
                and len(value) == 2
                and all(_is_number(v) for v in value)
            )
            return (
                None
                if numbers and all(0 <= v < 1 for v in value)
                else f"is {value!r}, not two numbers in [0, 1)"
            )
        if self.kind is bool:
            return None if isinstance(value, bool) else f"is {value!r}, not true or false"
        if self.kind is str and isinstance(value, str):
            return "is empty" if not value and self.default != "" else self._out_of_choices(value)
        if self.kind is str:
            return f"is {value!r}, not a text"
        if self.kind is int and not (isinstance(value, int) and not isinstance(value, bool)):
            return f"is {value!r}, not a whole number"
        if not _is_number(value):
            return f"is {value!r}, not a number" + (
                " (leave the quotes out)" if _reads_as_number(value) else ""
            )
        return self._out_of_range(value) or self._out_of_choices(value)

    def _out_of_range(self, value):
        if isinstance(value, int) and abs(value) > LARGEST:
            return f"is beyond {LARGEST}, too large to be meant"
        if not math.isfinite(value):
            return f"is {value!r}, not a finite number"
        if self.minimum is not None and value < self.minimum:
            return f"is {value!r}, must be at least {self.minimum}"
        if self.above is not None and value <= self.above:
            return f"is {value!r}, must be above {self.above}"
        if self.maximum is not None and value > self.maximum:
            return f"is {value!r}, must be at most {self.maximum}"
        return None

    def _out_of_choices(self, value):
        if self.choices is None or value in self.choices:
            return None
        return f"is {value!r}, must be one of {', '.join(map(str, self.choices))}"


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reads_as_number(value):
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def nearest(name, known):
    """The words (did you mean …?) for the known name closest to `name`, or an empty text."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""

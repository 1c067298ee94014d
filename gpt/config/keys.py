"""A key of a run's JSON: its type, default, limits and meaning."""

import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from gpt.errors import UserError
from gpt.parsing import MOST_DIGITS

REQUIRED = object()

# whole numbers beyond it are no exact floats, and surely mistakes
LARGEST = 2**53

# characters of a text, as many as a path may have: config.yaml, which holds them all, must stay one
# that can be read
LONGEST_TEXT = 4096

# characters of a value in a sentence
MOST_SHOWN = 120

_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)

# kinds of values beside Python's types: two floats in [0, 1), a list of texts, one of whole numbers
# above 0, and a block of arguments for code of the user's own, by their names
PAIR = "pair"
TEXTS = "texts"
COUNTS = "counts"
ARGUMENTS = "arguments"


@dataclass(frozen=True)
class Key:
    """One value: its type (int, float, bool, str, or one of the kinds above), its default and its
    range."""

    kind: Any
    default: Any = None
    doc: str = ""
    minimum: float | None = None  # inclusive
    above: float | None = None  # exclusive lower bound
    maximum: float | None = None  # inclusive
    choices: tuple | None = None
    when_missing: str | None = None  # what "is missing" is followed by; None: doc

    def problem(self, value: Any) -> str | None:
        """What is wrong with `value`, or None. `value` is never None."""
        if value == "auto" and "auto" not in (self.choices or ()):
            return 'is "auto", which only the Hugging Face Trainer fills in: write the value'
        if self.kind == PAIR:
            return None if _is_pair(value) else f"is {in_json(value)}, not two numbers in [0, 1)"
        if self.kind == TEXTS:
            is_list = isinstance(value, list) and all(isinstance(text, str) for text in value)
            if not is_list:
                return f"is {in_json(value)}, not a list of texts"
            return self._problem_of_text("".join(value)) if any(value) else None
        if self.kind == COUNTS:
            is_list = isinstance(value, list) and all(map(_is_count, value))
            return None if is_list else f"is {in_json(value)}, not a list of whole numbers above 0"
        if self.kind == ARGUMENTS:
            return _problem_of_arguments(value)
        if self.kind is bool:
            return None if isinstance(value, bool) else f"is {in_json(value)}, not true or false"
        if self.kind is str:
            return self._problem_of_text(value)
        return self._problem_of_number(value)

    def _problem_of_text(self, value: Any) -> str | None:
        if not isinstance(value, str):
            return f"is {in_json(value)}, not a text"
        if not value and self.default != "":
            return "is empty"
        if len(value) > LONGEST_TEXT:
            return f"has {len(value):,} characters, and at most {LONGEST_TEXT:,} are kept"
        if not _is_text(value):
            return f"is {in_json(value)}, with a NUL or half a character, which no text may have"
        return self._out_of_choices(value)

    def _problem_of_number(self, value: Any) -> str | None:
        if self.kind is int and not (is_number(value) and isinstance(value, int)):
            return f"is {in_json(value)}, not a whole number"
        if not is_number(value):
            hint = " (leave the quotes out)" if _reads_as_number(value) else ""
            return f"is {in_json(value)}, not a number{hint}"
        return self._out_of_range(value) or self._out_of_choices(value)

    def _out_of_range(self, value: float) -> str | None:
        if isinstance(value, int) and abs(value) > LARGEST:
            return f"is beyond {LARGEST}, too large to be meant"
        if not math.isfinite(value):
            return f"is {in_json(value)}, not a finite number"
        if self.minimum is not None and value < self.minimum:
            return f"is {in_json(value)}, must be at least {self.minimum}"
        if self.above is not None and value <= self.above:
            return f"is {in_json(value)}, must be above {self.above}"
        if self.maximum is not None and value > self.maximum:
            return f"is {in_json(value)}, must be at most {self.maximum}"
        return None

    def _out_of_choices(self, value: Any) -> str | None:
        if self.choices is None or value in self.choices:
            return None
        return f"is {in_json(value)}, must be one of {', '.join(map(str, self.choices))}"


def block_of(pairs: list[tuple[str, Any]], place: str) -> dict[str, Any]:
    """A block of JSON from its keys and values. Raises UserError, which names the place, where a
    key stands twice in it."""
    block: dict[str, Any] = {}
    for name, value in pairs:
        if name in block:
            raise UserError(f"{place}: the key {name!r} stands twice in one block")
        block[name] = value
    return block


def in_json(value: Any) -> str:
    """A value for a sentence, with null, true and false as a file and a command line have them; a
    long one cut."""
    text = _whole_in_json(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"


def _whole_in_json(value: Any) -> str:
    if isinstance(value, dict):
        inner = [f"{name!r}: {_whole_in_json(inner)}" for name, inner in value.items()]
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_whole_in_json, value)) + "]"
    is_word = value is None or isinstance(value, bool)
    return json.dumps(value) if is_word else repr(value)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(text: str) -> bool:
    """Whether a path may be it, or a comment: no NUL in it, and no half of a character but those
    that stand for bytes."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _problem_of_arguments(value: Any) -> str | None:
    """Arguments are numbers, texts, true or false, or lists of them."""
    if not isinstance(value, dict):
        return f"is {in_json(value)}, not a block {{…}}"
    for name, argument in value.items():
        if not name.isidentifier():
            return f"has {name!r}, which is no name of an argument"
        for item in argument if isinstance(argument, list) else [argument]:
            if isinstance(item, str):
                problem = Key(str, "").problem(item)
            elif isinstance(item, bool):
                problem = None
            else:
                problem = Key(float).problem(item)
            if problem:
                return f"has {name}, which {problem}"
    return None


def _is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and 0 < value <= LARGEST


def _is_pair(value: Any) -> bool:
    """Whether it is two numbers in [0, 1)."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(is_number(number) and 0 <= number < 1 for number in value)


def _reads_as_number(value: Any) -> bool:
    return isinstance(value, str) and number_in(value) is not None


def number_in(text: str) -> int | float | None:
    """The number that a text is, as JSON or a person writes it; None where it is none. Python takes
    more for a number: 1_0, blanks around it, the digits of other scripts."""
    if _NUMBER.fullmatch(text) is None:
        return None
    is_whole = text.lstrip("+-").isdecimal() and len(text) <= MOST_DIGITS
    return int(text) if is_whole else float(text)

"""What an evaluation's sums amount to, and whether figures agree with their sums. No torch is
needed."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

# what the figures of an evaluation are recomputed from
SUMS = ("total_loss", "tokens", "text_nats", "text_tokens", "bytes")
TOLERANCE = 1e-9  # relative
LARGEST = 1e300  # no sum comes near it


def quantities(
    total_loss: float, tokens: int, text_nats: float, text_tokens: int, bytes: int
) -> dict[str, float]:
    """The sums of an evaluation, and the figures that follow from them; not a number where nothing
    was scored.

    total_loss: nats over all scored tokens. text_nats: over those that carry bytes, which are
    text_tokens; they alone count where nats are divided by `bytes`.
    """
    loss = ratio(total_loss, tokens)
    normalised_loss = ratio(text_nats, bytes)
    return {
        "tokens": tokens,
        "bytes": bytes,
        "total_loss": total_loss,
        "text_nats": text_nats,
        "text_tokens": text_tokens,
        "loss": loss,
        "ppl": _exp(loss),
        "normalised_loss": normalised_loss,
        "normalised_ppl": _exp(normalised_loss),
        "bits_per_byte": normalised_loss / math.log(2),
    }


def contradiction(figures: Mapping[str, Any]) -> str | None:
    """What is wrong with an evaluation's figures, those of an event or of eval.py's JSON; None
    where all follow from their sums. Infinities and not-a-numbers may stand as None, as in JSON.
    """
    for name in SUMS:
        if not _is_number(figures.get(name)):
            return f"{name} is {figures.get(name)}, not a number"
    sums = {name: figures[name] for name in SUMS}
    for name, value in sums.items():
        if value < 0:
            return f"{name} is {_brief(value)}, below 0"
    if sums["text_nats"] > sums["total_loss"] * (1 + TOLERANCE):
        return f"text_nats is {_brief(sums['text_nats'])}, more than total_loss"
    if not sums["text_tokens"] <= sums["tokens"]:
        return f"text_tokens is {sums['text_tokens']} of {sums['tokens']} tokens"
    for name, expected in quantities(**sums).items():
        actual = figures.get(name)
        if not _agree(actual, expected):
            return f"{name} is {_brief(actual)}, and its sums make it {expected:.10g}"
    return None


def contradiction_without_sums(figures: Mapping[str, Any]) -> str | None:
    """The same of figures whose sums are not all numbers, as those of a run that diverged, or not
    all told, as in a line of an earlier version: whether they follow from each other."""
    loss = _number(figures.get("loss"))
    normalised_loss = _number(figures.get("normalised_loss"))
    expected = {
        "ppl": _exp(loss),
        "normalised_ppl": _exp(normalised_loss),
        "bits_per_byte": normalised_loss / math.log(2),
    }
    total_loss = figures.get("total_loss")
    tokens = figures.get("tokens")
    if _is_number(total_loss) and isinstance(tokens, int):
        expected["loss"] = ratio(total_loss, tokens)
    for name, value in expected.items():
        if name in figures and not _agree(figures[name], value):
            return f"{name} is {_brief(figures[name])}, and the others make it {value:.10g}"
    return None


def has_sums(figures: Mapping[str, Any]) -> bool:
    """Whether all that the figures follow from is told, and is finite."""
    return all(_is_number(figures.get(name)) for name in SUMS)


def _number(value: Any) -> float:
    return value if _is_number(value) else math.nan


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -LARGEST <= value <= LARGEST


def _agree(actual: Any, expected: float) -> bool:
    if not math.isfinite(expected):
        return actual is None or not _is_number(actual)
    return _is_number(actual) and math.isclose(actual, expected, rel_tol=TOLERANCE)


def _brief(value: Any) -> str:
    return f"{value:.10g}" if _is_number(value) else str(value)


def ratio(total: float, count: int) -> float:
    return total / count if count else math.nan


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)

"""What an evaluation's sums amount to, and whether figures agree with their sums. No torch is
needed."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

# what the figures of an evaluation are recomputed from
SUMS = ("total_loss", "tokens", "text_nats", "text_tokens", "bytes")
NATS = ("total_loss", "text_nats")  # of these, those that a run which diverged has no number for
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
    return {
        "tokens": tokens,
        "bytes": bytes,
        "total_loss": total_loss,
        "text_nats": text_nats,
        "text_tokens": text_tokens,
        **_figures(ratio(total_loss, tokens), ratio(text_nats, bytes)),
    }


def contradiction(figures: Mapping[str, Any]) -> str | None:
    """What is wrong with an evaluation's figures, those of an event or of eval.py's JSON; None
    where all follow from their sums. Infinities and not-a-numbers may stand as None, as in JSON.

    Figures without "of_tokens" are of an earlier version, which did not tell all sums: then those
    that are told count.
    """
    tells_all = "of_tokens" in figures
    has_diverged = not is_number(figures.get("total_loss"))
    sums: dict[str, Any] = {}
    for name in SUMS:
        value = figures.get(name)
        may_be_null = name in NATS and name in figures and (has_diverged or not tells_all)
        if may_be_null and _is_not_finite(value):
            sums[name] = math.nan
        elif value is not None or tells_all:
            problem = _problem_of_sum(name, value)
            if problem:
                return problem
            sums[name] = value
    return (
        _part_beyond_whole({**sums, **_told(figures)})
        or _too_sure(figures, sums)
        or _contradicts(figures, sums)
    )


def _problem_of_sum(name: str, value: Any) -> str | None:
    if not is_number(value):
        return f"{name} is {value}, not a number"
    if name not in NATS and not isinstance(value, int):
        return f"{name} is {value}, not a whole number"
    return f"{name} is {_brief(value)}, below 0" if value < 0 else None


def _told(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of the whole split, where they are told."""
    of_tokens = figures.get("of_tokens")
    return {"of_tokens": of_tokens} if is_number(of_tokens) else {}


def _part_beyond_whole(sums: Mapping[str, float]) -> str | None:
    """What of the sums is more than that of which it is a part."""
    for part, whole in (
        ("text_nats", "total_loss"),
        ("text_tokens", "tokens"),
        ("tokens", "of_tokens"),
    ):
        if part in sums and whole in sums and sums[part] > sums[whole] * (1 + TOLERANCE):
            return f"{part} is {_brief(sums[part])}, more than {whole} ({_brief(sums[whole])})"
    return None


def _too_sure(figures: Mapping[str, Any], sums: Mapping[str, float]) -> str | None:
    """What is 0 that no model's is: it would have given probability 1 to every token."""
    for nats, count in (("total_loss", "tokens"), ("text_nats", "text_tokens")):
        if sums.get(nats) == 0 and sums.get(count, 0) > 0:
            return f"{nats} is 0 over {_brief(sums[count])} {count}, and no text is that sure"
    for name in ("loss", "normalised_loss"):
        if is_number(figures.get(name)) and figures[name] == 0:
            return f"{name} is 0, and no text is that sure"
    return None


def _contradicts(figures: Mapping[str, Any], sums: Mapping[str, float]) -> str | None:
    """The first figure that does not follow from the sums, or where they are not told from the
    other figures."""
    loss = _number(figures.get("loss"))
    if "total_loss" in sums and "tokens" in sums:
        loss = ratio(sums["total_loss"], int(sums["tokens"]))
    normalised_loss = _number(figures.get("normalised_loss"))
    if "text_nats" in sums and "bytes" in sums:
        normalised_loss = ratio(sums["text_nats"], int(sums["bytes"]))
    basis = "its sums make" if len(sums) == len(SUMS) else "the others make"
    for name, expected in _figures(loss, normalised_loss).items():
        is_told = name in figures or len(sums) == len(SUMS)
        if is_told and not _agree(figures.get(name), expected):
            return f"{name} is {_brief(figures.get(name))}, and {basis} it {expected:.10g}"
    return None


def _figures(loss: float, normalised_loss: float) -> dict[str, float]:
    return {
        "loss": loss,
        "ppl": _exp(loss),
        "normalised_loss": normalised_loss,
        "normalised_ppl": _exp(normalised_loss),
        "bits_per_byte": normalised_loss / math.log(2),
    }


def _number(value: Any) -> float:
    return value if is_number(value) else math.nan


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -LARGEST <= value <= LARGEST


def _is_not_finite(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _agree(actual: Any, expected: float) -> bool:
    if not math.isfinite(expected):
        return actual is None or not is_number(actual)
    return is_number(actual) and math.isclose(actual, expected, rel_tol=TOLERANCE)


def _brief(value: Any) -> str:
    return f"{value:.10g}" if is_number(value) else str(value)


def ratio(total: float, count: int) -> float:
    return total / count if count else math.nan


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)

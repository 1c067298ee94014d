"""Numbers and lists in sentences."""

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def plural(count: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Sequence, shown: int) -> str:
    """The first names, and how many there are beside: a, b and 3 more."""
    text = ", ".join(map(str, names[:shown]))
    beside = len(names) - shown
    return f"{text} and {beside} more" if beside > 0 else text


def first_of(names: Sequence, shown: int) -> str:
    """The first names, and a sign that there are others: a, b, …"""
    text = ", ".join(map(str, names[:shown]))
    return f"{text}, …" if len(names) > shown else text

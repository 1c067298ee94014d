"""Numbers and lists in sentences."""

import difflib
from collections.abc import Iterable, Sequence


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


# units of time that a person reads, greatest first: {unit: how many are in an hour}
TIME_UNITS = {"h": 1, "min": 60, "s": 3600}
TIME_NAMES = {"h": "hours", "min": "minutes", "s": "seconds"}


def time_unit(hours: float) -> str:
    """The greatest of TIME_UNITS of which these hours are at least one."""
    for unit, per_hour in TIME_UNITS.items():
        if hours * per_hour >= 1:
            return unit
    return "s"


def timespan(hours: float, digits: int = 3) -> str:
    """At least so many digits in the unit that suits: 6 h, 2.4 min, 18 s."""
    unit = time_unit(hours)
    amount = hours * TIME_UNITS[unit]
    written = f"{amount:,.0f}" if amount >= 10**digits else f"{amount:.{digits}g}"
    return f"{written} {unit}"


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


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The words (did you mean …?) for the known name closest to `name`, or an empty text where none
    is close. prefix: what stands before both."""
    # at 0.6, difflib's own choice, lr is near min_lr and dropout near data_root
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.7)
    return f" (did you mean '{prefix}{matches[0]}'?)" if matches else ""

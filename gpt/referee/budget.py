"""The steps that equal compute gives to each side of an entry."""

from typing import Any

from gpt.referee.entry import Entry


def settings(entry: Entry, side: str) -> dict[str, Any]:
    """{dotted path: value} to lay over a side's JSON: steps, decay, and the throughput of the
    reference with this model. Raises UserError where the throughputs are not measured yet."""
    raise NotImplementedError

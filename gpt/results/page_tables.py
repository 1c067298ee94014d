"""Pieces of the report's page: tables, and numbers."""

import math
from collections.abc import Container, Sequence
from typing import Any

from gpt.escaping import html_text
from gpt.metrics.run import values

SHORT_CELL = 36  # characters up to which a cell stays on one line


def table(head: Sequence, rows: Sequence, numbers: Container[int] = ()) -> str:
    """An HTML table of escaped cells; in the columns `numbers` they stand at the right, and only
    long ones are broken."""
    head_html = _cells(head, "th", numbers)
    body_html = "".join(f"<tr>{_cells(row, 'td', numbers)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head_html}</tr></thead>'
        f"<tbody>{body_html}</tbody></table></div>"
    )


def _cells(row: Sequence, tag: str, numbers: Container[int]) -> str:
    cells = []
    for index, value in enumerate(row):
        shown = "-" if value is None else str(value)
        if index in numbers:
            kind = " class=n"
        elif len(shown) <= SHORT_CELL:
            kind = " class=s"
        else:
            kind = ""
        cells.append(f"<{tag}{kind}>{html_text(shown)}</{tag}>")
    return "".join(cells)


def figure(value: Any, digits: int = 4) -> str:
    """A number for a person; "-" for one that is absent or not finite."""
    number = values([{"value": value}], "value")[0]
    if not math.isfinite(number):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{number:,.{digits}f}"

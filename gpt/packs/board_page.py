"""A board as one HTML file that loads nothing and runs no code; on a phone each row is a card."""

import base64
import hashlib
from pathlib import Path

from gpt.escaping import html_text
from gpt.packs.board import Board, Table
from gpt.packs.board_text import (
    PUBLISHED_ALONE,
    RANKS,
    TITLE,
    Cell,
    Grid,
    Link,
    caption,
    grid,
    heading,
    matrix,
)


def as_html(board: Board, folder: Path) -> str:
    """folder: of the file, from which links to packs lead."""
    style = Path(__file__).with_name("board.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'"
    sections = "\n".join(_section(table, folder) for table in board.tables)
    notices = "".join(f'<p class="faint">notice: {html_text(text)}</p>' for text in board.notices)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html_text(TITLE)}</title>
<style>{style}</style>
</head>
<body>
<h1>{html_text(TITLE)}</h1>
{sections}
{notices}
</body>
</html>
"""


def _section(table: Table, folder: Path) -> str:
    parts = [
        f"<h2>{html_text(heading(table))}</h2>",
        f"<p>{html_text(caption(table))}</p>",
        _html_table(grid(table, folder), "rows"),
    ]
    pairs = matrix(table)
    if pairs:
        parts += [f'<p class="faint">{html_text(RANKS)}</p>', _html_table(pairs, "pairs")]
    if table.published:
        parts.append(f'<p class="faint">{html_text(PUBLISHED_ALONE)}</p>')
    return "\n".join(parts)


def _html_table(table: Grid, kind: str) -> str:
    """kind: the class of its element, for the style."""
    numbers = [' class="n"' if is_number else "" for is_number in table.numbers]
    names = [html_text(name) for name in table.names]
    head = "".join(f"<th{number}>{name}</th>" for number, name in zip(numbers, names))
    rows = []
    for row in table.rows:
        cells = [
            f'<td{number} data-label="{name}">{_html_cell(cell)}</td>'
            for number, name, cell in zip(numbers, names, row)
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    parts = []
    for part in cell:
        if isinstance(part, Link):
            parts.append(f'<a href="{html_text(part.path)}">{html_text(part.text)}</a>')
        else:
            parts.append(html_text(part))
    return f"<span>{' '.join(parts)}</span>"

"""A board as a person reads it: its tables as texts, and as Markdown."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gpt.escaping import markdown_cell
from gpt.packs.board import SHORT, Board, Row, Table
from gpt.referee.entry import FLOPS, HOURS, TOKENS
from gpt.results.intervals import Estimate, mean
from gpt.results.leaderboard_text import nominal
from gpt.results.published import FILE, MEASURE, REPOSITORY, SOURCE, Published

TITLE = "The referee's board"
RANKS = (
    "p of every two rows: Welch's test over their seeds, corrected by Holm for all pairs of the"
    " table. Rows with p below 0.05 are told apart. A rank is one more than the number of rows that"
    " are shown to be better."
)
PUBLISHED_ALONE = (
    f"Published: {MEASURE} ({SOURCE}, {FILE} of {REPOSITORY}). It compares with rows that were"
    " scored on that text alone, and takes no rank."
)
OVER = {HOURS: "hours of one device", FLOPS: "training FLOPs", TOKENS: "training tokens"}
# {column: whether numbers stand in it}
COLUMNS = {
    "rank": True,
    "contender": False,
    "author": False,
    "seeds": True,
    "nats per token": True,
    "normalised perplexity": True,
    "bits per byte": True,
    "difference to its baseline (nats per byte)": True,
    "verdict": False,
    "worth of compute": True,
    "pack": False,
}


@dataclass(frozen=True)
class Link:
    """text: shown. path: relative, of a folder, quoted as in an address."""

    text: str
    path: str


# what stands in a cell, one after another
Cell = Sequence[str | Link]
NOTHING: Cell = ("-",)


@dataclass(frozen=True)
class Grid:
    """numbers: whether numbers stand in a column. rows: of as many cells as there are names."""

    names: Sequence[str]
    numbers: Sequence[bool]
    rows: Sequence[Sequence[Cell]]


def as_markdown(board: Board, folder: Path) -> str:
    """folder: of the file, from which links to packs lead."""
    lines = [f"# {TITLE}"]
    for table in board.tables:
        lines += ["", f"## {markdown_cell(heading(table))}", "", markdown_cell(caption(table)), ""]
        lines += _markdown_table(grid(table, folder))
        pairs = matrix(table)
        if pairs:
            lines += ["", markdown_cell(RANKS), "", *_markdown_table(pairs)]
        if table.published:
            lines += ["", markdown_cell(PUBLISHED_ALONE)]
    for notice in board.notices:
        lines += ["", f"notice: {markdown_cell(notice)}"]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Grid) -> list[str]:
    names = [markdown_cell(name) for name in table.names]
    rules = ["-:" if is_number else "-" for is_number in table.numbers]
    rows = [[_markdown_text(cell) for cell in row] for row in table.rows]
    return [f"| {' | '.join(cells)} |" for cells in [names, rules, *rows]]


def _markdown_text(cell: Cell) -> str:
    parts = []
    for part in cell:
        if isinstance(part, Link):
            parts.append(f"[{markdown_cell(part.text)}]({part.path})")
        else:
            parts.append(markdown_cell(part))
    return " ".join(parts)


def heading(table: Table) -> str:
    """The class, and what is equal in it."""
    sides = table.first.judgement.sides
    return f"{table.first.entry.claim.class_name}, at equal {OVER[sides.over]}"


def caption(table: Table) -> str:
    """How much compute it is, and what was scored."""
    sides = table.first.judgement.sides
    scored = sides.measured_on
    return (
        f"{_compute(sides.over, table.first.compute)}; all of the split {scored['split']!r},"
        f" {scored['bytes']:,} bytes (documents {str(scored['documents'])[:SHORT]}), last_n"
        f" {scored['last_n']}. Intervals are of 95%, over seeds."
    )


def _compute(over: str, compute: float) -> str:
    if over == TOKENS:
        return f"{compute:,.0f} training tokens of the baseline"
    if over == FLOPS:
        return f"{compute:.4g} training FLOPs"
    return f"{nominal(compute)} h of the reference device"


# ---- Rows


def grid(table: Table, folder: Path) -> Grid:
    """The rows, and below them what was published of the class."""
    rows = [_cells(row, table.has_one_tokenizer, folder) for row in table.rows]
    rows += [_published_cells(baseline) for baseline in table.published]
    return Grid(list(COLUMNS), list(COLUMNS.values()), rows)


def _cells(row: Row, has_one_tokenizer: bool, folder: Path) -> list[Cell]:
    """Under COLUMNS. Under different tokenizers nats per token cannot be compared."""
    scored = [NOTHING] * 3
    if row.scores:
        loss = row.normalised_loss
        perplexity = math.exp(loss.value)
        scored = [
            (mean(row.losses).in_words() if has_one_tokenizer else "-",),
            # of the mean loss; its interval by the delta method
            (Estimate(perplexity, perplexity * loss.half_width).in_words(),),
            (Estimate(loss.value / math.log(2), loss.half_width / math.log(2)).in_words(),),
        ]
    judged = [NOTHING] * 3
    if not row.is_baseline:
        judged = [(_difference(row),), (row.submissions[0].judgement.verdict,), (_worth(row),)]
    return [
        (str(row.rank or "-"),),
        (_name(row),),
        (row.author or "-",),
        (_seeds(row),),
        *scored,
        *judged,
        _links(row, folder),
    ]


def _published_cells(baseline: Published) -> list[Cell]:
    cells = dict.fromkeys(COLUMNS, NOTHING)
    cells["contender"] = (f"{baseline.class_name} (published)",)
    cells["author"] = (SOURCE,)
    cells["seeds"] = (str(len(baseline.perplexities)),)
    cells["nats per token"] = (baseline.loss.in_words(),)
    return list(cells.values())


def _name(row: Row) -> str:
    if not row.is_baseline:
        return row.name
    if row.submissions[0].off_class:
        return f"{row.name} (baseline, not ds_configs/{row.name}.json)"
    return f"{row.name} (baseline)"


def _seeds(row: Row) -> str:
    count = str(len(row.scores))
    if not row.unscored:
        return count
    return f"{count} (without a score: {', '.join(map(str, row.unscored))})"


def _difference(row: Row) -> str:
    difference = row.submissions[0].judgement.per_byte
    if difference is None:
        return "-"
    low, high = difference.interval()
    if not math.isfinite(low):
        return f"{difference.value:+.4f}"
    return f"{difference.value:+.4f} ({low:+.4f} to {high:+.4f})"


def _worth(row: Row) -> str:
    worth = row.submissions[0].judgement.worth
    if worth is None:
        return "-"
    share = f"{worth.ratio - 1:+.1%}"
    if not math.isfinite(worth.low):
        return share
    return f"{share} ({worth.low - 1:+.1%} to {worth.high - 1:+.1%})"


def _links(row: Row, folder: Path) -> Cell:
    """To the packs, by their folders' names, and which of them nobody can score again."""
    here = folder.resolve()
    links: list[str | Link] = []
    for submission in row.submissions:
        path = submission.path.resolve()
        links.append(Link(path.name, quote(os.path.relpath(path, here))))
        if not submission.has_weights:
            links.append("without weights")
    return tuple(links)


# ---- Pairs


def matrix(table: Table) -> Grid | None:
    """The p of every two rows that can be ranked; None where there are no two."""
    places = sorted({place for pair in table.p_values for place in pair})
    if not places:
        return None
    names = [_name(table.rows[place]) for place in places]
    rows = []
    for name, place in zip(names, places):
        rows.append([(name,), *((_p(table, place, other),) for other in places)])
    return Grid(["p", *names], [False, *(True for _ in names)], rows)


def _p(table: Table, place: int, other: int) -> str:
    if place == other:
        return ""
    p = table.p_values[min(place, other), max(place, other)]
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

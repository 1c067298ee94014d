"""A leaderboard as a person reads it: its tables as texts, and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpt.config.code import PARTS
from gpt.escaping import markdown_cell
from gpt.results.methods import label, labels, shown
from gpt.wording import TIME_NAMES, TIME_UNITS, time_unit, timespan

# columns of settings in a table; those beyond are named below it
MOST_COLUMNS = 4
# seeds from which on a mean and a standard deviation tell more than the values
MANY_SEEDS = 3
SHORT = 12  # characters of a hash
# {name of a column: key of a row}
FIGURES = {
    "normalised perplexity": "normalised_ppl",
    "bits per byte": "bits_per_byte",
    "loss (nats per token)": "loss",
}


class Column(NamedTuple):
    """Of a table: its name, and the text of every row."""

    name: str
    cells: list[str]
    is_number: bool = True


class Table(NamedTuple):
    """A class of a leaderboard, best first."""

    heading: str
    columns: list[Column]
    remark: str  # a sentence below it; empty where there is nothing to say


def markdown(tables: Mapping[str, Any]) -> list[str]:
    """The lines of what `leaderboard` returned."""
    lines = [markdown_cell(caption(tables))]
    for table in class_tables(tables):
        lines += ["", f"### {table.heading}", ""]
        lines.append(_line(column.name for column in table.columns))
        lines.append("|" + "".join("-:|" if column.is_number else "-|" for column in table.columns))
        lines += [_line(cells) for cells in zip(*(column.cells for column in table.columns))]
        if table.remark:
            lines += ["", markdown_cell(table.remark)]
    return lines


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"


def caption(tables: Mapping[str, Any]) -> str:
    """What was scored, of what `leaderboard` returned."""
    if tables["dataset"] is None:
        text = f"several datasets with one held-out text, {tables['documents'][:SHORT]}"
    else:
        text = f"dataset {tables['dataset'][:SHORT]}"
    return f"Final evaluation on {tables['split']!r}: {tables['scored']}; {text}."


def class_tables(tables: Mapping[str, Any]) -> list[Table]:
    """Of what `leaderboard` returned, by rising compute."""
    over = tables["over"]
    return [
        Table(heading(over, table[over]), _columns(table), _remark(table))
        for table in tables["classes"]
    ]


def heading(over: str, compute: float) -> str:
    """The name of a class: Class 0.004 h of the reference accelerator (0.00394 h, 14.2 s)."""
    if over == "tokens":
        return f"{compute:,} training tokens"
    if over == "flops":
        return f"{compute:.4g} training FLOPs"
    name = nominal(compute)
    exact = [] if float(name) == float(f"{compute:.3g}") else [f"{compute:.3g} h"]
    if compute < 1:
        exact.append(timespan(compute))
    text = f"Class {name} h of the reference accelerator"
    return f"{text} ({', '.join(exact)})" if exact else text


def nominal(hours: float) -> str:
    """The fewest digits, up to three, that name a class: within 2% of its hours."""
    for digits in (1, 2):
        rounded = float(f"{hours:.{digits}g}")
        if abs(rounded - hours) <= 0.02 * hours:
            return f"{rounded:.6g}"
    return f"{hours:.3g}"


def _columns(table: Mapping[str, Any]) -> list[Column]:
    rows = table["rows"]
    ranked = enumerate(rows, 1)  # those that diverged come last
    columns = [
        Column("", ["-" if row["diverged_at"] else str(place) for place, row in ranked]),
        Column("run", [row["name"] for row in rows], is_number=False),
        Column("model", [_model(row) for row in rows], is_number=False),
        Column("parameters", [f"{row['parameters'] / 1e6:,.4g} M" for row in rows]),
        Column("steps x tokens", [_steps(row) for row in rows]),
        *_columns_of_settings(table),
    ]
    if _tells_passes(rows):
        columns.append(Column("passes over the text", [f"{row['passes']:.2f}" for row in rows]))
    columns.append(Column("seeds", [str(len(row["seeds"])) for row in rows]))
    for name, key in FIGURES.items():
        columns.append(Column(name, [_figure(row[key], ".4f") for row in rows]))
    for place, row in enumerate(rows):
        if row["diverged_at"]:
            steps = ", ".join(f"{step:,}" for step in row["diverged_at"])
            columns[-len(FIGURES)].cells[place] = f"diverged at step {steps}"
    return [*columns, _time(rows)]


def _columns_of_settings(table: Mapping[str, Any]) -> list[Column]:
    paths = table["settings"][:MOST_COLUMNS]
    names = labels(paths)
    if "code" in names and table["code_parts"]:
        parts = [PARTS.get(part, (part,))[0] for part in table["code_parts"]]
        names["code"] = f"code: {', '.join(parts)}"
    return [
        Column(names[path], [shown(path, row["settings"][path]) for row in table["rows"]])
        for path in paths
    ]


def _remark(table: Mapping[str, Any]) -> str:
    """The settings that have no column."""
    beyond = table["settings"][MOST_COLUMNS:]
    if not beyond:
        return ""
    return f"They differ in {', '.join(label(path) for path in beyond)}, too (--json)."


def _steps(row: Mapping[str, Any]) -> str:
    """Steps x tokens of each; of a run whose batch was changed on the way, all of them."""
    if row["steps"] * row["tokens_per_step"] == row["tokens"]:
        return f"{row['steps']:,} x {row['tokens_per_step']:,}"
    return f"{row['steps']:,}, {row['tokens']:,} in all"


def _model(row: Mapping[str, Any]) -> str:
    return f"{row['variant']} ({row['model']})" if row["variant"] else row["model"]


def _tells_passes(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some of the runs read their text more than once, and not all equally often."""
    passes = [row["passes"] for row in rows]
    if None in passes:
        return False
    return max(passes) > 1 and len({f"{number:.2f}" for number in passes}) > 1


def _time(rows: Sequence[Mapping[str, Any]]) -> Column:
    """The column of measured time: the seeds' mean, in one unit for all rows."""
    longest = max((row["hours"]["mean"] for row in rows if row["hours"]), default=1.0)
    unit = time_unit(longest)
    cells = []
    for row in rows:
        hours = row["hours"]
        cells.append(f"{hours['mean'] * TIME_UNITS[unit]:,.3g}" if hours else "-")
    return Column(f"measured {TIME_NAMES[unit]}", cells)


def _figure(figure: Mapping[str, Any] | None, digits: str) -> str:
    """Of up to two seeds the values, of more their mean and standard deviation."""
    if figure is None:
        return "-"
    if len(figure["values"]) < MANY_SEEDS:
        return ", ".join(f"{value:{digits}}" for value in figure["values"])
    return f"{figure['mean']:{digits}} ± {figure['std']:{digits}}"

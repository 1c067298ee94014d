"""A leaderboard as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt.config.code import PARTS
from gpt.results.methods import label, labels, shown
from gpt.wording import TIME_NAMES, TIME_UNITS, time_unit, timespan

# columns of settings in a table; those beyond are named below it
MOST_COLUMNS = 4
# seeds from which on a mean and a standard deviation tell more than the values
MANY_SEEDS = 3
SHORT = 12  # characters of a hash


def markdown(tables: Mapping[str, Any]) -> list[str]:
    """The lines of what `leaderboard` returned."""
    if tables["dataset"] is None:
        text = f"several datasets with one held-out text, {tables['documents'][:SHORT]}"
    else:
        text = f"dataset {tables['dataset'][:SHORT]}"
    lines = [f"Final evaluation on `{tables['split']}`: {tables['scored']}; {text}."]
    for table in tables["classes"]:
        lines += ["", f"### {heading(tables['over'], table[tables['over']])}", ""]
        lines += _table(table)
    return lines


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


def _table(table: Mapping[str, Any]) -> list[str]:
    rows = table["rows"]
    paths = table["settings"][:MOST_COLUMNS]
    names = labels(paths)
    if "code" in names and table["code_parts"]:
        parts = [PARTS.get(part, (part,))[0] for part in table["code_parts"]]
        names["code"] = f"code: {', '.join(parts)}"
    columns = [
        ("", "-:", [str(place) for place in range(1, len(rows) + 1)]),
        ("run", "-", [row["name"] for row in rows]),
        ("model", "-", [_model(row) for row in rows]),
        ("parameters", "-:", [f"{row['parameters'] / 1e6:,.4g} M" for row in rows]),
        (
            "steps x tokens",
            "-:",
            [_steps(row) for row in rows],
        ),
    ]
    for path in paths:
        columns.append((names[path], "-:", [shown(path, row["settings"][path]) for row in rows]))
    if _tells_passes(rows):
        columns.append(("passes over the text", "-:", [f"{row['passes']:.2f}" for row in rows]))
    columns += [
        ("seeds", "-:", [str(len(row["seeds"])) for row in rows]),
        ("normalised perplexity", "-:", [_figure(row["normalised_ppl"], ".4f") for row in rows]),
        ("bits per byte", "-:", [_figure(row["bits_per_byte"], ".4f") for row in rows]),
        ("loss (nats per token)", "-:", [_figure(row["loss"], ".4f") for row in rows]),
        _time(rows),
    ]
    lines = [_line(name for name, _, _ in columns), f"|{'|'.join(rule for _, rule, _ in columns)}|"]
    lines += [_line(cells) for cells in zip(*(cells for _, _, cells in columns))]
    beyond = table["settings"][MOST_COLUMNS:]
    if beyond:
        lines += ["", f"They differ in {', '.join(label(path) for path in beyond)}, too (--json)."]
    return lines


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


def _time(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[str]]:
    """The column of measured time: the seeds' mean, in one unit for all rows."""
    longest = max((row["hours"]["mean"] for row in rows if row["hours"]), default=1.0)
    unit = time_unit(longest)
    cells = []
    for row in rows:
        hours = row["hours"]
        cells.append(f"{hours['mean'] * TIME_UNITS[unit]:,.3g}" if hours else "-")
    return f"measured {TIME_NAMES[unit]}", "-:", cells


def _figure(figure: Mapping[str, Any] | None, digits: str) -> str:
    """Of up to two seeds the values, of more their mean and standard deviation."""
    if figure is None:
        return "-"
    if len(figure["values"]) < MANY_SEEDS:
        return ", ".join(f"{value:{digits}}" for value in figure["values"])
    return f"{figure['mean']:{digits}} ± {figure['std']:{digits}}"


def _line(cells: Iterable[str]) -> str:
    escaped = [" ".join(cell.replace("|", "\\|").split()) for cell in cells]
    return f"| {' | '.join(escaped)} |"

"""Evaluations as a person reads them: one in full, several as a table."""

from collections.abc import Sequence

from gpt.escaping import in_one_line, markdown_cell

# (name, name of the column, key of gpt.evaluation.summary, format)
QUANTITIES = (
    ("normalised perplexity", "normalised ppl", "normalised_ppl", ".4f"),
    ("bits per byte", "bits per byte", "bits_per_byte", ".4f"),
    ("loss (nats per token)", "loss (nats/token)", "loss", ".4f"),
    ("perplexity per token", "ppl", "ppl", ".2f"),
    ("top-1 accuracy", "top-1", "top1", ".4f"),
    ("top-10 accuracy", "top-10", "top10", ".4f"),
    ("tokens scored", "tokens", "tokens", ",d"),
    ("bytes", "bytes", "bytes", ",d"),
)


def in_full(result: dict) -> str:
    """One evaluation, a line for each quantity."""
    languini = result.get("languini")
    columns = f"{'':26s}{'exact':>14s}" + (f"{'languini':>14s}" if languini else "")
    lines = [
        f"{_weights_of(result)} on the split {result['split']!r} of {result['dataset']} "
        f"(seq_len {result['seq_len']}, last_n {result['last_n']})",
        columns,
    ]
    for name, _, key, form in QUANTITIES:
        line = f"{name:26s}{format(result[key], form):>14s}"
        if languini:
            line += f"{_as_languini(languini, key, form):>14s}"
        lines.append(line)
    return "\n".join(lines)


def _weights_of(result: dict) -> str:
    """What was scored; of a model from elsewhere also what it is."""
    if "model" not in result:
        return result["checkpoint"]
    facts = f"{result['model']}, {result['parameters']:,} parameters, {result['dtype']}"
    return f"{result['checkpoint']} ({facts})"


def _as_languini(figures: dict, key: str, form: str) -> str:
    """A figure, or why there is none: "-" where the text is too short for any token to be scored
    so, nothing where the seed project has no such figure."""
    if key not in figures:
        return ""
    is_count = form.endswith("d")
    return format(figures[key], form) if figures["tokens"] or is_count else "-"


def as_table(results: Sequence[dict]) -> str:
    """A caption and a row for each evaluation."""
    head, rows = _table(results)
    rows = [[in_one_line(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows)]
    lines = [_caption(results)]
    for first, *cells in [head, *rows]:
        padded = [f"{cell:>{width}s}" for cell, width in zip(cells, widths[1:])]
        lines.append("  ".join([f"{first:{widths[0]}s}", *padded]))
    return "\n".join(lines)


def as_markdown(results: Sequence[dict]) -> str:
    head, rows = _table(results)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    escaped = [map(markdown_cell, row) for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in [head, rule, *escaped]]
    return "\n".join([markdown_cell(_caption(results)), "", *lines]) + "\n"


def _table(results: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """(names of the columns, rows of texts). Where there are several checkpoints their steps are a
    column."""
    has_steps = _has_steps(results)
    has_languini = _has_languini(results)
    head = ["split", *(["step"] if has_steps else [])]
    head += [column for _, column, _, _ in QUANTITIES]
    if has_languini:
        head.append("languini")
    rows = []
    for result in results:
        step = [f"{result['step']:,}"] if has_steps else []
        exact = [format(result[key], form) for _, _, key, form in QUANTITIES]
        row = [result["split"], *step, *exact]
        if has_languini:
            row.append(_as_languini(result["languini"], "normalised_ppl", ".4f"))
        rows.append(row)
    return head, rows


def _has_steps(results: Sequence[dict]) -> bool:
    return len({result["checkpoint"] for result in results}) > 1


def _has_languini(results: Sequence[dict]) -> bool:
    """Whether they are of a tokenizer of ours: of others the seed project counts nothing."""
    return all("languini" in result for result in results)


def _caption(results: Sequence[dict]) -> str:
    first = results[0]
    weights = _weights_of(first)
    if _has_steps(results):
        weights += f" … {results[-1]['checkpoint']}"
    window = f"seq_len {first['seq_len']}, last_n {first['last_n']}"
    if _has_languini(results):
        window += "; languini: normalised ppl as the seed project counts it"
    return f"{weights} on {first['dataset']} ({window})"

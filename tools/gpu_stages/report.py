"""The report of tools/gpu_check.py: findings as Markdown tables, verdicts first. No torch here."""

import time
from pathlib import Path

from gpt.escaping import markdown_cell
from tools.gpu_stages import STAGES
from tools.gpu_stages.tables import STAGE_OF, TABLES

PRECISIONS = ("fp32", "bf16", "fp16")
RIGHT = "right"
WRONG = "WRONG"
NOT_RUN = "not run"
FAULTS = 5  # of one check that are told
DRY = (
    "**A dry run: tiny shapes on the CPU. It shows that the check works; no figure below says"
    " anything of a GPU.**"
)


def stage_end(findings, stage):
    """What became of a stage, in words; None if it ended well."""
    events = [finding for finding in findings if finding["stage"] == stage and "event" in finding]
    last = events[-1] if events else None
    if last is None:
        asked = any(stage in finding.get("asked", ()) for finding in findings)
        return "it had not begun" if asked else "not asked for"
    if last["event"] == "skipped":
        return last["why"]
    if last["event"] != "ended":
        return "it has not ended"
    return last["failure"] or last["cut"]


def failures(findings) -> list:
    """(stage, how it failed) of those that crashed or hung."""
    return [
        (finding["stage"], finding["failure"]) for finding in findings if finding.get("failure")
    ]


def is_right(findings) -> bool:
    """Whether something ran to its end, and nothing that ran was wrong, crashed or hung."""
    ended = any(finding.get("event") == "ended" and not finding["cut"] for finding in findings)
    wrong = any(finding.get("verdict") == WRONG or finding.get("wrong") for finding in findings)
    return ended and not failures(findings) and not wrong


def write(out: Path, findings: list):
    """OUT/report.md, whole at any time."""
    path = out / "report.md"
    aside = out / "report.md.new"
    aside.write_text(text(findings), encoding="utf-8")
    aside.replace(path)


def text(findings: list) -> str:
    """The whole report."""
    parts = [verdicts(findings).rstrip("\n")]
    for title, about, table, columns in TABLES:
        parts.append(f"## {title}")
        if about:
            parts.append(about)
        rows = [finding for finding in findings if finding.get("table") == table]
        if rows:
            parts.append(_table(columns, rows, findings))
        else:
            parts.append(f"{NOT_RUN}: {_why(findings, table)}")
    parts += ["## Stages", _stages(findings)]
    return "\n\n".join(parts) + "\n"


def verdicts(findings: list) -> str:
    """The report's beginning: what is right, and what is not."""
    session = next((finding for finding in findings if finding["stage"] == "session"), {})
    title = f"# GPU check: {session.get('device', 'unknown device')}"
    return "\n\n".join([title, *_begun(session), *_verdicts(findings), ""])


def _begun(session):
    if session.get("dry"):
        yield DRY
    if "time" in session:
        yield time.strftime("Begun on %Y-%m-%d at %H:%M UTC.", time.gmtime(session["time"]))


# ---- Verdicts


def _verdicts(findings):
    wrong = [*_wrong_checks(findings), *_rows_that_failed(findings, wrong=True)]
    failed = [f"- **stage {stage}**: {failure}" for stage, failure in failures(findings)]
    unmeasured = list(_rows_that_failed(findings, wrong=False))
    right = sum(finding.get("verdict") == RIGHT for finding in findings)
    yield (
        f"## What is right\n\n{right} right, {len(wrong)} wrong, {len(failed)} stage(s) failed, "
        f"{len(unmeasured)} figure(s) not measured."
    )
    if not any("verdict" in finding for finding in findings):
        ended = [finding["stage"] for finding in findings if finding.get("event") == "ended"]
        yield (
            f"**Nothing was checked**: the stages that ended ({', '.join(ended) or 'none'}) take"
            " times alone, or came to no check."
        )
    if wrong or failed or unmeasured:
        yield "\n".join([*wrong, *failed, *unmeasured])
    head = ["| check | | fp32 | bf16 | fp16 | found |", "|---|---|---|---|---|---|"]
    yield "\n".join([*head, *_check_rows(findings)])
    yield (
        "A rounding is half the distance between two neighbouring numbers of the precision. At "
        "worst: the largest error of a single number; all together: the norm of all errors "
        "beside that of one rounding of each."
    )


def _wrong_checks(findings):
    for name, of_name in _by_check(findings).items():
        for precision, finding in of_name.items():
            if finding["verdict"] == WRONG:
                where = f"{name} in {precision}" if precision else name
                yield f"- **{where}**: {_some(finding['faults'])}"


def _rows_that_failed(findings, wrong):
    """Those whose failure is a fault, or those that are merely not measured."""
    for finding in findings:
        if wrong and finding.get("wrong"):
            yield f"- **{_named(finding)}** ({finding['table']}): {finding['failed']}"
        elif not wrong and "failed" in finding and not finding.get("wrong"):
            yield f"- not measured: {_named(finding)} ({finding['table']}): {finding['failed']}"


def _by_check(findings) -> dict:
    """{check: {precision: finding}}"""
    by_check = {}
    for finding in findings:
        if "check" in finding:
            by_check.setdefault(finding["check"], {})[finding["precision"]] = finding
    return by_check


def _check_rows(findings):
    """The lines of the table of checks; stages share a check, a precision each."""
    by_check = _by_check(findings)
    reasons = {}  # {check: {precision: why nothing is known of it}}
    for stage in STAGES:
        end = stage_end(findings, stage.name) or "the stage ended without a word of it"
        reason = end.partition(", see")[0]
        for name, precisions in stage.checks.items():
            reasons.setdefault(name, {}).update(dict.fromkeys(precisions, reason))
    for name, reasons_of_check in reasons.items():
        yield _verdict_row(name, by_check.get(name, {}), reasons_of_check)


def _named(row):
    """What a row of a table is about."""
    keys = ("model", "preset", "what", "micro_batch")
    return ", ".join(str(row[key]) for key in keys if key in row)


def _some(faults):
    more = len(faults) - FAULTS
    text = "; ".join(faults[:FAULTS])
    return f"{text}; and {more} more" if more > 0 else text


def _verdict_row(name, found, reasons):
    """found: {precision: finding}. reasons: {precision: why nothing is known of it}, of all that
    the check is expected in."""
    verdicts = {}
    notes = {}  # {words: precisions}
    for precision, reason in reasons.items():
        finding = found.get(precision)
        verdicts[precision] = finding["verdict"] if finding else NOT_RUN
        notes.setdefault(finding["saw"] if finding else reason, []).append(precision)
    if "" in verdicts:  # of no precision of its own
        cells = [verdicts[""], "", "", ""]
    else:
        cells = ["", *(verdicts.get(precision, "–") for precision in PRECISIONS)]
    cells = [f"**{cell}**" if cell == WRONG else cell for cell in cells]
    texts = []
    for words, precisions in notes.items():
        if words and len(precisions) == len(reasons):
            texts.append(words)
        elif words:
            texts.append(f"{', '.join(precisions)}: {words}")
    return f"| {name} | {' | '.join(cells)} | {markdown_cell('; '.join(texts))} |"


# ---- Tables


def _table(columns, rows, findings):
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [markdown_cell(show(row, findings)) for _, show in columns]
        if "failed" in row:
            cells[-1] = f"failed: {markdown_cell(row['failed'])}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _why(findings, table):
    """Why a table has no rows."""
    stage = STAGE_OF[table]
    end = stage_end(findings, stage)
    if end:
        return end
    for finding in findings:
        if finding["stage"] == stage and finding.get("verdict") == NOT_RUN:
            return finding["saw"]
    return "it found nothing"


# ---- Stages


def _stages(findings):
    lines = ["| stage | seconds | |", "|---|---|---|"]
    for stage in STAGES:
        of_stage = [finding for finding in findings if finding["stage"] == stage.name]
        ends = [finding for finding in of_stage if finding.get("event") == "ended"]
        seconds = f"{ends[-1]['seconds']:.1f}" if ends else "–"
        end = stage_end(findings, stage.name) or "ended"
        lines.append(f"| {stage.name} | {seconds} | {markdown_cell(end)} |")
    return "\n".join(lines)

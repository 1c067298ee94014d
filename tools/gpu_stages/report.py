"""The report of tools/gpu_check.py: findings as Markdown tables, verdicts first. No torch here."""

import time
from pathlib import Path

from tools.gpu_stages import STAGES

PRECISIONS = ("fp32", "bf16", "fp16")
RIGHT = "right"
WRONG = "WRONG"
NOT_RUN = "not run"
FAULTS = 5  # of one check that are told


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
    path, aside = out / "report.md", out / "report.md.new"
    aside.write_text(text(findings), encoding="utf-8")
    aside.replace(path)


def text(findings) -> str:
    session = next((finding for finding in findings if finding["stage"] == "session"), {})
    parts = [
        f"# GPU check: {session.get('device', 'unknown device')}",
        *_begun(session),
        *_verdicts(findings),
    ]
    for title, about, table, columns in TABLES:
        rows = [finding for finding in findings if finding.get("table") == table]
        parts += [f"## {title}", about] if about else [f"## {title}"]
        parts.append(
            _table(columns, rows, findings) if rows else f"{NOT_RUN}: {_why(findings, table)}"
        )
    parts += ["## Stages", _stages(findings)]
    return "\n\n".join(parts) + "\n"


def _begun(session):
    if session.get("dry"):
        yield (
            "**A dry run: tiny shapes on the CPU. It shows that the check works; no figure below "
            "says anything of a GPU.**"
        )
    if "time" in session:
        yield time.strftime("Begun on %Y-%m-%d at %H:%M UTC.", time.gmtime(session["time"]))


# ---- Verdicts


def _verdicts(findings):
    # by check: findings by precision, what became of its stage, precisions
    found = {}
    why_not = {}
    expected = {}
    for stage in STAGES:
        ended = stage_end(findings, stage.name) or "the stage ended without a word of it"
        for name, precisions in stage.checks.items():
            expected[name] = (
                *expected.get(name, ()),
                *precisions,
            )  # stages share a check, a precision each
            why_not[name] = {
                **why_not.get(name, {}),
                **dict.fromkeys(precisions, ended.partition(", see")[0]),
            }
    for finding in findings:
        if "check" in finding:
            found.setdefault(finding["check"], {})[finding["precision"]] = finding
    wrong = [
        f"- **{name}{f' in {precision}' if precision else ''}**: {_some(finding['faults'])}"
        for name, of_name in found.items()
        for precision, finding in of_name.items()
        if finding["verdict"] == WRONG
    ]
    failed = [f"- **stage {stage}**: {failure}" for stage, failure in failures(findings)]
    right = sum(finding.get("verdict") == RIGHT for finding in findings)
    wrong += [
        f"- **{_named(finding)}** ({finding['table']}): {finding['failed']}"
        for finding in findings
        if finding.get("wrong")
    ]
    unmeasured = [
        f"- not measured: {_named(finding)} ({finding['table']}): {finding['failed']}"
        for finding in findings
        if "failed" in finding and not finding.get("wrong")
    ]
    yield (
        f"## What is right\n\n{right} right, {len(wrong)} wrong, {len(failed)} stage(s) failed, "
        f"{len(unmeasured)} figure(s) not measured."
    )
    if wrong or failed or unmeasured:
        yield "\n".join([*wrong, *failed, *unmeasured])
    rows = [
        _verdict_row(name, expected[name], found.get(name, {}), why_not[name]) for name in expected
    ]
    yield "\n".join(
        ["| check | | fp32 | bf16 | fp16 | found |", "|---|---|---|---|---|---|", *rows]
    )
    yield (
        "A rounding is half the distance between two neighbouring numbers of the precision. At "
        "worst: the largest error of a single number; all together: the norm of all errors "
        "beside that of one rounding of each."
    )


def _named(row):
    """What a row of a table is about."""
    words = [str(row[key]) for key in ("model", "preset", "what", "micro_batch") if key in row]
    return ", ".join(words)


def _some(faults):
    return "; ".join(faults[:FAULTS]) + (
        f"; and {len(faults) - FAULTS} more" if len(faults) > FAULTS else ""
    )


def _verdict_row(name, expected, found, why_not):
    verdicts = {
        precision: found[precision]["verdict"] if precision in found else NOT_RUN
        for precision in expected
    }
    if "" in verdicts:  # of no precision of its own
        cells = [verdicts[""], "", "", ""]
    else:
        cells = ["", *(verdicts.get(precision, "–") for precision in PRECISIONS)]
    said = {
        precision: found[precision]["saw"] if precision in found else why_not[precision]
        for precision in expected
    }
    by_words = {}
    for precision, words in said.items():
        by_words.setdefault(words, []).append(precision)
    notes = [
        words if len(precisions) == len(expected) else f"{', '.join(precisions)}: {words}"
        for words, precisions in by_words.items()
        if words
    ]
    cells = [f"**{cell}**" if cell == WRONG else cell for cell in cells]
    return f"| {name} | {' | '.join(cells)} | {_cell('; '.join(notes))} |"


# ---- Tables


def _cell(value):
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(columns, rows, findings):
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [_cell(show(row, findings)) for _, show in columns]
        if "failed" in row:
            cells[-1] = f"failed: {_cell(row['failed'])}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _why(findings, table):
    stage = STAGE_OF[table]
    return stage_end(findings, stage) or next(
        (
            finding["saw"]
            for finding in findings
            if finding["stage"] == stage and finding.get("verdict") == NOT_RUN
        ),
        "it found nothing",
    )


def _shown(key, form="{}", factor=1.0):
    """A column: the row's value at `key`, times `factor`, or a dash."""

    def show(row, findings):
        value = row.get(key)
        return "–" if value is None else form.format(value * factor if factor != 1.0 else value)

    return show


def _attained(row, findings):
    """Of the rate that a large product or a copy attained on this device."""
    for key in ("flops_per_second", "bytes_per_second"):
        best = max(
            (rate[key] for rate in findings if rate.get("table") == "rates" and rate.get(key)),
            default=None,
        )
        if row.get(key) and best:
            return f"{row[key] / best:.0%}"
    return "–"


def _against_estimate(row, findings):
    return (
        f"{row['peak_bytes'] / row['estimated_bytes'] - 1:+.0%}"
        if row.get("peak_bytes") and row.get("estimated_bytes")
        else "–"
    )


def _parts(row, findings):
    return ", ".join(f"{part} {ms:.1f}" for part, ms in row.get("parts_ms", {}).items())


def _losses(row, findings):
    return " ".join(f"{loss:.3f}" for loss in row["losses"])


PRESET = ("model", _shown("preset"))
PRECISION = ("precision", _shown("precision"))
MICRO = ("micro-batch", _shown("micro_batch"))
SPEED = [
    ("ms", _shown("ms", "{:.2f}")),
    ("tokens/s", _shown("tokens_per_second", "{:,.0f}")),
    ("MFU", _shown("mfu", "{:.1%}")),
]
PEAK = ("peak GiB", _shown("peak_bytes", "{:.2f}", 2**-30))
LAUNCHES = ("launches", _shown("launches", "{:,}"))
IDLE = ("device idle", _shown("idle", "{:.1%}"))
RATES = [
    ("TFLOP/s", _shown("flops_per_second", "{:.1f}", 1e-12)),
    ("GB/s", _shown("bytes_per_second", "{:,.0f}", 1e-9)),
]

# (title, what a reader needs to know, table, [(column, how it is shown)])
TABLES = [
    (
        "Training steps without DeepSpeed",
        (
            "Two micro-batches and one fused AdamW step of `small` in bf16, all in turn in one "
            "process: medians. MFU is the share of the data sheet's peak, by the FLOPs of "
            "gpt/config/shape.py; peak memory is that of a step beside what lasts."
        ),
        "models",
        [
            ("model", _shown("model")),
            MICRO,
            *SPEED,
            PEAK,
            LAUNCHES,
            IDLE,
            ("ready after s", _shown("ready_seconds", "{:.0f}")),
        ],
    ),
    (
        "Training steps of a run",
        (
            "The engine at ZeRO 1, four micro-batches a step. Idle is the share of a step in which"
            " no kernel runs; waits are those of the host for the device. The estimate is what"
            " --dry_run prints."
        ),
        "engine",
        [
            PRESET,
            PRECISION,
            MICRO,
            *SPEED,
            PEAK,
            ("estimated GiB", _shown("estimated_bytes", "{:.2f}", 2**-30)),
            ("measured to estimated", _against_estimate),
            LAUNCHES,
            ("waits", _shown("waits")),
            IDLE,
            ("ms by part", _parts),
            ("updates left out", _shown("left_out")),
        ],
    ),
    (
        "The heaviest kernels of a run's step",
        "",
        "heaviest",
        [
            PRESET,
            PRECISION,
            ("kernel", _shown("name", "`{}`")),
            ("launches", _shown("count")),
            ("ms a step", _shown("ms", "{:.3f}")),
        ],
    ),
    (
        "By micro-batch",
        "Steps without DeepSpeed, ours eager in bf16.",
        "sweep",
        [PRESET, MICRO, *SPEED[1:], PEAK],
    ),
    (
        "As one CUDA graph",
        "One forward and backward pass, launched kernel by kernel and replayed as a graph.",
        "graph",
        [
            ("model", _shown("model")),
            MICRO,
            ("eager ms", _shown("eager_ms", "{:.3f}")),
            ("graph ms", _shown("graph_ms", "{:.3f}")),
            ("gain", _shown("gain", "{:.1%}")),
        ],
    ),
    (
        "What the device attains",
        "",
        "rates",
        [("what", _shown("what")), ("size", _shown("shape")), *RATES],
    ),
    (
        "Single operations",
        (
            "bf16, 32 x 512 tokens, inputs not in the L2 cache. Attained: of the rate of the large "
            "product, or of the copy, in the table above."
        ),
        "operations",
        [
            PRESET,
            ("operation", _shown("what")),
            ("ms", _shown("ms", "{:.4f}")),
            *RATES,
            ("attained", _attained),
        ],
    ),
    (
        "What a call costs the host",
        "",
        "host",
        [("call", _shown("what")), ("µs", _shown("microseconds", "{:.1f}"))],
    ),
    (
        "All-reduce of two ranks",
        "",
        "all_reduce",
        [
            ("bytes", _shown("bytes", "{:,}")),
            ("ms", _shown("milliseconds", "{:.3f}")),
            ("GB/s", _shown("bytes_per_second", "{:.1f}", 1e-9)),
        ],
    ),
    (
        "Curves of the short trainings",
        "",
        "curves",
        [PRECISION, ("losses", _losses), ("last", _shown("last", "{:.4f}"))],
    ),
    ("Facts", "", "facts", [("fact", _shown("fact")), ("value", _shown("value"))]),
]
STAGE_OF = {
    "models": "models",
    "engine": "engine-bf16",
    "heaviest": "engine-bf16",
    "sweep": "sweep",
    "graph": "graph",
    "rates": "facts",
    "operations": "operations",
    "host": "facts",
    "all_reduce": "ranks",
    "curves": "training",
    "facts": "facts",
}


def _stages(findings):
    lines = ["| stage | seconds | |", "|---|---|---|"]
    for stage in STAGES:
        ends = [
            finding
            for finding in findings
            if finding["stage"] == stage.name and finding.get("event") == "ended"
        ]
        seconds = f"{ends[-1]['seconds']:.1f}" if ends else "–"
        lines.append(
            f"| {stage.name} | {seconds} | {_cell(stage_end(findings, stage.name) or 'ended')} |"
        )
    return "\n".join(lines)

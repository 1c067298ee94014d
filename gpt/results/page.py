"""The page of tools/report.py: runs as one HTML text that loads nothing from anywhere."""

import base64
import hashlib
import html
import json
import math
import statistics
from collections.abc import Container, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config.run_config import leaves
from gpt.metrics.events import ALARMS, AXES, CHECKPOINT, EVAL, HAPPENINGS, START, TRAIN
from gpt.metrics.runs import Run, values
from gpt.wording import first_of, listed, plural

CHARTS = {
    "loss": ("loss (nats per token)", True),
    "normalised_ppl": ("normalised perplexity (per byte)", True),
    "lr": ("learning rate", False),
    "grad_norm": ("gradient norm", True),
    "loss_scale": ("loss scale", True),
    "tokens_per_second": ("tokens per second", False),
    "mfu": ("model FLOPs utilisation", False),
    "memory": ("memory, peak so far (bytes)", False),
}
EVALUATION = (
    "tokens",
    "bytes",
    "loss",
    "ppl",
    "normalised_loss",
    "normalised_ppl",
    "bits_per_byte",
    "top1",
    "top10",
)
# of a curve's steps; each keeps its least and greatest loss, and its greatest gradient norm
BUCKETS = 700
SHOWN_EVENTS = 300
SHOWN_NAMES = 3  # of runs, in the title
SHOWN_DOCUMENTS = 4  # of an event
SHORT_CELL = 36  # characters up to which a cell stays on one line
LONG_TEXT = 600  # characters of an event's details that are shown
SUMMARY = (
    "run",
    "state",
    "model",
    "parameters",
    "tokens",
    "split",
    "loss",
    "normalised perplexity",
    "bits per byte",
    "tokens/s",
    "measured hours",
)


def page(runs: list[Run], reload: float | None = None) -> str:
    """The whole HTML text. reload: seconds after which an open page reloads itself."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    # no other code runs
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    title = _text(_title(runs))
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    again = f", again every {reload:g} s" if reload else ""
    notices = [notice for run in runs for notice in run.notices]
    notices_html = "".join(f'<p class="bad">{_text(notice)}</p>' for notice in notices)
    summaries = _table(SUMMARY, [_summary(run) for run in runs], numbers=range(3, len(SUMMARY)))
    sections = "".join(_sections(run, index) for index, run in enumerate(runs))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="faint">written {written}{again}</p>
{notices_html}
{summaries}
<h2>Curves</h2>
<noscript><p class="bad">\
The curves are drawn by a script in this page, which is switched off.</p></noscript>
<div id="controls"><label>over <select id="axis"></select></label> \
<label><input type="checkbox" id="logx"> log</label>
<button id="in">zoom in</button><button id="out">zoom out</button><button id="whole">whole</button>
<span class="faint">drag across a curve to zoom; \
thin lines: training, marked: held out; triangles: trouble</span></div>
<div id="runs"></div>
<div id="charts"></div>
{_differences(runs)}
{sections}
<script type="application/json" id="data">{_embedded(_data(runs, reload))}</script>
<script>{script}</script>
</body>
</html>
"""


def _title(runs: list[Run]) -> str:
    return listed([run.name for run in runs], SHOWN_NAMES)


def _data(runs: list[Run], reload: float | None) -> dict:
    """What the page's script draws."""
    axes = [
        {"key": axis.key, "label": axis.label, "log": axis.log}
        for name, axis in AXES.items()
        if name == "steps" or _has(runs, name)
    ]
    charts = [{"key": key, "label": label, "log": log} for key, (label, log) in CHARTS.items()]
    return {
        "axes": axes,
        "charts": charts,
        "runs": [payload(run) for run in runs],
        "reload": reload,
    }


def _digest(text: str) -> str:
    """Of a style or a script, as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(tree: Any) -> str:
    """JSON that no HTML parser can leave early."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(head: Sequence, rows: Sequence, numbers: Container[int] = ()) -> str:
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
        text = "-" if value is None else str(value)
        if index in numbers:
            kind = " class=n"
        elif len(text) <= SHORT_CELL:
            kind = " class=s"
        else:
            kind = ""
        cells.append(f"<{tag}{kind}>{_text(text)}</{tag}>")
    return "".join(cells)


def _figure(value: Any, digits: int = 4) -> str:
    """A number for a person; "-" for one that is absent or not finite."""
    number = values([{"value": value}], "value")[0]
    if not math.isfinite(number):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{number:,.{digits}f}"


def _summary(run: Run) -> list:
    """The row of a run, under SUMMARY."""
    final = run.final() or {}
    train = run.curve(TRAIN)
    speeds = values(train[-20:], "tokens_per_second")
    speed = f"{np.nanmedian(speeds):,.0f}" if np.isfinite(speeds).any() else "-"
    hours = run.over("hours", train[-1:] or run.curve(EVAL)[-1:])
    hours_text = f"{hours[-1]:,.4g}" if hours is not None and len(hours) else "-"
    return [
        run.name,
        run.state,
        run.family,
        f"{run.model.parameters():,}",
        f"{run.last_step * run.tokens_per_step:,}",
        final.get("split", "-"),
        _figure(final.get("loss")),
        _figure(final.get("normalised_ppl")),
        _figure(final.get("bits_per_byte")),
        speed,
        hours_text,
    ]


def _has(runs: list[Run], axis: str) -> bool:
    """Whether some run has a place on an axis for all of its curves."""
    for run in runs:
        events = run.curve(TRAIN) + run.curve(EVAL)
        if run.last_step and run.over(axis, events) is not None:
            return True
    return False


def payload(run: Run) -> dict:
    """What the page's script draws of a run: columns of its curves, and where things happened on
    each axis."""
    curves = [_columns(run, _outline(run.curve(TRAIN)), None)]
    curves += [_columns(run, run.curve(EVAL, split), str(split)) for split in run.splits()]
    return {
        "name": run.name,
        "curves": [curve for curve in curves if curve["columns"]["step"]],
        "events": _marks(run),
    }


def _outline(events: list[dict]) -> list[dict]:
    """Events of which a curve keeps its shape: of each stretch, those of its extremes."""
    if len(events) <= 3 * BUCKETS:
        return events
    losses = np.nan_to_num(values(events, "loss"))
    norms = np.nan_to_num(values(events, "grad_norm"))
    kept = {0, len(events) - 1}
    for part in np.array_split(np.arange(len(events)), BUCKETS):
        kept.add(int(part[np.argmin(losses[part])]))
        kept.add(int(part[np.argmax(losses[part])]))
        kept.add(int(part[np.argmax(norms[part])]))
    return [events[index] for index in sorted(kept)]


def _columns(run: Run, events: list[dict], split: str | None) -> dict:
    """A curve: its quantities that hold a number, and its places on the axes."""
    columns = {}
    for name in CHARTS:
        column = values(events, name)
        unused = name == "loss_scale" and (column == 1).all()
        if np.isfinite(column).any() and not unused:
            columns[name] = column
    for name, axis in AXES.items():
        places = run.over(name, events)
        if places is not None:
            columns[axis.key] = places
    rounded = {name: [_rounded(number) for number in column] for name, column in columns.items()}
    return {"split": split, "columns": rounded}


def _rounded(number: float) -> int | float | None:
    """As JSON: six digits, whole numbers whole, null for what is not finite."""
    if not math.isfinite(number):
        return None
    if number.is_integer() and abs(number) < 2**53:
        return int(number)
    return float(f"{number:.6g}")


def _marks(run: Run) -> list[dict]:
    """Where things happened: their places on the axes, by those of training."""
    train = run.curve(TRAIN)
    axes = {}
    for name, axis in AXES.items():
        places = run.over(name, train) if train else None
        if places is not None:
            axes[axis.key] = places
    marks = []
    for event in happenings(run)[-SHOWN_EVENTS:]:
        step = event["step"]
        at = {
            key: _rounded(float(np.interp(step, axes["step"], places)))
            for key, places in axes.items()
        }
        text = f"{event['event']} at step {step}"
        marks.append({"at": at, "text": text, "alarm": event["event"] in ALARMS})
    return marks


def happenings(run: Run) -> list[dict]:
    """Events that are no curve's, by time of writing."""
    events = []
    for kind in HAPPENINGS:
        events += run.events.get(kind, [])
    return sorted(events, key=lambda event: values([event], "time")[0])


def _sections(run: Run, index: int) -> str:
    """What the page tells of a run below the curves; of the first, the first two stand open."""
    parts = [
        ("evaluation", "Evaluation per split", _evaluation(run)),
        ("events", "What happened", _events(run)),
        ("environment", "Environment and time", _environment(run)),
        ("config", "Configuration", _configuration(run)),
    ]
    sections = []
    for name, label, content in parts:
        opened = " open" if index == 0 and name in ("evaluation", "events") else ""
        sections.append(
            f'<details id="{name}-{index}"{opened}><summary>{label}</summary>{content}</details>'
        )
    return f"<h2>{_text(run.name)}</h2>\n" + "\n".join(sections)


def _configuration(run: Run) -> str:
    dataset = run.config.get("dataset", {})
    sources = run.config.get("sources", {})
    rows = [
        ["dataset", dataset.get("root", "-"), ""],
        ["fingerprint", run.fingerprint or "-", ""],
        ["tokenizer", dataset.get("tokenizer", "-"), ""],
    ]
    for path, value in leaves(run.config["run"]):
        rows.append([path, value, sources.get(path, "default")])
    return _table(["setting", "value", "from"], rows)


def _evaluation(run: Run) -> str:
    head = ["split", "step"]
    head += [name.replace("_", " ") for name in EVALUATION]
    head.append("languini normalised ppl")
    rows = []
    for split in run.splits():
        event = run.curve(EVAL, split)[-1]
        row = [split, f"{event['step']:,}"]
        row += [_figure(event.get(name)) for name in EVALUATION]
        row.append(_figure((event.get("languini") or {}).get("normalised_ppl")))
        rows.append(row)
    if not rows:
        return "<p>no evaluation yet</p>"
    return _table(head, rows, numbers=range(1, len(head)))


def _events(run: Run) -> str:
    events = happenings(run)
    if not events:
        return "<p>nothing but training</p>"
    shown = events[-SHOWN_EVENTS:]
    rows = [
        [_clock(event), f"{event['step']:,}", event["event"], _details(event)] for event in shown
    ]
    table = _table(["time (UTC)", "step", "event", ""], rows, numbers=[1])
    earlier = len(events) - len(shown)
    return f"<p>{earlier:,} earlier ones are left out.</p>{table}" if earlier else table


def _clock(event: dict) -> str:
    seconds = values([event], "time")[0]
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "-"


def _details(event: dict) -> str:
    """What an event tells, in words; of a start what its environment's table does not repeat, of
    documents the first."""
    texts = []
    for key, value in event.items():
        repeated = event["event"] == "start" and key not in ("device", "ranks", "precision")
        elsewhere = key in ("event", "step", "time", "documents")
        if value is not None and not repeated and not elsewhere:
            texts.append(f"{key.replace('_', ' ')} {_shown(value)}")
    names = list(dict.fromkeys(_names(event.get("documents"))))
    if names:
        texts.append(f"{plural(len(names), 'document')}: {first_of(names, SHOWN_DOCUMENTS)}")
    text = ", ".join(texts)
    return text if len(text) <= LONG_TEXT else text[:LONG_TEXT] + " …"


def _shown(value: Any) -> str:
    """A value of an event."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _names(documents: Any) -> Iterator[str]:
    """The texts in a list, or in lists of lists."""
    for item in documents if isinstance(documents, list) else []:
        if isinstance(item, list):
            yield from _names(item)
        else:
            yield str(item)


def _environment(run: Run) -> str:
    batch = run.config["batch"]
    micro_batch = f"{batch.get('micro_size', '-')} x {batch.get('accumulation', '-')}"
    zero = run.config["run"].get("zero_optimization") or {}
    rows = [
        ["precision", run.config.get("precision", "-")],
        ["ranks", batch.get("world_size", "-")],
        ["micro batch x accumulation", micro_batch],
        ["ZeRO stage", zero.get("stage", "-")],
    ]
    start: dict[str, Any] = next(reversed(run.events.get(START, [])), {})
    for key in ("device", "host", "kernels", "peak_flops"):
        if start.get(key):
            rows.append([key.replace("_", " "), start[key]])
    for package, version in (start.get("versions") or {}).items():
        rows.append([package, version])
    rows += _times(run.curve(TRAIN))
    pauses = values(run.events.get(CHECKPOINT, []), "seconds")
    if len(pauses):
        pause = f"training waited {statistics.median(pauses):.3g} s for one (median)"
        rows.append(["checkpoints", f"{len(pauses)}, {pause}"])
    return _table(["", ""], rows)


def _times(train: list[dict]) -> list[list]:
    """Rows: where the time of training went, by the parts that its first line with them names."""
    parts = []
    for event in train:
        if isinstance(event.get("seconds"), dict):
            parts = list(event["seconds"])
            break
    seconds = {part: float(np.nansum(values(train, f"seconds/{part}"))) for part in parts}
    whole = sum(seconds.values())
    if not whole > 0:
        return []
    return [
        [f"time: {part}", f"{spent:,.1f} s ({spent / whole:.1%})"]
        for part, spent in seconds.items()
    ]


def _differences(runs: list[Run]) -> str:
    """The settings in which runs differ."""
    trees = [dict(leaves(run.config["run"])) for run in runs]
    settings = dict.fromkeys(path for tree in trees for path in tree)
    paths = [path for path in settings if path != "gpt.run_dir" and _differs(trees, path)]
    if not paths:
        return ""
    head = ["run"] + [path.removeprefix("gpt.") for path in paths]
    rows = [[run.name] + [tree.get(path) for path in paths] for run, tree in zip(runs, trees)]
    return "<h2>Where the runs differ</h2>" + _table(head, rows)


def _differs(trees: list[dict], path: str) -> bool:
    return len({json.dumps(tree.get(path), default=str) for tree in trees}) > 1

"""One self-contained HTML page about runs, from their metrics.jsonl and config.yaml.

    python tools/report.py runs/24h --out report.html
    python tools/report.py runs/24h --out report.html --watch   again every 10 s while it trains

Configuration with the source of every value, curves (drag to zoom, double click for the whole),
what happened (checkpoints, overflows, spikes, skips, rewinds, resumes), evaluation per split, and
environment. The page loads nothing from anywhere. With --watch an open page reloads itself and
keeps its zoom; the tool ends when all runs are finished, or by Ctrl-C.
"""

import base64
import hashlib
import html
import json
import math
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from gpt.config.run_config import leaves
from gpt.errors import Parser, UserError, command
from gpt.files import write_atomically
from gpt.metrics.events import AXES
from gpt.metrics.runs import read_runs, values

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
ALARMS = ("overflow", "spike", "skip", "rewind", "failed", "checkpoint_failed", "stopped")
HAPPENINGS = ("start", "resume", "checkpoint", *ALARMS)
# of a curve's steps; each keeps its least and greatest loss, and its greatest gradient norm
BUCKETS = 700
SHOWN_EVENTS = 300


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs"
    )
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=10.0,
        metavar="SECONDS",
        help="write it again so often, and have open pages follow (default 10)",
    )
    args = parser.parse_args()
    out = Path(args.out)
    if out.is_dir() or not out.resolve().parent.is_dir() or out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {out}: give the name of an .html file in a folder that exists")
    if args.watch is not None and not 1 <= args.watch <= 86400:
        raise UserError(f"--watch {args.watch:g}: give seconds from 1 to 86400")
    finished = args.watch is None
    while True:
        runs, last_time = read_runs(args.runs), finished
        write_atomically(out, page(runs, reload=None if last_time else args.watch))
        if last_time:
            break
        # the last checkpoint comes after the last evaluation: look once more
        finished = all(one.finished for one in runs)
        time.sleep(args.watch)
    for notice in (notice for one in runs for notice in one.notices):
        print(f"notice: {notice}")
    print(f"{out}: {len(runs)} run{'s' * (len(runs) > 1)}, {out.stat().st_size / 1e6:.2f} MB")


def page(runs, reload=None) -> str:
    """The whole HTML text. reload: seconds after which an open page reloads itself."""
    folder = Path(__file__).parent
    style, script = (
        (folder / f"report.{ending}").read_text(encoding="utf-8") for ending in ("css", "js")
    )
    title = _text(
        ", ".join(one.name for one in runs[:3])
        + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    )
    # no other code runs
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    axes = [
        {"key": axis.key, "label": axis.label, "log": axis.log}
        for name, axis in AXES.items()
        if name == "steps" or _has(runs, name)
    ]
    data = {
        "axes": axes,
        "charts": [
            {"key": key, "label": label, "log": log} for key, (label, log) in CHARTS.items()
        ],
        "runs": [payload(one) for one in runs],
        "reload": reload,
    }
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
<p class="faint">written {written}{f", again every {reload:g} s" if reload else ""}</p>
{"".join(f'<p class="bad">{_text(notice)}</p>' for one in runs for notice in one.notices)}
{
        _table(
            [
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
            ],
            [_summary(one) for one in runs],
            numbers=range(3, 11),
        )
    }
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
{"".join(_sections(one, index) for index, one in enumerate(runs))}
<script type="application/json" id="data">{_embedded(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def _digest(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(tree):
    """JSON that no HTML parser can leave early."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(value) -> str:
    return html.escape(str(value))


def _table(head, rows, numbers=()) -> str:
    """An HTML table of escaped cells; in the columns `numbers` they stand at the right, and only
    long ones are broken."""

    def cells(row, tag):
        for index, cell in enumerate(row):
            text = "-" if cell is None else str(cell)
            kind = " class=n" if index in numbers else " class=s" if len(text) <= 36 else ""
            yield f"<{tag}{kind}>{_text(text)}</{tag}>"

    body = "".join(f"<tr>{''.join(cells(row, 'td'))}</tr>" for row in rows)
    head = "".join(cells(head, "th"))
    return (
        "<div"
        f' class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(value, digits=4) -> str:
    """A number for a person; "-" for one that is absent or not finite."""
    number = values([{"value": value}], "value")[0]
    if not math.isfinite(number):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{number:,.{digits}f}"


def _summary(one):
    event, train = one.final() or {}, one.curve("train")
    speed = values(train[-20:], "tokens_per_second")
    hours = one.over("hours", one.curve("train")[-1:] or one.curve("eval")[-1:])
    return [
        one.name,
        one.state,
        one.family,
        f"{one.model.parameters():,}",
        f"{one.last_step * one.tokens_per_step:,}",
        event.get("split", "-"),
        *(_figure(event.get(name)) for name in ("loss", "normalised_ppl", "bits_per_byte")),
        f"{np.nanmedian(speed):,.0f}" if np.isfinite(speed).any() else "-",
        f"{hours[-1]:,.4g}" if hours is not None and len(hours) else "-",
    ]


def _has(runs, axis):
    return any(
        one.last_step and one.over(axis, one.curve("train") + one.curve("eval")) is not None
        for one in runs
    )


def payload(one) -> dict:
    """What the page's script draws of a run: columns of its curves, and where things happened on
    each axis."""
    curves = [_columns(one, _outline(one.curve("train")), None)]
    curves += [_columns(one, one.curve("eval", split), str(split)) for split in one.splits()]
    return {
        "name": one.name,
        "curves": [curve for curve in curves if curve["columns"]["step"]],
        "events": _marks(one),
    }


def _outline(events):
    """Events of which a curve keeps its shape: of each stretch, those of its extremes."""
    if len(events) <= 3 * BUCKETS:
        return events
    columns = [
        (values(events, "loss"), (np.argmin, np.argmax)),
        (values(events, "grad_norm"), (np.argmax,)),
    ]
    kept = {0, len(events) - 1}
    for part in np.array_split(np.arange(len(events)), BUCKETS):
        for column, extremes in columns:
            kept |= {int(part[extreme(np.nan_to_num(column[part]))]) for extreme in extremes}
    return [events[index] for index in sorted(kept)]


def _columns(one, events, split):
    columns = {name: values(events, name) for name in CHARTS}
    columns = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if "loss_scale" in columns and (columns["loss_scale"] == 1).all():
        del columns["loss_scale"]  # none in use
    for name, axis in AXES.items():
        if (along := one.over(name, events)) is not None:
            columns[axis.key] = along
    return {
        "split": split,
        "columns": {name: [_rounded(x) for x in column] for name, column in columns.items()},
    }


def _rounded(number):
    """As JSON: six digits, whole numbers whole, null for what is not finite."""
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.6g}")


def _marks(one):
    train = one.curve("train")
    along = {axis.key: one.over(name, train) for name, axis in AXES.items()} if train else {}
    steps = along.get("step")
    found = []
    for event in happenings(one)[-SHOWN_EVENTS:]:
        at = {
            key: _rounded(float(np.interp(event["step"], steps, axis)))
            for key, axis in along.items()
            if axis is not None
        }
        found.append(
            {
                "at": at,
                "text": f"{event['event']} at step {event['step']}",
                "alarm": event["event"] in ALARMS,
            }
        )
    return found


def happenings(one) -> list:
    """Events that are no curve's, by time of writing."""
    found = [event for kind in HAPPENINGS for event in one.events.get(kind, [])]
    return sorted(found, key=lambda event: values([event], "time")[0])


def _sections(one, index):
    config = [
        [path, value, one.config.get("sources", {}).get(path, "default")]
        for path, value in leaves(one.config["run"])
    ]
    facts = [
        ["dataset", one.config.get("dataset", {}).get("root", "-"), ""],
        ["fingerprint", one.fingerprint or "-", ""],
        ["tokenizer", one.config.get("dataset", {}).get("tokenizer", "-"), ""],
    ]
    parts = [
        ("evaluation", "Evaluation per split", _evaluation(one)),
        ("events", "What happened", _events(one)),
        ("environment", "Environment and time", _environment(one)),
        ("config", "Configuration", _table(["setting", "value", "from"], facts + config)),
    ]
    opened = {"evaluation", "events"}
    return f"<h2>{_text(one.name)}</h2>\n" + "\n".join(
        f'<details id="{name}-{index}"{" open" if name in opened and not index else ""}>'
        f"<summary>{label}</summary>{content}</details>"
        for name, label, content in parts
    )


def _evaluation(one):
    rows = []
    for split in one.splits():
        event = one.curve("eval", split)[-1]
        rows.append(
            [
                split,
                f"{event['step']:,}",
                *(_figure(event.get(name)) for name in EVALUATION),
                _figure((event.get("languini") or {}).get("normalised_ppl")),
            ]
        )
    head = [
        "split",
        "step",
        *(name.replace("_", " ") for name in EVALUATION),
        "languini normalised ppl",
    ]
    return _table(head, rows, numbers=range(1, len(head))) if rows else "<p>no evaluation yet</p>"


def _events(one):
    found = happenings(one)
    rows = [
        [_clock(event), f"{event['step']:,}", event["event"], _details(event)]
        for event in found[-SHOWN_EVENTS:]
    ]
    left_out = (
        f"<p>{len(found) - len(rows):,} earlier ones are left out.</p>"
        if len(found) > len(rows)
        else ""
    )
    return (
        left_out + _table(["time (UTC)", "step", "event", ""], rows, numbers=[1])
        if rows
        else "<p>nothing but training</p>"
    )


def _clock(event):
    seconds = values([event], "time")[0]
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "-"


def _details(event):
    """What an event tells, in words; of a start what its environment's table does not repeat, of
    documents the first."""

    def shown(value):
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, int) and not isinstance(value, bool):
            return f"{value:,}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    told = {
        key: value
        for key, value in event.items()
        if value is not None
        and key not in ("event", "step", "time", "documents")
        and (event["event"] != "start" or key in ("device", "ranks", "precision"))
    }
    texts = [f"{key.replace('_', ' ')} {shown(value)}" for key, value in told.items()]
    names = list(dict.fromkeys(_names(event.get("documents"))))
    if names:
        texts.append(
            f"{len(names)} document{'s' * (len(names) > 1)}:"
            f" {', '.join(names[:4])}{', …' * (len(names) > 4)}"
        )
    text = ", ".join(texts)
    return text if len(text) <= 600 else text[:600] + " …"


def _names(documents):
    """The texts in a list, or in lists of lists."""
    for item in documents if isinstance(documents, list) else []:
        if isinstance(item, list):
            yield from _names(item)
        else:
            yield str(item)


def _environment(one):
    batch, run = one.config["batch"], one.config["run"]
    rows = [
        ["precision", one.config.get("precision", "-")],
        ["ranks", batch.get("world_size", "-")],
        [
            "micro batch x accumulation",
            f"{batch.get('micro_size', '-')} x {batch.get('accumulation', '-')}",
        ],
        ["ZeRO stage", (run.get("zero_optimization") or {}).get("stage", "-")],
    ]
    start = next(reversed(one.events.get("start", [])), {})
    rows += [
        [key.replace("_", " "), start[key]]
        for key in ("device", "host", "kernels", "peak_flops")
        if start.get(key)
    ]
    rows += [[name, version] for name, version in (start.get("versions") or {}).items()]
    train = one.curve("train")
    parts = list(
        next((event["seconds"] for event in train if isinstance(event.get("seconds"), dict)), {})
    )
    sums = {part: float(np.nansum(values(train, f"seconds/{part}"))) for part in parts}
    whole = sum(sums.values())
    rows += [
        [f"time: {part}", f"{spent:,.1f} s ({spent / whole:.1%})"]
        for part, spent in sums.items()
        if whole > 0
    ]
    pauses = values(one.events.get("checkpoint", []), "seconds")
    if len(pauses):
        rows.append(
            [
                "checkpoints",
                (
                    f"{len(pauses)}, training waited {statistics.median(pauses):.3g} s for one"
                    " (median)"
                ),
            ]
        )
    return _table(["", ""], rows)


def _differences(runs):
    """The settings in which runs differ."""
    trees = [dict(leaves(one.config["run"])) for one in runs]
    paths = [
        path
        for path in dict.fromkeys(path for tree in trees for path in tree)
        if path != "gpt.run_dir"
        and len({json.dumps(tree.get(path), default=str) for tree in trees}) > 1
    ]
    if not paths:
        return ""
    rows = [[one.name, *(tree.get(path) for path in paths)] for one, tree in zip(runs, trees)]
    return "<h2>Where the runs differ</h2>" + _table(
        ["run", *(path.removeprefix("gpt.") for path in paths)], rows
    )


if __name__ == "__main__":
    command(main)

"""The page of tools/report.py: runs as one HTML text that loads nothing from anywhere."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config.identity import ARGUMENTS_OF, CHANGES
from gpt.config.run_config import leaves
from gpt.errors import UserError
from gpt.escaping import html_text
from gpt.metrics.events import EVAL, TRAIN
from gpt.metrics.run import Run, values
from gpt.results.comparison import Group, group_by_seed, unfinished_siblings, with_runs
from gpt.results.leaderboard import leaderboard
from gpt.results.leaderboard_text import Table, caption, class_tables
from gpt.results.page_curves import data
from gpt.results.page_sections import sections
from gpt.results.page_tables import figure, table
from gpt.wording import listed, timespan

SHOWN_NAMES = 3  # of runs, in the title
SUMMARY = (
    "run",
    "state",
    "method",
    "parameters",
    "tokens",
    "split",
    "loss (nats per token)",
    "normalised perplexity (per byte)",
    "bits per byte",
    "tokens/s",
    "time measured",
)


def page(
    runs: list[Run],
    notices: Sequence[str] = (),
    reload: float | None = None,
    equal_code: frozenset[str] = frozenset(),
) -> str:
    """The whole HTML text. notices: of read_runs. reload: seconds after which an open page reloads
    itself. equal_code: of gpt.results.methods.same_code."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    # no other code runs
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    title = html_text(listed([run.name for run in runs], SHOWN_NAMES))
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    again = f", again every {reload:g} s" if reload else ""
    notices_html = "".join(f'<p class="bad">{html_text(notice)}</p>' for notice in notices)
    groups = group_by_seed(runs, equal_code)
    sections_html = "".join(sections(run, index) for index, run in enumerate(runs))
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
{_summaries(groups)}
<h2>Curves</h2>
<noscript><p class="bad">\
The curves are drawn by a script in this page, which is switched off.</p></noscript>
<div id="controls"><label>over <select id="axis"></select></label> \
<label><input type="checkbox" id="logx"> log</label>
<button id="in">zoom in</button><button id="out">zoom out</button><button id="whole">whole</button>
<span class="faint">drag across a curve to zoom; thin lines: training, marked: held out, \
apart at 0: before training{_about_seeds(groups)}; triangles: trouble</span></div>
<div id="runs"></div>
<div id="charts"></div>
{_leaderboard(groups)}
{_differences(runs)}
{sections_html}
<script type="application/json" id="data">{_embedded(data(_lines(groups), reload))}</script>
<script>{script}</script>
</body>
</html>
"""


def _lines(groups: Sequence[Group]) -> list[Group]:
    """The groups of which each is a line: a seed that is not finished is none of its finished
    siblings' mean, but a line of its own."""
    names = {run.name for run in unfinished_siblings(groups)}
    lines = with_runs(groups, lambda run: run.name not in names)
    return lines + with_runs(groups, lambda run: run.name in names)


def _about_seeds(groups: Sequence[Group]) -> str:
    if all(len(group.runs) == 1 for group in groups):
        return ""
    return "; means over seeds, band: 1 s.d."


def _digest(content: str) -> str:
    """Of a style or a script, as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _embedded(tree: Any) -> str:
    """JSON that no HTML parser can leave early."""
    content = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _summaries(groups: Sequence[Group]) -> str:
    rows = [_summary(run, group.method) for group in groups for run in group.runs]
    return table(SUMMARY, rows, numbers=range(3, len(SUMMARY)))


def _summary(run: Run, method: str) -> list:
    """The row of a run, under SUMMARY."""
    final = run.whole() or run.final() or {}
    train = run.curve(TRAIN)
    speeds = values(train[-20:], "tokens_per_second")
    speed = f"{np.nanmedian(speeds):,.0f}" if np.isfinite(speeds).any() else "-"
    hours = run.over("hours", train[-1:] or run.curve(EVAL)[-1:])
    time_measured = "-"
    if hours is not None and len(hours) and np.isfinite(hours[-1]):
        time_measured = timespan(hours[-1])
    return [
        run.name,
        run.state,
        method,
        f"{run.parameters:,}",
        f"{run.tokens_until(run.last_step):,}",
        final.get("split", "-"),
        figure(final.get("loss")),
        figure(final.get("normalised_ppl")),
        figure(final.get("bits_per_byte")),
        speed,
        time_measured,
    ]


def _leaderboard(groups: list[Group]) -> str:
    """What compare.py prints of the runs, or why they cannot be compared; nothing for one run."""
    if sum(len(group.runs) for group in groups) == 1:
        return ""
    notices: list[str] = []
    parts = ["<h2>At equal compute</h2>"]
    try:
        tables = leaderboard(groups, notices)
    except UserError as error:
        notices = [str(error)]
    else:
        parts.append(f"<p>{html_text(caption(tables))}</p>")
        parts += [_class_table(class_table) for class_table in class_tables(tables)]
    parts += [f'<p class="faint">{html_text(notice)}</p>' for notice in notices]
    return "".join(parts)


def _class_table(class_table: Table) -> str:
    columns = class_table.columns
    rows = list(zip(*(column.cells for column in columns)))
    numbers = [index for index, column in enumerate(columns) if column.is_number]
    remark = f"<p>{html_text(class_table.remark)}</p>" if class_table.remark else ""
    names = [column.name for column in columns]
    return f"<h3>{html_text(class_table.heading)}</h3>{table(names, rows, numbers)}{remark}"


def _differences(runs: list[Run]) -> str:
    """The settings in which runs differ."""
    trees = [_settings(run) for run in runs]
    settings = dict.fromkeys(path for tree in trees for path in tree)
    paths = [path for path in settings if path != "gpt.run_dir" and _differs(trees, path)]
    if not paths:
        return ""
    head = ["run"] + [path.removeprefix("gpt.") for path in paths]
    rows = [[run.name] + [tree.get(path) for path in paths] for run, tree in zip(runs, trees)]
    return "<h2>Where the runs differ</h2>" + table(head, rows)


def _settings(run: Run) -> dict[str, Any]:
    """{path: value} of its configuration, and of what else tells it from others."""
    settings = dict(leaves(run.config["run"]))
    settings["code"] = run.code
    facts = ("kernels", "parameters", "dataset.tokenizer", "dataset.train", CHANGES)
    for path in (*ARGUMENTS_OF, *facts):
        settings[path] = run.identity.get(path)
    return settings


def _differs(trees: list[dict], path: str) -> bool:
    return len({json.dumps(tree.get(path), default=str) for tree in trees}) > 1

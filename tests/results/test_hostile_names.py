"""Whatever runs, splits, variants, files and their arguments are called, tables, pages and figures
show it and do nothing else."""

import os
import re
import sys

import pytest
from conftest import load_command
from synthetic_runs import (
    amend,
    evaluation,
    give_own_code,
    identified_run,
    train,
    write_lines,
)

from gpt.metrics.runs import read_runs
from gpt.results import figures
from gpt.results.comparison import group_by_seed

HOSTILE = {
    "markup": "a|b<img src=x onerror=alert(1)>",
    "escaped markup": "a\\|b `c` [d](e) *f* _g_",
    "a formula": "$x$ \\frac $",
    "half a formula": "a" * 17 + "$" * 30,
    "controls": "a\x1b]0;TITLE\x07\x1b[2J\nb\u202ec",
    "no UTF-8": os.fsdecode(b"a\xff"),
    "no glyphs": "\U0001f600\u6f22\ue000",
    "long": "w" * 250,
}


SPLIT = "te|st<i>$\x1b[2J"
# what a terminal obeys, what turns the direction of text, and what is no text
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each name, as folder and variant, three scales."""
    folder = tmp_path_factory.mktemp("runs")
    for name in HOSTILE.values():
        for steps in (10, 20, 40):
            run = folder / f"{name[:240]}{steps}"
            identified_run(run, steps, tokens_per_second=64.0, eval_data_split=SPLIT)
            write_lines(run, [train(steps, 3.0), evaluation(steps, 3.0 + 1 / steps, split=SPLIT)])
            amend(run, {"run/gpt/variant": name, "dataset/scored": {"split": SPLIT}})
            give_own_code(run, "a", name=f"{name}.py", option=name)
    return folder


def test_a_table_of_them(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", str(runs)])
    load_command("compare").main()
    shown = capsys.readouterr().out
    assert not CONTROLS.search(shown) and not re.search(r"(?<!\\)<", shown)
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(table) == 3 * (2 + len(HOSTILE))
    for rows in (table[:10], table[10:20], table[20:]):
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) == 1


def test_a_page_of_them(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", str(runs), "--out", str(tmp_path / "a.html")])
    load_command("report").main()
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert not CONTROLS.search(page) and "<img" not in page and "te|st&lt;i&gt;" in page


def test_figures_of_them(runs, tmp_path):
    plot = load_command("plot")
    groups = group_by_seed(read_runs([runs]))
    points, laws = plot.fit_laws(groups, "flops", [])
    assert len(laws) == len(HOSTILE)
    output = figures.Output(tmp_path, ["svg"], title=HOSTILE["a formula"] + HOSTILE["controls"])
    figures.curves(groups, "steps", "loss", output)
    figures.training(groups, output)
    figures.law_figure(laws, points, {}, SPLIT, "flops", output)
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        figure = path.read_text(encoding="utf-8")
        assert not CONTROLS.search(figure)
        # a formula that is a name is shown as it is written
        assert "<!-- $x$ \\frac $" in figure

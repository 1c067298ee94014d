"""The report page, as a real browser shows it."""

import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT, load_command
from synthetic_runs import config_yaml, evaluation, synthetic_run, train, write_lines

from gpt.errors import UserError
from gpt.metrics.runs import read_runs
from gpt.results.page import page, payload

report = load_command("report")
BROWSER = shutil.which("chromium")
in_browser = pytest.mark.skipif(
    BROWSER is None, reason="there is no chromium here: apt-get install chromium"
)
HOSTILE = "</script><img src=x onerror=alert(1)>"

EVENTS = [
    {
        "event": "start",
        "step": 0,
        "device": "a device & more",
        "host": "<b>host</b>",
        "versions": {"torch": "9.9"},
        "time": 1.7e9,
    },
    {"event": "overflow", "step": 2, "loss_scale": 32768.0, "in_a_row": 1, "time": 1.7e9 + 2},
    {
        "event": "spike",
        "step": 3,
        "loss": 9.5,
        "zscore": 12.25,
        "batch": 2,
        "documents": [HOSTILE],
        "time": 1.7e9 + 3,
    },
    {
        "event": "checkpoint",
        "step": 4,
        "seconds": 0.25,
        "seconds_to_commit": 1.5,
        "bytes": 123456,
        "time": 1.7e9 + 4,
    },
    {"event": "resume", "step": 4, "time": 1.7e9 + 5},
]


def write_page(tmp_path, runs, name="report.html", **options):
    (tmp_path / name).write_text(page(read_runs(runs), **options), encoding="utf-8")
    return tmp_path / name


def browse(page, tmp_path, fragment="", *options):
    """(DOM after the page's scripts ran, lines of the browser's console)."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
        "--window-size=1200,1600",
        *options,
        "--dump-dom",
        f"file://{page}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def a_run(folder, **options):
    synthetic_run(folder, 40, final=1.25, tokens_per_second=64.0, **options)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    write_lines(
        folder,
        [
            *lines,
            *EVENTS,
            train(5, 6.6),
            *(train(step, 6.0) for step in range(6, 40)),
            train(40, 5.5, seconds={"data": 1.0, "forward": 3.0}),
            evaluation(40, 5.0, nats_per_byte=1.25),
            evaluation(40, 7.0, "java", nats_per_byte=2.5),
        ],
    )
    return folder


@in_browser
def test_the_page_shows_what_the_run_holds(tmp_path):
    page = write_page(
        tmp_path, [a_run(tmp_path / "one"), synthetic_run(tmp_path / "two", 20, comment="other")]
    )
    dom, console = browse(page, tmp_path)
    assert console == []
    text = html.unescape(
        re.sub(r"<[^>]+>", "\t", re.sub(r"<script.*?</script>", "", dom, flags=re.S))
    )
    cells = [cell.strip() for cell in text.split("\t") if cell.strip()]
    for expected in (
        f"{math.exp(1.25):.4f}",
        f"{1.25 / math.log(2):.4f}",
        f"{math.exp(2.5):.4f}",
        "finished",
        "java",
        "a device & more",
        "<b>host</b>",
        "9.9",
        "seconds 0.25, seconds to commit 1.5, bytes 123,456",
        "loss scale 3.277e+04, in a row 1",
        "2023-11-14 22:13:24",
    ):
        assert expected in cells, expected
    where = cells.index("scheduler.params.max_lr")
    assert cells[where + 1 : where + 3] == ["0.003", "tiny.json:7"]
    assert "time: forward" in cells and "3.0 s (75.0%)" in cells
    lines = re.findall(r'<path d="([^"]*)"[^>]*data-name="([^"]*)"', dom)
    # of the first chart, loss over steps
    counts = {name: d.count("L") + 1 for d, name in lines[:5]}
    assert counts == {"one": 40, "one, test": 2, "one, java": 1, "two": 20, "two, test": 3}
    marks = re.findall(r'<path d="[^"]*" class="(event[^"]*)" data-run="0"><title>([^<]*)', dom)
    assert marks == [
        ("event", "one: start at step 0"),
        ("event alarm", "one: overflow at step 2"),
        ("event alarm", "one: spike at step 3"),
        ("event", "one: checkpoint at step 4"),
        ("event", "one: resume at step 4"),
    ]


DRIVER = """<!doctype html>
<iframe id="page" src="{page}" width="1100" height="1500"></iframe><pre id="found"></pre><script>
const wait = (ms) => new Promise((go) => setTimeout(go, ms));
document.getElementById("page").onload = async () => {{
  const page = document.getElementById("page"), doc = page.contentDocument;
  const svg = doc.getElementById("chart-loss");
  const box = svg.getBoundingClientRect(), found = {{}};
  const point = (kind, x) => svg.dispatchEvent(new page.contentWindow.PointerEvent(kind,
    {{bubbles: true, clientX: box.left + x, clientY: box.top + 90}}));
  const texts = (svg) => [...svg.querySelectorAll("text[text-anchor=middle]")];
  const ticksOf = (svg) => texts(svg).map((tick) => tick.textContent);
  const ticks = () => ticksOf(svg);
  point("pointermove", 58 + (box.width - 68) / 2);
  found.tip = [...svg.parentElement.querySelectorAll(".tip div")].map((row) => row.textContent);
  found.before = ticks();
  point("pointerdown", 58 + (box.width - 68) / 4);
  point("pointermove", 58 + (box.width - 68) / 2);
  point("pointerup", 58 + (box.width - 68) / 2);
  found.zoomed = ticks();
  found.hash = decodeURIComponent(page.contentWindow.location.hash);
  doc.querySelector("#runs input").click();
  found.left = [...svg.querySelectorAll("path[data-name]")].map((path) => path.dataset.name);
  page.onload = null; page.contentWindow.location.reload(); await wait(700);
  const again = document.getElementById("page").contentDocument.getElementById("chart-loss");
  found.reloaded = ticksOf(again);
  found.still = [...again.querySelectorAll("path[data-name]")].map((path) => path.dataset.name);
  again.dispatchEvent(new MouseEvent("dblclick", {{bubbles: true}}));
  found.whole = ticksOf(again);
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


@in_browser
def test_hover_zoom_and_reload(tmp_path):
    page = write_page(
        tmp_path,
        [
            synthetic_run(tmp_path / name, 40, max_eval_steps=n)
            for n, name in enumerate(("one", "two"), 1)
        ],
    )
    (tmp_path / "driver.html").write_text(DRIVER.format(page=page.name))
    dom, console = browse(tmp_path / "driver.html", tmp_path, "", "--allow-file-access-from-files")
    assert console == []
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))
    assert found["before"] == ["0", "10", "20", "30", "40"]
    loss = 8 * 21**-0.2  # half way, at step 20
    # pixels are whole
    assert float(found["tip"][0].removeprefix("optimiser steps: ")) == pytest.approx(20, abs=0.1)
    assert found["tip"][1:] == [
        f"● {name}: {loss:.5f} (step 20)" for name in ("one", "one, test", "two", "two, test")
    ]
    assert json.loads(found["hash"][1:])["zoom"] == pytest.approx([10, 20], abs=0.1)
    assert [tick for tick in found["zoomed"] if tick != "20"] == ["10", "12", "14", "16", "18"]
    assert found["reloaded"] == found["zoomed"]
    assert found["left"] == ["two", "two, test"] == found["still"]
    assert found["whole"] == found["before"]


@in_browser
@pytest.mark.parametrize(
    "fragment",
    ["#%7B%22zoom%22%3A5%2C%22hidden%22%3A1%7D", "#nonsense", '#{"axis":"tokens","logy":null}'],
)
def test_an_address_that_is_not_the_pages_own_does_no_harm(fragment, tmp_path):
    page = write_page(tmp_path, [synthetic_run(tmp_path / "one", 10)])
    dom, console = browse(page, tmp_path, fragment)
    assert console == [] and dom.count('data-name="one"') >= 3


@in_browser
def test_what_a_run_is_called_is_never_code(tmp_path):
    run = a_run(tmp_path / "one", comment=HOSTILE)
    (tmp_path / "x<").mkdir()
    shutil.move(run, tmp_path / "x<" / "script><img src=x onerror=alert(1)>")
    runs = read_runs([tmp_path / "x<" / "script><img src=x onerror=alert(1)>"])
    runs[0].name = HOSTILE
    runs[0].notices = [HOSTILE]
    (tmp_path / "report.html").write_text(page(runs), encoding="utf-8")
    dom, console = browse(tmp_path / "report.html", tmp_path)
    drawn = re.findall(r'data-name="([^"]*)"', dom)
    assert console == [] and "<img" not in re.sub(r'="[^"]*"', "", dom)
    assert (
        HOSTILE in map(html.unescape, drawn) and dom.count(html.escape(HOSTILE, quote=False)) >= 8
    )


def test_the_page_loads_nothing(tmp_path):
    text = page(read_runs([a_run(tmp_path / "one")]))
    assert re.search(
        r"default-src 'none'; style-src 'sha256-[^']+'; script-src 'sha256-[^']+'", text
    )
    assert not re.search(
        r"""\b(src|href|action|data)\s*=\s*["']|url\((?!#)|@import|\bfetch\(|XMLHttpRequest|https?://(?!www\.w3\.org)""",
        text,
    )


def test_long_curves_keep_their_peaks(tmp_path):
    config_yaml(tmp_path / "long", max_train_steps=9000)
    lines = [
        train(step, 100.0 if step == 4321 else 3.0, grad_norm=50.0 if step == 6543 else 1.0)
        for step in range(1, 9001)
    ]
    write_lines(tmp_path / "long", lines)
    columns = payload(read_runs([tmp_path / "long"])[0])["curves"][0]["columns"]
    assert (
        len(columns["step"]) < 9000 / 3 and columns["step"][0] == 1 and columns["step"][-1] == 9000
    )
    assert (
        columns["loss"][columns["step"].index(4321)] == 100
        and columns["grad_norm"][columns["step"].index(6543)] == 50
    )


def test_watching_follows_the_run_to_its_end(tmp_path):
    run = synthetic_run(tmp_path / "run", 40)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    write_lines(run, lines[:10], end='\n{"event": "tr')
    out = tmp_path / "report.html"
    command = [sys.executable, ROOT / "tools/report.py", run, "--out", out, "--watch", "1"]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    try:
        first = wait_for(lambda: out.read_text() if out.exists() else "")
        assert '"reload":1.0' in first and "at step 9 of 40" in first
        write_lines(run, lines)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and told.startswith(f"{out}: 1 run, 0.")
    last = out.read_text()
    assert '"reload":null' in last and ">finished</td>" in last
    assert sorted(os.listdir(tmp_path)) == ["report.html", "run"]  # nothing is left aside


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["none"], "none does not exist: give the folder that training made (--run_dir)"),
        (
            ["run", "--out", "report.txt"],
            "--out report.txt: give the name of an .html file in a folder that exists",
        ),
        (
            ["run", "--out", "no/report.html"],
            "--out no/report.html: give the name of an .html file in a folder that exists",
        ),
        (["run", "--watch", "0"], "--watch 0: give seconds from 1 to 86400"),
        (["run", "--watch", "x"], "command line: argument --watch: invalid float value: 'x'"),
    ],
)
def test_mistakes(options, sentence, tmp_path, monkeypatch):
    synthetic_run(tmp_path / "run", 5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--out", "report.html", *options])
    with pytest.raises(UserError) as error:
        report.main()
    assert str(error.value).startswith(sentence) and not (tmp_path / "report.html").exists()


@in_browser
@pytest.mark.parametrize("lines, curves", [([], []), ([evaluation(0, 7.6)], ["young, test"])])
def test_a_run_that_has_just_begun_has_a_page_that_follows_it(lines, curves, tmp_path):
    config_yaml(tmp_path / "young")
    write_lines(tmp_path / "young", lines)
    page = write_page(tmp_path, [tmp_path / "young"], reload=5.0)
    dom, console = browse(page, tmp_path)
    assert console == [] and re.findall(r'data-name="([^"]*)"', dom)[:1] == curves
    assert "at step 0 of 6" in dom and ("no evaluation yet" in dom) == (not lines)

"""The report page, as a real browser shows it."""

import errno
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
import yaml
from conftest import ROOT, load_command
from synthetic_runs import config_yaml, evaluation, synthetic_run, train, write_lines

from gpt.errors import UserError
from gpt.metrics.runs import read_runs
from gpt.results import evaluations
from gpt.results.comparison import group_by_seed
from gpt.results.looks import COLORS, Place
from gpt.results.page import page
from gpt.results.page_curves import data, payload

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
    counts = {name: len(re.findall("[ML]", d)) for d, name in lines[:5]}
    assert counts == {"one": 40, "one, test": 2, "one, java": 1, "two": 20, "two, test": 3}
    # what was scored before training stands apart
    assert [d.count("M") for d, name in lines[:5] if name == "two, test"] == [2]
    marks = re.findall(r'<path d="[^"]*" class="(event[^"]*)" data-group="0"><title>([^<]*)', dom)
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
  const texts = (svg) => [...svg.querySelectorAll("text.tick")];
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
    (tmp_path / "report.html").write_text(page(runs, [HOSTILE]), encoding="utf-8")
    dom, console = browse(tmp_path / "report.html", tmp_path)
    drawn = re.findall(r'data-name="([^"]*)"', dom)
    assert console == [] and "<img" not in re.sub(r'="[^"]*"', "", dom)
    assert (
        HOSTILE in map(html.unescape, drawn) and dom.count(html.escape(HOSTILE, quote=False)) >= 8
    )


def cells_of(text):
    """The texts of a page, without its style and script, in order."""
    body = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)
    cells = html.unescape(re.sub(r"<[^>]+>", "\t", body)).split("\t")
    return [cell.strip() for cell in cells if cell.strip()]


def test_seeds_are_one_line_with_a_band(tmp_path):
    for seed in (0, 1):
        synthetic_run(
            tmp_path / f"r-seed{seed}",
            20,
            lambda step, seed=seed: 8 - 0.1 * step + 0.02 * seed,
            seed=seed,
            tokens_per_second=20 * 256 / 90,  # a class of 90 s
        )
    drawn = data(group_by_seed(read_runs([tmp_path])), None)
    (group,) = drawn["groups"]
    assert group["name"] == "r (2 seeds)"
    training, held_out = group["curves"]
    assert training["columns"]["loss"] == pytest.approx(
        [8.01 - 0.1 * step for step in range(1, 21)]
    )
    assert held_out["columns"]["loss"] == pytest.approx([8.01, 7.01, 6.01])
    assert held_out["spread"]["loss"] == pytest.approx([0.02 / math.sqrt(2)] * 3, rel=1e-4)
    axes = {axis["key"]: axis["label"] for axis in drawn["axes"]}
    assert axes["reference_hours"] == "reference accelerator-minutes"
    assert held_out["columns"]["reference_hours"] == pytest.approx([0, 0.75, 1.5])


def test_a_seed_in_training_is_a_line_beside_its_finished_siblings(tmp_path):
    for seed in range(3):
        synthetic_run(tmp_path / f"r-seed{seed}", 20, seed=seed)
    write_lines(tmp_path / "r-seed1", [train(step, 5.0) for step in range(1, 13)])
    text = page(read_runs([tmp_path]))
    drawn = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    ends = {group["name"]: group["curves"][0]["columns"]["step"][-1] for group in drawn["groups"]}
    assert ends == {"r (2 seeds)": 20, "r-seed1": 12}


def test_the_page_says_what_a_run_is(tmp_path):
    run = a_run(tmp_path / "one", variant="rope")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {
        "parameters": 1234567,
        "kernels": "torch",
        "code": {
            "hash": "c0de" * 3,
            "commit": "beef" * 3,
            "dirty": True,
            "parts": {"model": "0123456789ab", "data": "ba9876543210"},
        },
        "changes": [{"step": 4, "setting": "train_batch_size", "was": 8, "is": 16}],
    }
    counts = {"documents": "d0c5", "tokens": 1000, "bytes": 4321}
    config["dataset"] |= {
        "train": {"split": "train", **counts},
        "scored": {"split": "test", **counts},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with (run / "metrics.jsonl").open("a") as metrics:
        for command in ("train.py --seed 1", "train.py --seed 1", "train.py <again>"):
            metrics.write(json.dumps({"event": "start", "step": 40, "command": command}) + "\n")
        changed = config["changes"]
        metrics.write(json.dumps({"event": "resume", "step": 4, "changed": changed}) + "\n")
    cells = cells_of(page(read_runs([run])))
    for name, value in (
        ("variant", "rope"),
        ("parameters", "1,234,567"),
        ("code", "c0dec0dec0de"),
        ("of its parts", "data ba9876543210, model 0123456789ab"),
        ("git commit", "beefbeefbeef, with changes that are not committed"),
        ("kernels", "torch"),
        ("scored", "test: 1,000 tokens, 4,321 bytes, documents d0c5"),
        ("changed on resuming", "train_batch_size 8 -> 16 at step 4"),
        ("resume", "train_batch_size 8 -> 16 at step 4"),
    ):
        assert any(cells[at : at + 2] == [name, value] for at in range(len(cells))), name
    assert cells.count("train.py --seed 1") == 1 and "train.py <again>" in cells
    assert "loss (nats per token)" in cells and "normalised loss (nats per byte)" in cells


def test_the_page_ranks_what_can_be_compared_and_says_why_not(tmp_path):
    for name, variant, loss in (("a-seed0", None, 1.3), ("b-seed0", "rope", 1.2)):
        synthetic_run(tmp_path / name, 20, final=loss, variant=variant, tokens_per_second=64.0)
    cells = cells_of(page(read_runs([tmp_path])))
    begin = cells.index("At equal compute")
    end = cells.index("Where the runs differ")
    assert cells[begin:end].index("b-seed0") < cells[begin:end].index("a-seed0")
    assert f"{math.exp(1.2):.4f}" in cells[begin:end]
    synthetic_run(tmp_path / "c-seed0", 20, fingerprint="e" * 64, tokens_per_second=64.0)
    text = "\n".join(cells_of(page(read_runs([tmp_path]))))
    assert "c-seed0 left out: scored on another text than a-seed0" in text
    assert "At equal compute" not in cells_of(page(read_runs([tmp_path / "a-seed0"])))


def test_the_whole_split_stands_beside_its_part(tmp_path):
    run = synthetic_run(tmp_path / "run", 12)
    config = yaml.safe_load((run / "config.yaml").read_text())
    scored = {"tokens": 5000, "bytes": 20_000, "documents": "2" * 64}
    config["dataset"]["scored"] = {"split": "test", **scored}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    about = {
        "documents": "2" * 64,
        "seq_len": 32,
        "last_n": 16,
        "run": {"step": 12, "curve": evaluations.digest_with_seed(config)},
    }
    figures = evaluation(12, 2.5, scored=20_000, of_tokens=5000)
    path = evaluations.file_of(run, "test", 12)
    path.parent.mkdir()
    path.write_text(json.dumps({**figures, **about}))
    cells = cells_of(page(read_runs([run])))
    rows = [cells[at : at + 6] for at, cell in enumerate(cells) if cell in ("training", "eval.py")]
    assert rows == [
        ["training", "12", "250", "5,000", "1,000", f"{8 * 13**-0.2:.4f}"],
        ["eval.py", "12", "5,000", "5,000", "20,000", "2.5000"],
    ]
    path.write_text("{}")
    assert any(
        "is not what eval.py --join writes" in cell for cell in cells_of(page(read_runs([run])))
    )


def test_page_and_figures_have_one_palette():
    style = (ROOT / "gpt/results/page.css").read_text().partition("@media")[0]
    assert tuple(re.findall(r"--c\d: (#\w{6});", style)) == COLORS


@in_browser
def test_what_is_drawn_has_names_and_room(tmp_path):
    for index in range(9):
        run = synthetic_run(tmp_path / f"run{index}", 20, variant=f"v{index}")
        told = {"weight": {"a": 3.0, "b": 4.0}, "gradient": {"a": 1.0}, "update": {"a": 0.1}}
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps({"event": "norms", "step": 20, **told}) + "\n")
    dom, console = browse(write_page(tmp_path, [tmp_path]), tmp_path)
    assert console == []
    names = re.findall(r'<text[^>]*class="name"[^>]*>([^<]*)', dom)
    assert names and set(names) == {"optimiser steps"}
    strokes = re.findall(r'stroke="(var\(--c\d\))"[^>]*data-name="v\d: run\d, test"', dom)
    assert len(strokes) == 18 and len(set(strokes)) == 9  # two charts hold what is held out
    assert 'id="chart-weights"' in dom and re.search(
        r'id="chart-weights"[^>]*>.*?data-name="v0: run0"', dom
    )
    clip = re.search(r'<clipPath id="clip-loss"><rect x="(\S+)"[^>]*width="(\S+)"', dom)
    right = float(clip[1]) + float(clip[2])
    last = max(float(x) for x in re.findall(r'<circle cx="([^"]+)"', dom))
    assert last + 3 <= right


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
    (group,) = group_by_seed(read_runs([tmp_path / "long"]))
    columns = payload(group, Place(0, 0, 1))["curves"][0]["columns"]
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
            "--out report.txt is no page: give the name of an .html file",
        ),
        (
            ["run", "--out", "no/report.html"],
            "--out no/report.html: give the name of a file in a folder that exists",
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


def test_a_full_disk_costs_a_watching_report_a_line(tmp_path, monkeypatch, capsys):
    run = synthetic_run(tmp_path / "run", 5)
    out = tmp_path / "report.html"
    argv = ["report.py", str(run), "--out", str(out), "--watch", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(report.time, "sleep", lambda seconds: None)
    replace = os.replace
    tries = []

    def full_at_first(aside, path):
        tries.append(path)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(aside, path)

    monkeypatch.setattr(os, "replace", full_at_first)
    report.main()
    assert capsys.readouterr().out.splitlines()[0] == (
        f"notice: --out {out} cannot be written (No space left on device): make room, or give the"
        " name of a file in another folder"
    )
    assert sorted(os.listdir(tmp_path)) == ["report.html", "run"]
    tries.clear()
    monkeypatch.setattr(sys, "argv", argv[:-2])
    with pytest.raises(UserError, match="cannot be written .No space left on device.: make room"):
        report.main()


def test_texts_that_are_no_unicode_are_shown(tmp_path):
    run = synthetic_run(tmp_path / os.fsdecode(b"run\xff"), 5, comment=os.fsdecode(b"c\xff"))
    spike = {**EVENTS[2], "documents": [os.fsdecode(b"text\xff")], "step": 5}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(spike) + "\n")
    shown = write_page(tmp_path, [run]).read_text(encoding="utf-8")
    for text in (r"run\udcff", r"c\udcff", r"text\udcff"):
        assert text in shown

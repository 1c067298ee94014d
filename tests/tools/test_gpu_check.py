"""tools/gpu_check.py on a CPU: every stage with tiny shapes; wrong kernels, crashes and hangs."""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import ROOT

from tools.gpu_stages import STAGES, Stage, models, tables
from tools.gpu_stages import report as gpu_report
from tools.gpu_stages.findings import Findings
from tools.gpu_stages.lab import Lab

PATIENCE = 400  # seconds; a machine that does other things beside takes its time


def check(out, *options, root=ROOT):
    """The command as a user calls it, from anywhere."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(root / "tools/gpu_check.py"), "--dry", "--out", str(out), *options],
        text=True,
        capture_output=True,
        timeout=PATIENCE,
        cwd=out.parent,
        env=environment,
    )


def report_of(out):
    return (out / "report.md").read_text(encoding="utf-8")


def table_after(report, title):
    """Rows of the first table below a heading, each a list of cells; the head first."""
    lines = report.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" |")]
        for line in lines
        if line.startswith("|")
    ]
    return rows[:1] + rows[2:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(result, folder) of a check of all stages."""
    out = tmp_path_factory.mktemp("gpu_check") / "out"
    return check(out, "--budget", str(PATIENCE)), out


def test_a_dry_run_goes_through_every_stage(whole):
    done, out = whole
    assert done.returncode == 0, done.stdout + done.stderr + report_of(out)
    assert [row[2] for row in table_after(report_of(out), "Stages")[1:]] == ["ended"] * len(STAGES)
    assert "A dry run" in report_of(out) and str(out / "report.md") in done.stdout


def test_the_first_table_tells_right_from_not_run(whole):
    rows = table_after(report_of(whole[1]), "What is right")
    assert rows[0] == ["check", "", "fp32", "bf16", "fp16", "found"]
    named = {row[0]: row for row in rows[1:]}
    assert set(named) == {name for stage in STAGES for name in stage.checks}
    absent = {name for name, row in named.items() if "not run" in row}
    assert absent == {
        "memory accesses",
        "steps by a CUDA graph",
        "attention: cudnn",
        "attention: efficient",
    }  # which a CPU lacks
    assert named["GELU with bias"][1:5] == ["", "right", "right", "right"]
    assert named["model of four layers"][1:5] == ["", "–", "right", "right"]
    assert named["all-reduce"][1:5] == ["right", "", "", ""]
    assert named["memory accesses"][5] == "it needs a GPU"


def test_every_table_has_its_rows(whole):
    report = report_of(whole[1])
    for title, _, _, columns in tables.TABLES:
        rows = table_after(report, title)
        assert len(rows) > 1 and all(len(row) == len(columns) for row in rows), title
    speed = table_after(report, "Training steps without DeepSpeed")[1:]
    assert {
        "ours, eager",
        "ours, blocks under torch.compile",
        "written plainly, eager",
        "written plainly, whole model under torch.compile",
    } <= {row[0] for row in speed}
    lacking = importlib.util.find_spec("transformers") is None
    assert not [
        row for row in speed if "failed" in row[-1] and not (lacking and "transformers" in row[0])
    ]
    heaviest = table_after(report, "The heaviest kernels of a run's step")[1:]
    assert len([row for row in heaviest if row[:2] == ["small", "bf16"]]) == 15
    refused = [row for row in table_after(report, "Single operations") if "failed" in row[-1]]
    assert {row[1] for row in refused} == {"attention by cudnn", "attention by efficient"}


def test_an_engine_is_measured_against_the_estimate(whole):
    rows = [finding for finding in Findings(whole[1]).read() if finding.get("table") == "engine"]
    assert {(row["preset"], row["precision"]) for row in rows} == {
        ("small", "bf16"),
        ("small", "fp16"),
        ("medium", "bf16"),
    }
    for row in rows:
        assert row["estimated_bytes"] > 0 and row["tokens_per_second"] > 0 and row["launches"] > 100
        assert {"forward", "backward", "step"} <= set(row["parts_ms"]) and row["left_out"] == 0


def test_a_second_check_writes_over_none(whole, load_tool):
    _, out = whole
    before = (out / "results.jsonl").read_bytes()
    mistake = load_tool("gpu_check").mistake
    assert mistake("--dry", "--out", out).startswith(
        f"{out}/results.jsonl holds an earlier check: give another --out, or --only"
    )
    assert (out / "results.jsonl").read_bytes() == before


def test_mistaken_options(tmp_path, load_tool, monkeypatch):
    import torch

    mistake = load_tool("gpu_check").mistake
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert mistake(
        "--only", "engine"
    ) == "--only engine: there is no such stage; choose from " + ", ".join(s.name for s in STAGES)
    assert mistake("--budget", "0") == "--budget 0: give a positive number of seconds"
    assert mistake("--budget", "ten").startswith(
        "command line: argument --budget: invalid float value: 'ten'"
    )
    assert (
        mistake("--out", tmp_path)
        == "there is no CUDA device here: run this on a machine with one, or try the check itself "
        "with --dry"
    )
    Findings(tmp_path).add(stage="session", device="NVIDIA H100", dry=False)
    assert (
        mistake("--dry", "--out", tmp_path, "--only", "facts")
        == f"{tmp_path}/results.jsonl is of NVIDIA H100, and this is a dry run on the CPU: give "
        "another --out"
    )


PLANTED = {
    "gpt/kernels/gelu.py": (
        """
_right = bias_gelu


def bias_gelu(x, bias, kernels="torch"):
    return _right(x, bias, kernels) * 1.05
"""
    ),
    "tools/gpu_stages/training.py": (
        """

def curves(lab):
    import os

    print("the card fell off the bus", flush=True)
    os.abort()
"""
    ),
    "tools/gpu_stages/facts.py": (
        """

def facts(lab):
    import subprocess

    subprocess.run(["sleep", "600"])
"""
    ),
    "tools/gpu_stages/__init__.py": (
        """
STAGES = [stage._replace(limit=4) if stage.name == "facts" else stage for stage in STAGES]
"""
    ),
}


def test_a_wrong_kernel_a_crash_and_a_hang(tmp_path):
    project = tmp_path / "project"
    for name in ("gpt", "tools"):
        shutil.copytree(
            ROOT / name,
            project / name,
            ignore=shutil.ignore_patterns("__pycache__", "bench_results"),
        )
    for name, text in PLANTED.items():
        with open(project / name, "a", encoding="utf-8") as file:
            file.write(text)
    done = check(
        tmp_path / "out",
        "--only",
        "kernels-bf16",
        "kernels-fp16",
        "training",
        "facts",
        root=project,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(tmp_path / "out")
    rows = {row[0]: row for row in table_after(report, "What is right")}
    assert rows["GELU with bias"][2:5] == ["not run", "**WRONG**", "**WRONG**"]
    assert (
        rows["add + LayerNorm"][2:5]
        == rows["head, loss scale 1"][2:5]
        == ["not run", "right", "right"]
    )
    assert "**GELU with bias in fp16**: 1 rows of 64, result 0: " in report
    assert rows["a training that learns"][2:] == ["not run"] * 3 + ["it ended by signal 6"]
    assert (
        "**stage training**: it ended by signal 6, see logs/training.txt: the card fell off the bus"
        in report
    )
    assert (
        "**stage facts**: it hung, and was killed after 1" in report
    )  # 12 s: three times its limit
    assert not [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] == ["sleep", "600"]
    ]


def test_models_that_fail_or_give_nan_are_not_right(tmp_path, monkeypatch):
    monkeypatch.setattr(Lab, "_hear", lambda self: None)  # there is no parent to listen to
    near = {"ours": 4.5, "theirs": 4.51}
    assert models.compared(near)[0] == []
    for losses in (
        {},
        {**near, "another": math.nan},
        {"first": math.nan, **near},
        {**near, "far": 6},
    ):
        assert models.compared(losses)[0]
    lab = Lab("sweep", tmp_path, True)
    ended = {"stage": "sweep", "event": "ended", "failure": None}
    findings = Findings(tmp_path)
    findings.add(**ended, seconds=1.0, cut=None)
    for error, right in ((torch.OutOfMemoryError("no room"), True), (RuntimeError("bad"), False)):
        with lab.attempt("sweep", must=True, preset="small", micro_batch=8):
            raise error
        assert gpu_report.is_right(findings.read()) == right
    report = gpu_report.text(findings.read())
    assert "0 right, 1 wrong, 0 stage(s) failed, 1 figure(s) not measured" in report
    assert "**small, 8** (sweep): RuntimeError: bad" in report


def test_what_does_not_fit_the_budget_is_skipped(tmp_path):
    done = check(tmp_path / "out", "--budget", "1")
    report = report_of(tmp_path / "out")
    # that nothing is wrong says nothing here
    assert done.returncode == 1, done.stdout + done.stderr
    assert [row[1:] for row in table_after(report, "Stages")[1:]] == [
        ["–", "1 s of the budget were left"]
    ] * len(STAGES)
    assert "0 right, 0 wrong, 0 stage(s) failed" in report


def test_findings_outlive_the_check_and_its_stages_do_not(tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(ROOT / "tools/gpu_check.py"),
        "--dry",
        "--out",
        str(out),
        "--only",
        "kernels-fp32",
        "whole-models",
    ]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while not any("check" in finding for finding in Findings(out).read()):
        assert time.monotonic() < end and parent.poll() is None
        time.sleep(0.05)
    stages = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert stages and not psutil.wait_procs(stages, timeout=20)[1]
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["verdict"] for line in lines if "check" in json.loads(line)]
    found = gpu_report.text(Findings(out).read())  # what a reader can still make of them
    assert "it has not ended" in found and "right" in found


# ---- The order of stages on a GPU


class FakeChild:
    """A stage whose age is the number of looks at it: warm at two, ended at four since `go`."""

    log = []

    def __init__(self, stage, out, dry):
        self.stage = stage
        self.process = self
        self.looks = 0
        self.gone = False
        self.free = not stage.warms_up
        self.log.append(("start", stage.name))

    def poll(self):
        self.looks += 1
        done = self.looks > 3 and self.free
        if done and not self.gone:
            self.gone = True
            self.log.append(("end", self.stage.name))
        return 0 if done else None

    def seconds(self):
        return self.looks

    def overdue(self):
        return False

    def failure(self):
        return None

    def is_warm(self, findings):
        return self.stage.warms_up and self.looks > 1

    def go(self):
        self.log.append(("go", self.stage.name))
        self.looks = 0
        self.free = True


def test_times_are_taken_when_nothing_else_runs(tmp_path, load_tool, monkeypatch):
    tool = load_tool("gpu_check")
    monkeypatch.setattr(tool, "Child", FakeChild)
    monkeypatch.setattr(tool.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(FakeChild, "log", [])
    stages = [
        Stage("a", "", 9, timed=False),
        Stage("b", "", 9, timed=False),
        Stage("clock", "", 9),
        Stage("warm", "", 9, warms_up=True),
        Stage("last", "", 9),
    ]
    tool.Session(tmp_path, 1000, False, stages).run()
    assert FakeChild.log == [
        ("start", "a"),
        ("start", "b"),
        ("start", "warm"),
        ("end", "a"),
        ("end", "b"),
        ("start", "clock"),
        ("end", "clock"),
        ("go", "warm"),
        ("end", "warm"),
        ("start", "last"),
        ("end", "last"),
    ]


def test_a_dry_run_waits_for_what_has_warmed_up(tmp_path, load_tool, monkeypatch):
    tool = load_tool("gpu_check")
    monkeypatch.setattr(tool, "Child", FakeChild)
    monkeypatch.setattr(tool.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(FakeChild, "log", [])
    tool.Session(tmp_path, 1000, True, [Stage("warm", "", 9, warms_up=True)]).run()
    assert FakeChild.log == [("start", "warm"), ("go", "warm"), ("end", "warm")]


# ---- Findings


def test_the_last_start_of_a_stage_counts(tmp_path):
    findings = Findings(tmp_path)
    for stage, event in (
        ("a", "started"),
        ("a", "found 1"),
        ("b", "started"),
        ("a", "started"),
        ("a", "found 2"),
    ):
        findings.add(stage=stage, event=event)
    with open(findings.path, "a", encoding="utf-8") as file:
        file.write('{"stage": "a", "ev')  # by a machine that went away
    assert [(found["stage"], found["event"]) for found in findings.read()] == [
        ("b", "started"),
        ("a", "started"),
        ("a", "found 2"),
    ]


def test_time_covered_by_kernels():
    from types import SimpleNamespace as Event

    from tools.gpu_stages.profiled import _covered

    spans = [(0, 4), (2, 3), (3, 6), (10, 11), (6, 7)]  # 0 to 7, and 10 to 11
    assert _covered([Event(time_range=Event(start=begin, end=end)) for begin, end in spans]) == 8


def test_shares_of_what_is_attained():
    rates = [
        {"table": "rates", "flops_per_second": 5e14},
        {"table": "rates", "flops_per_second": 4e14},
        {"table": "rates", "bytes_per_second": 2e12},
    ]
    assert tables.attained({"flops_per_second": 4e14}, rates) == "80%"
    assert tables.attained({"flops_per_second": None, "bytes_per_second": 1e12}, rates) == "50%"
    assert tables.attained({"flops_per_second": None, "bytes_per_second": None}, rates) == "–"


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_roundings(scale):
    """One rounding is right, that of numbers near fp16's smallest too; a factor of 1.02 is not."""
    import torch

    from tools.gpu_stages.kernels import Trial

    exact = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)).double() * scale
    for factor, right in ((1.0, True), (1.02, False)):
        trial = Trial(None, "", "fp16")
        trial.measure("", (exact * factor).half(), exact)
        assert trial.worst <= 1 or not right
        # 2% of those are less than a rounding
        assert (trial.faults == []) == (right or scale < 1)


def test_a_profile_tells_the_kernels_apart():
    """By their functions' names, under which Triton launches them."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "gpt/kernels").glob("*.py"))
    names = [name for source in sources for name in re.findall(r"@jit\(.*\)\ndef (\w+)", source)]
    assert len(names) > 4 and sorted(names) == sorted(set(names))

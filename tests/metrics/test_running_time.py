"""Time for which a process was suspended is no time of training."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import plain_run
import pytest
from conftest import ROOT, read_metrics

from gpt.metrics import running_time
from gpt.metrics.running_time import RunningTime


@pytest.fixture
def clocks(monkeypatch):
    """The time that a RunningTime sees, in its own thread's stead set by hand."""
    clocks = SimpleNamespace(now=100.0, computed=5.0)
    monkeypatch.setattr(running_time, "TICK_SECONDS", 1e6)
    monkeypatch.setattr(
        running_time,
        "time",
        SimpleNamespace(perf_counter=lambda: clocks.now, process_time=lambda: clocks.computed),
    )
    return clocks


@pytest.mark.parametrize(
    "passed, computed, suspended",
    [
        (300.0, 0.2, 300.0),
        # a thread that kept Python to itself, as a compiler may
        (300.0, 290.0, 0.0),
        # a slow disk
        (15.0, 0.1, 0.0),
    ],
)
def test_a_gap_without_computing_is_left_out(passed, computed, suspended, clocks):
    clock = RunningTime()
    begin = clock.now()
    clocks.now += passed
    clocks.computed += computed
    assert clock.now() - begin == pytest.approx(passed - suspended)
    assert clock.suspended == pytest.approx(suspended)
    clocks.now += 1
    assert clock.now() - begin == pytest.approx(passed - suspended + 1)
    clock.close()


SUSPENDED = """
import sys, time
sys.path[:0] = sys.argv[1:]
from gpt.metrics import running_time
running_time.TICK_SECONDS, running_time.LEAST_SECONDS = 0.05, 1.5
clock = running_time.RunningTime()
begin = clock.now()
print("ready", flush=True)
sys.stdin.readline()
print(clock.now() - begin, clock.suspended, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_process_that_is_stopped_is_told_from_one_that_waits():
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.5)
    lasted = time.perf_counter() - began
    told, _ = process.communicate("\n", timeout=60)
    ran, suspended = map(float, told.split())
    assert suspended > 2.5 and ran < lasted - 2


def test_a_run_tells_of_it_and_its_hours_leave_it_out(sample, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running_time, "TICK_SECONDS", 1e6)
    leap = {"seconds": 0.0}

    def now():
        return time.perf_counter() + leap["seconds"]

    monkeypatch.setattr(
        running_time, "time", SimpleNamespace(perf_counter=now, process_time=time.process_time)
    )

    class Suspended(plain_run.PlainEngine):
        def step(self, *args, **options):
            result = super().step(*args, **options)
            if self._steps == 2:
                leap["seconds"] = 7200.0
            return result

    gpt = {"max_train_steps": 3, "eval_every": 0}
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, engine=Suspended, gpt=gpt)
    (event,) = read_metrics(run_dir, "suspended")
    assert event["step"] == 2 and event["seconds"] == pytest.approx(7200, abs=100)
    assert "notice: this process was suspended for 7" in capsys.readouterr().out
    assert all(event["hours"] < 0.5 for event in read_metrics(run_dir, "train"))

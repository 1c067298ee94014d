"""What else a machine did, by what psutil and NVIDIA's tool say of it."""

import os
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest

from gpt.referee import machine

CpuTimes = namedtuple("CpuTimes", "user nice system idle iowait irq softirq steal guest guest_nice")
OwnTimes = namedtuple("OwnTimes", "user system children_user children_system elapsed")


def test_the_load_of_others_is_what_is_busy_and_not_ours(monkeypatch):
    """4 cores for 10 s: 12 s were busy, 1 of them stolen, of which 7 were ours."""
    clock = SimpleNamespace(now=100.0)
    cores = CpuTimes(50.0, 1.0, 5.0, 900.0, 3.0, 0.0, 0.5, 2.0, 7.0, 0.0)
    own = OwnTimes(1.0, 0.5, 2.0, 0.0, 0.0)
    monkeypatch.setattr(machine.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_times", lambda: cores)
    monkeypatch.setattr(os, "times", lambda: own)
    load = machine.Load()
    clock.now = 110.0
    cores = CpuTimes(59.0, 1.0, 6.5, 926.0, 5.0, 0.0, 1.0, 3.0, 12.0, 0.0)
    own = OwnTimes(6.0, 1.0, 3.5, 0.0, 0.0)
    assert load.of_others() == pytest.approx((12 - 7) / 40)


SMI = """#!/bin/sh
case "$1" in
  --query-gpu=clocks.sm,clocks.mem,power.limit,temperature.gpu,utilization.gpu)
    [ "$3" = --id=GPU-7 ] || exit 6
    echo "1980 MHz, 2619 MHz, 700.00 W, 41, 3 %";;
  --query-compute-apps=pid) printf '12\\n\\n345\\n';;
  *) exit 2;;
esac
"""


def test_what_nvidias_tool_tells(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_facts("GPU-7") == {
        "clocks.sm": "1980 MHz",
        "clocks.mem": "2619 MHz",
        "power.limit": "700.00 W",
        "temperature.gpu": "41",
        "utilization.gpu": "3 %",
    }
    assert machine.gpu_facts("GPU-8") is None
    assert machine.gpu_processes() == 2


def test_a_machine_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_facts("GPU-7") is None
    assert machine.gpu_processes() is None

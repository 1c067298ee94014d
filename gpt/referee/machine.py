"""What else a machine did while it was measured, and how fast its device could run. Imports no
torch."""

import os
import subprocess
import time
from typing import Any

import psutil

# of NVIDIA's tool, by the names of its --query-gpu
GPU_FACTS = (
    "clocks.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
)
SMI_SECONDS = 20.0
IDLE_TIMES = ("idle", "iowait")
# time of guests is in that of users already
DOUBLE_TIMES = ("guest", "guest_nice")


class Load:
    """What other processes take of this machine's cores from now on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def of_others(self) -> float:
        """The part of all cores, 0 to 1, that was others' since then."""
        seconds = time.monotonic() - self._began
        busy = _busy_seconds() - self._busy
        own = _own_seconds() - self._own
        cores = psutil.cpu_count() or 1
        return min(1.0, max(0.0, (busy - own) / (cores * seconds)))


def _busy_seconds() -> float:
    """Of all cores together, since the machine started."""
    times = psutil.cpu_times()._asdict()
    left_out = {*IDLE_TIMES, *DOUBLE_TIMES}
    return sum(seconds for name, seconds in times.items() if name not in left_out)


def _own_seconds() -> float:
    """Of this process, its threads, and children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes; None where the system keeps none."""
    try:
        return list(os.getloadavg())
    except OSError:
        return None


def cpu_clock() -> float | None:
    """MHz; None where the system does not tell."""
    frequency = psutil.cpu_freq()
    return None if frequency is None else frequency.current


def gpu_facts(gpu: str) -> dict[str, str] | None:
    """{name of GPU_FACTS: value with its unit}; None where NVIDIA's tool does not tell. gpu: its
    UUID."""
    rows = _ask_smi(f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader", f"--id={gpu}")
    if not rows or len(rows[0]) != len(GPU_FACTS):
        return None
    return dict(zip(GPU_FACTS, rows[0]))


def gpu_processes() -> int | None:
    """How many processes compute on this machine's GPUs; None where NVIDIA's tool does not tell."""
    rows = _ask_smi("--query-compute-apps=pid", "--format=csv,noheader")
    return None if rows is None else len(rows)


def _ask_smi(*arguments: str) -> list[list[str]] | None:
    """The cells of nvidia-smi's rows; None where it is not there, or cannot say."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SMI_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return [[cell.strip() for cell in line.split(",")] for line in lines]


def facts_before() -> dict[str, Any]:
    """Of this machine before anything is measured, as plain values: a second of it."""
    load = Load()
    time.sleep(1)
    return {
        "load_average": load_average(),
        "load_before": load.of_others(),
        "gpu_processes": gpu_processes(),
    }

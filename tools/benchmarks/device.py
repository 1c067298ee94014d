"""The device that tools/bench.py measures, its clock, and what it can do at its best."""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench.py`: run that")

import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from gpt.compute.hardware import DTYPES, keep_freed_memory, peak_flops
from gpt.kernels.linear import matmul

WARM_UP_ROUNDS = 2
PACKAGES = ("torch", "triton", "transformers")
# bytes that are copied to tell the bandwidth: more than any cache holds
COPIED_BYTES = 1 << 28


class Work(NamedTuple):
    """How much is measured."""

    micro_batch: int  # sequences per forward pass
    accumulation: int  # forward passes per step
    rounds: int  # that are timed
    compile: bool  # measure what torch.compile makes of it as well


class Device:
    """The GPU here, or the CPU where there is none."""

    def __init__(self, precision: str | None = None):
        """precision: fp32 or bf16; None for what suits the device."""
        self.on_gpu = torch.cuda.is_available()
        if not self.on_gpu:
            keep_freed_memory()  # of all that is compared
        self.torch = torch.device("cuda" if self.on_gpu else "cpu")
        # Few CPUs multiply in bf16; on a GPU it runs at the speed of fp16 and needs no loss scaling
        # here.
        has_half = self.on_gpu and torch.cuda.is_bf16_supported()
        precision = precision or ("bf16" if has_half else "fp32")
        self.dtype = DTYPES[precision]
        if self.on_gpu:
            self.name = torch.cuda.get_device_name()
        else:
            self.name = f"CPU, {torch.get_num_threads()} threads"
        # FLOP/s of the data sheet; None: not known
        self.peak = peak_flops(self.name, precision)
        side = 8192 if self.on_gpu else 2048
        self._square = torch.randn(side, side, device=self.torch).to(self.dtype)
        self._product = torch.empty_like(self._square)
        self._source = torch.ones(COPIED_BYTES // 4, dtype=torch.float32, device=self.torch)
        self._copy = torch.zeros_like(self._source)

    def facts(self) -> dict:
        """What a result is of: device, precision, versions."""
        versions = {name: _version(name) for name in PACKAGES}
        return {
            "device": self.name,
            "processor": self.name if self.on_gpu else _processor(),
            "dtype": str(self.dtype),
            "peak_flops_per_second": self.peak,
            "versions": {**versions, "cuda": torch.version.cuda},
        }

    def seconds(self, work: Callable) -> float:
        """How long `work()` takes, what it starts on a GPU included."""
        if self.on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def matmul_rate(self) -> float:
        """FLOP/s of a large matrix product: the fastest of three by torch's way and three by
        ours."""
        ways = (
            lambda: torch.mm(self._square, self._square, out=self._product),
            lambda: matmul(self._square, self._square),
        )
        flops = 2 * len(self._square) ** 3
        return flops / min(self.seconds(way) for way in 3 * ways)

    def bandwidth(self) -> float:
        """Bytes/s of a copy, read and written."""
        return 2 * self._source.nbytes / self.seconds(lambda: self._copy.copy_(self._source))

    def in_turn(self, works: dict[str, Callable], rounds: int) -> tuple[dict, list]:
        """{name: [seconds per round]}, and the matmul rate beside each: [FLOP/s per round].

        Two rounds warm up. Every other round goes backwards, for what comes first finds the
        matmul's operands in the caches.
        """
        times = {name: [] for name in works}
        rates = []
        for number in range(-WARM_UP_ROUNDS, rounds):
            is_timed = number >= 0
            order = list(works) if number % 2 else list(reversed(works))
            rate_before = self.matmul_rate()
            for name in order:
                seconds = self.seconds(works[name])
                if is_timed:
                    times[name].append(seconds)
            if is_timed:
                rates.append((rate_before + self.matmul_rate()) / 2)
        return times, rates


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of how many times as long `slow` took."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""What the stages of tools/gpu_check.py share: findings, the device, shapes, ways to take times."""

import contextlib
import math
import os
import signal
import statistics
import threading
import time

import torch

from gpt.compute import hardware
from gpt.config.shape import ModelConfig, load_presets
from gpt.errors import in_brief
from gpt.kernels.layer_norm import layer_norm
from tools.benchmarks import paper
from tools.benchmarks.launches import Launch
from tools.gpu_stages.findings import Findings

# Half the distance from 1 to the next number, and the smallest number above 0.
UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
SMALLEST = {"fp32": 2.0**-149, "bf16": 2.0**-133, "fp16": 2.0**-24}
FLUSH_BYTES = 1 << 28  # more than any L2 cache holds
HEAD_START = 600_000  # clock cycles, a third of a millisecond, by which the host runs ahead
TINY = ModelConfig(
    n_layers=2, h_dim=32, mlp_dim=64, n_heads=2, head_dim=16, vocab_size=96, seq_len=16
)


def _why_triton_does_not_run(device):
    """What its first launch raises, for want of a C compiler, say; None where it runs at all."""
    row = torch.zeros(16, device=device)
    try:
        layer_norm(row[None], row, row, 1e-5, "triton")
    except Exception as error:
        return in_brief(error)


class Lab:
    """One stage's process. dry: tiny shapes on the CPU, which show that a stage works, no more."""

    def __init__(self, stage: str, out, dry: bool):
        self.stage = stage
        self.out = out
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.no_triton = "a dry run is without it" if dry else _why_triton_does_not_run(self.device)
        self.kernels = "torch" if self.no_triton else "triton"
        self._findings = Findings(out)
        self._began = time.monotonic()
        self._go = threading.Event()
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self):
        """The parent's line says that the device is free; the end of lines, that it is gone."""
        while os.read(0, 1):  # not by sys.stdin, whose lock would be held while Python ends
            self._go.set()
        os.killpg(0, signal.SIGKILL)  # this process leads a group of its own

    def until_free(self):
        """Say that this stage has warmed up, and wait until nothing else runs."""
        self._findings.add(stage=self.stage, event="warm")
        self._go.wait()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    # ---- Findings

    def check(self, name: str, precision: str = "", faults=(), saw: str = ""):
        """One thing is right, or wrong for these reasons. saw: what was measured, in brief."""
        self._findings.add(
            stage=self.stage,
            check=name,
            precision=precision,
            saw=saw,
            verdict="WRONG" if faults else "right",
            faults=list(map(str, faults)),
        )

    def not_run(self, name: str, why: str, precision: str = ""):
        self._findings.add(
            stage=self.stage, check=name, precision=precision, saw=why, verdict="not run", faults=[]
        )

    def row(self, table: str, **columns):
        """A row of one of the report's tables, see tools/report.py."""
        self._findings.add(stage=self.stage, table=table, **columns)

    @contextlib.contextmanager
    def attempt(self, table: str, must: bool = False, **columns):
        """An error within becomes a row that says so, and what comes after goes on.

        must: it is wrong if it fails, unless for want of memory.
        """
        try:
            yield
        except Exception as error:
            wrong = must and not isinstance(error, torch.OutOfMemoryError)
            failed = f"{type(error).__name__}: {error}"[:300]
            self.row(table, **columns, failed=failed, wrong=wrong)

    # ---- Shapes

    def shape(self, preset: str) -> ModelConfig:
        return (
            TINY
            if self.dry
            else ModelConfig(**load_presets()[preset], vocab_size=16384, seq_len=512)
        )

    def rows(self, preset: str) -> int:
        """Sequences of a micro-batch that leave room for every model that is compared."""
        if self.dry:
            return 2
        wide = torch.cuda.get_device_properties(0).total_memory > 40e9
        return 32 if wide else {"small": 16}.get(preset, 8)

    def tokens(self, *size, vocab_size: int):
        return torch.randint(vocab_size, size, generator=torch.Generator().manual_seed(0)).to(
            self.device
        )

    def mfu(self, tokens_per_second: float, shape: ModelConfig, precision: str = "bf16"):
        """Share of the device's peak by its data sheet; None where that is not known."""
        peak = hardware.peak_flops(hardware.device_name(self.device), precision)
        return tokens_per_second * shape.matmul_flops_per_token() / peak if peak else None

    # ---- What bench.py --paper says

    @property
    def _gpu(self) -> paper.Gpu | None:
        return paper.gpu_of(hardware.device_name(self.device))

    def tokens_on_paper(
        self, shape: ModelConfig, rows: int, accumulation: int, around: paper.Around = paper.PLAIN
    ) -> float | None:
        """Tokens/s of steps of ours in bf16; None of a device that it does not know."""
        if self._gpu is None or self.no_triton:
            return None
        rate = None
        with self.attempt(
            "facts", fact="what bench.py --paper computes"
        ):  # and measure all the same
            step = paper.step(shape, rows, accumulation, around)
            rate = 1e3 * step.tokens / step.milliseconds(self._gpu)
        return rate

    def ms_on_paper(self, launch: Launch) -> float | None:
        return None if self._gpu is None else paper.milliseconds(self._gpu, launch)

    # ---- Clocks

    def wait(self):
        if not self.dry:
            torch.cuda.synchronize()

    def poison(self):
        """Fill the allocator's free blocks with NaN: what a kernel leaves unwritten shows."""
        sizes = [1 << 10] if self.dry else [1 << 26, 1 << 22, 1 << 18, 1 << 14, 1 << 10]
        blocks = [torch.full((size,), math.nan, device=self.device) for size in sizes]
        del blocks

    def forget_peak(self):
        if not self.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def milliseconds(self, work, repeats: int = 30) -> float:
        """Median of single runs of `work()`, none of whose inputs is in the L2 cache."""
        for _ in range(1 if self.dry else 5):
            work()
        if self.dry:
            return 1e3 * self.wall_seconds(work, 1)
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)
        pairs = []
        for _ in range(repeats):
            flush.zero_()
            torch.cuda._sleep(HEAD_START)
            pairs.append(
                (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            )
            pairs[-1][0].record()
            work()
            pairs[-1][1].record()
        self.wait()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs)

    def wall_seconds(self, work, repeats: int) -> float:
        """Seconds of one of `repeats` runs, until the device has done them all."""
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def host_microseconds(self, work, repeats: int = 300) -> float:
        """What one call of `work()` costs the host; the device may lag behind."""
        repeats = 3 if self.dry else repeats
        for _ in range(3):
            work()
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        taken = time.perf_counter() - began
        self.wait()
        return 1e6 * taken / repeats

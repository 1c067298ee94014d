"""How fast the hot loop is here, beside other ways to write it and beside what this device can do.

    python tools/bench.py                               everything, with shapes that suit the device
    python tools/bench.py step --preset mini --json out.json
    python tools/bench.py kernels --png roofline.png

step      training steps (forward, backward, fused Adam; no DeepSpeed) of a preset, in turn with the
          same steps of the same model written in the most obvious way (tools/plain_gpt.py), of
          transformers' GPT2 (if it is installed; for a preset whose heads do not fill h_dim, both
          with heads that do), and of the model under torch.compile
kernels   each operation of the hot loop, beside eager and compiled torch, against the roofline
eval      the evaluator, beside a loop that feeds one window at a time through the full output layer

All that is compared runs in one process in turn, and ratios are medians over single rounds, so that
a noisy machine slows all. The device's own matmul rate and memory bandwidth are measured there and
then. FLOPs by gpt/config/shape.py.
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, run

PARTS = ("step", "kernels", "eval")


def main():
    from gpt.config.shape import load_presets

    parser = Parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="default: all of them")
    parser.add_argument("--preset", help="model shape (default small on a GPU, mini on a CPU)")
    parser.add_argument(
        "--micro_batch",
        type=int,
        help="sequences per forward pass (default 32 on a GPU, 4 on a CPU)",
    )
    parser.add_argument(
        "--accumulation", type=int, default=2, help="forward passes per step (default 2)"
    )
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument(
        "--rounds",
        type=int,
        default=10,
        help="rounds that are timed, after two that are not (default 10)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile too on a CPU, where it compiles for minutes",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results here as well")
    parser.add_argument(
        "--png", metavar="FILE", help="draw the kernels' roofline; needs matplotlib"
    )
    args = parser.parse_args()
    presets = load_presets()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        raise UserError(
            f"{unknown[0]!r} is no part of the bench: give some of {', '.join(PARTS)}, or none"
            " for all"
        )
    if args.preset is not None and args.preset not in presets:
        raise UserError(f"--preset {args.preset}: choose one of {', '.join(presets)}")
    for name in ("micro_batch", "accumulation", "seq_len", "vocab_size", "rounds"):
        if getattr(args, name) is not None and getattr(args, name) < (
            2 if name == "seq_len" else 1
        ):
            raise UserError(f"--{name} {getattr(args, name)}: give a positive number")
    measure(args, presets)


def measure(args, presets):
    from gpt.config.shape import ModelConfig
    from tools import bench_eval, bench_kernels, bench_step

    device = Device()
    args.compile = args.compile or device.on_gpu
    args.micro_batch = args.micro_batch or (32 if device.on_gpu else 4)
    preset = args.preset or ("small" if device.on_gpu else "mini")
    shape = ModelConfig(**presets[preset], vocab_size=args.vocab_size, seq_len=args.seq_len)
    print(
        f"{device.name}, {device.dtype}, {preset}: {args.micro_batch} x {args.seq_len} tokens a"
        " micro-batch",
        flush=True,
    )
    result = {
        "command": ["tools/bench.py", *sys.argv[1:]],
        "preset": preset,
        "micro_batch": args.micro_batch,
        "seq_len": args.seq_len,
        "vocab_size": args.vocab_size,
        "rounds": args.rounds,
        **device.facts(),
    }
    parts = args.parts or PARTS
    if "step" in parts:
        result["step"] = bench_step.measure(device, shape, args)
    if "kernels" in parts:
        result["kernels"] = bench_kernels.measure(device, shape, args)
        if args.png:
            bench_kernels.draw(result, args.png)
    if "eval" in parts:
        result["eval"] = bench_eval.measure(device, shape, args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Device:
    """The device that is measured, and what it can do at its best."""

    def __init__(self):
        import torch

        from gpt.compute.hardware import keep_freed_memory, peak_flops

        self.on_gpu = torch.cuda.is_available()
        if not self.on_gpu:
            keep_freed_memory()  # of all that is compared
        self.torch = torch.device("cuda" if self.on_gpu else "cpu")
        # On a CPU 16-bit numbers are slow; on a GPU bf16 runs at the speed of fp16 and needs no
        # loss scaling here.
        self.dtype = (
            torch.bfloat16 if self.on_gpu and torch.cuda.is_bf16_supported() else torch.float32
        )
        self.name = (
            torch.cuda.get_device_name()
            if self.on_gpu
            else f"CPU, {torch.get_num_threads()} threads"
        )
        # None: not known
        self.peak = peak_flops(self.name, "bf16" if self.dtype == torch.bfloat16 else "fp32")
        # bytes: more than any cache holds
        side = 8192 if self.on_gpu else 2048
        size = 1 << 28
        self._square = torch.randn(side, side, device=self.torch).to(self.dtype)
        self._product = torch.empty_like(self._square)
        self._source = torch.ones(size // 4, dtype=torch.float32, device=self.torch)
        self._copy = torch.zeros_like(self._source)

    def facts(self) -> dict:
        from importlib import metadata

        import torch

        versions = {}
        for name in ("torch", "triton", "transformers"):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = None
        return {
            "device": self.name,
            "processor": _processor() if not self.on_gpu else self.name,
            "dtype": str(self.dtype),
            "peak_flops_per_second": self.peak,
            "versions": {**versions, "cuda": torch.version.cuda},
        }

    def seconds(self, work) -> float:
        """How long `work()` takes, what it starts on a GPU included."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def matmul_rate(self) -> float:
        """FLOP/s of a large matrix product: the fastest of three by torch's way and three
        by ours."""
        import torch

        from gpt.kernels.linear import matmul

        ways = (
            lambda: torch.mm(self._square, self._square, out=self._product),
            lambda: matmul(self._square, self._square),
        )
        return 2 * len(self._square) ** 3 / min(self.seconds(way) for way in 3 * ways)

    def bandwidth(self) -> float:
        """Bytes/s of a copy, read and written."""
        return 2 * self._source.nbytes / self.seconds(lambda: self._copy.copy_(self._source))

    def in_turn(self, works: dict, rounds: int):
        """{name: [seconds per round]}, and the matmul rate beside each: [FLOP/s per round]. Two
        rounds warm up. Every other round goes backwards, for what comes first finds the matmul's
        operands in the caches."""
        times, rates = {name: [] for name in works}, []
        for round_ in range(-2, rounds):
            rate = self.matmul_rate()
            for name, work in list(works.items())[:: 1 if round_ % 2 else -1]:
                taken = self.seconds(work)
                if round_ >= 0:
                    times[name].append(taken)
            if round_ >= 0:
                rates.append((rate + self.matmul_rate()) / 2)
        return times, rates


def ratio(slow, fast) -> float:
    """Median over rounds of how many times as long `slow` took."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    run(main)

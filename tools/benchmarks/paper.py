"""`python tools/bench.py --paper`: how fast training steps should be on GPUs, by arithmetic alone.

What a micro-batch launches is counted (tools/benchmarks/launches.py). A launch takes its FLOPs over
a rate, or its bytes over a rate, whichever is longer, and a gap for each of its kernels. Peaks and
bandwidths are the makers' data sheets; the rates that kernels attain are assumed. By the same
rates llm.c's kernels take the time that is published of it, within a tenth
(tests/tools/test_paper.py).
"""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench.py --paper`: run that")

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from gpt.config.shape import ModelConfig
from tools.benchmarks import launches
from tools.benchmarks.launches import Launch, kernels, moved

UNCERTAINTY = 0.15  # to either side: what the assumed rates leave open
NARROW = 1024  # products with a shorter side are slower
# Names of operations that are shown by themselves move at least this share of all bytes.
SHOWN = 0.004


class Gpu(NamedTuple):
    """Rates in FLOP/s and bytes/s, 16-bit numbers."""

    # data sheets: NVIDIA's of A100 80GB and H100 SXM, the white paper of GA102 (appendix A)
    peak: float
    bandwidth: float
    # assumed: a kernel that streams through memory
    stream: float
    # assumed: products, of sides below NARROW and above, forward and for the input's gradient; for
    # the weight's, which sum over all tokens
    products: tuple[float, float]
    weight_gradients: tuple[float, float]
    # assumed: causal attention forward (half of all products), and backward
    attention: tuple[float, float]
    # assumed: seconds between the end of a kernel and the begin of the next
    gap: float


GPUS = {
    "RTX 3090": Gpu(
        71e12, 0.936e12, 0.71e12, (57e12, 60e12), (58e12, 60e12), (42e12, 26e12), 1.5e-6
    ),
    "A100 80GB": Gpu(
        312e12, 2.039e12, 1.5e12, (245e12, 258e12), (240e12, 250e12), (140e12, 85e12), 1.3e-6
    ),
    "H100 SXM": Gpu(
        989.4e12, 3.35e12, 2.6e12, (580e12, 640e12), (490e12, 580e12), (200e12, 210e12), 1.1e-6
    ),
}
# what is in the name that CUDA gives a device
NAMES = {
    "RTX 3090": "RTX 3090",
    "A100-SXM4-80GB": "A100 80GB",
    "A100 80GB": "A100 80GB",
    "H100 80GB HBM3": "H100 SXM",
}
ABOUT = "A model: computed from counted launches and assumed rates, measured nowhere."
SOURCES = (
    "Peaks and bandwidths: data sheets. Assumed are what kernels attain of them:",
    "products    published rates of cuBLAS at such sides; they fit llm.c's published steps",
    "attention   published rates of cuDNN (H100), of flash-attention 2 (A100, RTX 3090)",
    "streams     74 to 78% of the data sheet's bandwidth",
    "gaps        1.1 to 1.5 us between two kernels; hosts are taken to keep ahead",
)


class Around(NamedTuple):
    """What a step does beside its micro-batches: bytes a parameter, kernels a tensor."""

    further: tuple[int, int]  # after each micro-batch but the last, or but the first
    update: tuple[int, int]  # once a step


# bf16 weights and moments, gradients added up in `.grad`, torch's fused AdamW: no engine
PLAIN = Around(further=(6, 1), update=(14, 0))
# The engine at ZeRO 1 on one GPU in bf16, by its operations as torch's dispatcher sees them: sums
# in fp32, the first a cast; at the end the bucket, its average and what DeepSpeed copies of it;
# then norm, AdamW with fp32 weights and moments, weights in 16 bits.
ZERO_1 = Around(further=(10, 1), update=(6 + 56 + 38, 5))


def milliseconds(gpu: Gpu, launch: Launch) -> float:
    """How long a launch should take."""
    computing = launch.flops / _rate(gpu, launch) if launch.flops else 0.0
    return 1e3 * (max(computing, launch.bytes / gpu.stream) + launch.kernels * gpu.gap)


def least_milliseconds(gpu: Gpu, launch: Launch) -> float:
    """How long it takes at the rates of the data sheet."""
    return 1e3 * max(launch.flops / gpu.peak, launch.bytes / gpu.bandwidth)


def _rate(gpu: Gpu, launch: Launch) -> float:
    if launch.kind == launches.ATTENTION:
        return gpu.attention[0]
    if launch.kind == launches.ATTENTION_BACKWARD:
        return gpu.attention[1]
    if launch.kind == launches.WEIGHT_GRADIENT:
        return gpu.weight_gradients[min(launch.size[:2]) >= NARROW]
    return gpu.products[launch.size[2] >= NARROW]


class Step(NamedTuple):
    """An optimiser step of `tokens` tokens: what it launches, {name of an operation: launches}."""

    operations: dict[str, list[Launch]]
    tokens: int
    flops: float  # of the model, as gpt/config/shape.py counts them

    def milliseconds(self, gpu: Gpu) -> float:
        return sum(milliseconds(gpu, launch) for launch in self.all())

    def least_milliseconds(self, gpu: Gpu) -> float:
        return sum(least_milliseconds(gpu, launch) for launch in self.all())

    def all(self) -> list[Launch]:
        return [launch for group in self.operations.values() for launch in group]


_passes = cache(launches.micro_batch)


@cache
def step(
    shape: ModelConfig, micro_batch: int, accumulation: int = 1, around: Around = PLAIN
) -> Step:
    """A step in bf16, of `accumulation` micro-batches of `micro_batch` full sequences each."""
    passes = _passes(shape, micro_batch)
    operations: dict[str, list[Launch]] = {}
    for launch in passes.forward + passes.backward:
        name = launch.name.replace("_", " ").strip()
        if launch.kind != launches.MEMORY:
            name = launch.kind
        operations.setdefault(name, []).append(launch)
    whole = moved(passes.forward + passes.backward)
    for name in [name for name, group in operations.items() if moved(group) < SHOWN * whole]:
        operations.setdefault("all else", []).extend(operations.pop(name))
    operations = {name: group * accumulation for name, group in operations.items()}
    tensors = len(passes.additions)
    parameters = shape.parameters()
    further = _beside("gradients added up", around.further, parameters, tensors)
    operations["gradients added up"] = [further] * (accumulation - 1)
    operations["update"] = [_beside("update", around.update, parameters, tensors)]
    tokens = accumulation * micro_batch * shape.seq_len
    return Step(operations, tokens, tokens * shape.matmul_flops_per_token())


def _beside(name: str, costs: tuple[int, int], parameters: int, tensors: int) -> Launch:
    bytes_each, kernels_each = costs
    return Launch(name, launches.MEMORY, max(1, kernels_each * tensors), bytes_each * parameters)


def gpu_of(device: str) -> Gpu | None:
    """That which CUDA calls so; None where its rates are not known here."""
    return next((GPUS[name] for part, name in NAMES.items() if part in device), None)


def report(preset: str, shape: ModelConfig, micro_batch: int, accumulation: int) -> dict:
    """A step of the engine's at ZeRO 1 on one GPU, of JSON's types. Times are milliseconds a
    step."""
    made = step(shape, micro_batch, accumulation, ZERO_1)
    passes = _passes(shape, micro_batch)
    both = passes.forward + passes.backward
    return {
        "about": ABOUT,
        "preset": preset,
        "micro_batch": micro_batch,
        "accumulation": accumulation,
        "seq_len": shape.seq_len,
        "vocab_size": shape.vocab_size,
        "kernels_of_a_micro_batch": kernels(both),
        "bytes_of_a_micro_batch": moved(both),
        "operations": [_row(name, group) for name, group in made.operations.items()],
        "devices": {name: _speed(made, gpu) for name, gpu in GPUS.items()},
        "uncertainty": UNCERTAINTY,
        "rates": {name: gpu._asdict() for name, gpu in GPUS.items()},
        "sources": SOURCES,
    }


def text(facts: dict) -> str:
    """What `report` found, for a person."""
    lines = [
        ABOUT,
        f"{facts['preset']} in bf16, a step of {facts['accumulation']} x {facts['micro_batch']} x"
        f" {facts['seq_len']} tokens at ZeRO 1 on one GPU.",
        f"A micro-batch, forward and backward: {facts['kernels_of_a_micro_batch']} kernels,"
        f" {facts['bytes_of_a_micro_batch'] / 1e9:.1f} GB.",
        "Milliseconds of a step, in brackets by the data sheet alone:",
        "",
        f"{'':28s}{'kernels':>8s}{'GB':>7s}{'TFLOP':>7s}" + "".join(f"{g:>17s}" for g in GPUS),
        *map(_line, facts["operations"]),
        "",
    ]
    for device, speed in facts["devices"].items():
        lines.append(
            f"{device:12s}{speed['tokens_per_second']:>9,.0f} tokens/s (±{UNCERTAINTY:.0%}), MFU"
            f" {speed['mfu']:.0%}; by the data sheet alone"
            f" {speed['limit_tokens_per_second']:,.0f}, {speed['limit_mfu']:.0%}"
        )
    return "\n".join([*lines, "", *SOURCES])


def _row(name: str, group: list[Launch]) -> dict:
    return {
        "operation": name,
        "kernels": kernels(group),
        "bytes": moved(group),
        "flops": sum(launch.flops for launch in group),
        "milliseconds": _of_gpus(milliseconds, group),
        "least_milliseconds": _of_gpus(least_milliseconds, group),
    }


def _of_gpus(time: Callable, group: list[Launch]) -> dict[str, float]:
    return {name: sum(time(gpu, launch) for launch in group) for name, gpu in GPUS.items()}


def _line(row: dict) -> str:
    line = f"{row['operation']:28s}{row['kernels']:>8,}{row['bytes'] / 1e9:>7.2f}"
    line += f"{row['flops'] / 1e12:>7.2f}"
    for name, time in row["milliseconds"].items():
        both = f"{time:.2f} ({row['least_milliseconds'][name]:.2f})"
        line += f"{both:>17s}"
    return line


def _speed(made: Step, gpu: Gpu) -> dict[str, float]:
    seconds = made.milliseconds(gpu) / 1e3
    least = made.least_milliseconds(gpu) / 1e3
    return {
        "milliseconds": 1e3 * seconds,
        "tokens_per_second": made.tokens / seconds,
        "mfu": made.flops / seconds / gpu.peak,
        "limit_tokens_per_second": made.tokens / least,
        "limit_mfu": made.flops / least / gpu.peak,
    }

"""The part `kernels` of tools/bench.py: single operations of the hot loop against the roofline.

An operation can take no less time than its bytes need at the device's memory bandwidth, nor than
its FLOPs at the device's matmul rate (Williams, Waterman, Patterson, Communications of the ACM
52(4), 2009). Bytes are those that any implementation must move: every input read once, every result
written once. `share` is that least time over the time taken.
"""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench.py kernels`: run that")

import math
import os
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gpt.config.shape import ModelConfig
from gpt.errors import UserError
from gpt.kernels.attention import causal_attention
from gpt.kernels.choice import choose
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm
from gpt.kernels.linear import linear
from gpt.kernels.linear_cross_entropy import linear_cross_entropy
from tools.benchmarks.device import Device, Work


class Operation(NamedTuple):
    """ours and eager take `inputs` and return a tensor, or some; both directions are counted."""

    name: str
    inputs: tuple
    ours: Callable
    eager: Callable
    flops: float  # of forward and backward
    bytes: float


def _eager_attention(q, k, v):
    length = q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[3])).masked_fill(future, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _eager_norm(x, residual, weight, bias):
    total = residual + x
    return F.layer_norm(total, weight.shape, weight, bias, 1e-5), total


def operations(
    shape: ModelConfig,
    micro_batch: int,
    device: torch.device,
    dtype: torch.dtype,
    kernels: str,
) -> Iterator[Operation]:
    """The operations of one micro-batch of so many sequences."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*size, scale=1.0):
        values = torch.randn(size, device=device, generator=generator) * scale
        return values.to(dtype).requires_grad_()

    n = micro_batch * shape.seq_len
    c = shape.h_dim
    m = shape.mlp_dim
    v = shape.vocab_size
    width = dtype.itemsize
    yield Operation(
        "residual + LayerNorm",
        (random(n, c), random(n, c), random(c), random(c)),
        lambda x, residual, weight, bias: add_layer_norm(x, residual, weight, bias, 1e-5, kernels),
        _eager_norm,
        # x, residual -> normed, total; two gradients and total -> one gradient
        20 * n * c,
        (4 + 4) * n * c * width,
    )
    yield Operation(
        "bias + GELU",
        (random(n, m), random(m)),
        lambda x, bias: bias_gelu(x, bias, kernels),
        lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        30 * n * m,
        (2 + 3) * n * m * width,
    )
    heads = (micro_batch, shape.n_heads, shape.seq_len, shape.head_dim)
    pairs = shape.seq_len * (shape.seq_len + 1) / 2 * micro_batch * shape.n_heads
    yield Operation(
        "attention",
        (random(*heads), random(*heads), random(*heads)),
        causal_attention,
        _eager_attention,
        3 * 4 * pairs * shape.head_dim,
        (4 + 8) * n * shape.n_heads * shape.head_dim * width,
    )
    targets = torch.randint(v, (n,), device=device, generator=generator)
    yield Operation(
        "head + cross-entropy",
        (random(n, c), random(v, c, scale=0.02)),
        lambda hidden, weight: linear_cross_entropy(hidden, weight, targets, kernels),
        lambda hidden, weight: F.cross_entropy((hidden @ weight.t()).float(), targets),
        6 * n * c * v,
        (2 * n * c + 2 * v * c) * width,
    )
    yield Operation(
        "linear (MLP)",
        (random(n, c), random(m, c, scale=0.02), random(m)),
        linear,
        F.linear,
        6 * n * c * m,
        (2 * n * c + 2 * c * m + 2 * n * m) * width,
    )


def measure(device: Device, shape: ModelConfig, work: Work) -> list:
    """Results, one of each operation and way."""
    kernels, reason = choose("auto", device.torch, shape, device.dtype)
    bandwidth = max(device.bandwidth() for _ in range(5))
    print(
        f"kernels: {kernels} ({reason}), forward and backward;"
        f" copying moves {bandwidth / 1e9:,.1f} GB/s"
    )
    results = []
    for operation in operations(shape, work.micro_batch, device.torch, device.dtype, kernels):
        ways = {"ours": operation.ours, "eager": operation.eager}
        if work.compile:
            ways["compiled"] = torch.compile(operation.eager)
        passes = {name: _both_directions(way, operation.inputs) for name, way in ways.items()}
        times, rates = device.in_turn(passes, work.rounds)
        matmul_rate = statistics.median(rates)
        for name, taken in times.items():
            seconds = statistics.median(taken)
            result = _against_roofline(operation, name, seconds, bandwidth, matmul_rate)
            _print_row(result)
            results.append(result)
    return results


def _against_roofline(operation, way, seconds, bandwidth, matmul_rate) -> dict:
    least_seconds = max(operation.bytes / bandwidth, operation.flops / matmul_rate)
    return {
        "operation": operation.name,
        "way": way,
        "seconds": seconds,
        "flops": operation.flops,
        "bytes": operation.bytes,
        "flops_per_second": operation.flops / seconds,
        "bytes_per_second": operation.bytes / seconds,
        "share_of_roofline": least_seconds / seconds,
        "bandwidth": bandwidth,
        "matmul_flops_per_second": matmul_rate,
    }


def _print_row(result):
    columns = [
        f"  {result['operation']:22s} {result['way']:10s} {1e3 * result['seconds']:>9.2f} ms",
        f"{result['bytes_per_second'] / 1e9:>8,.1f} GB/s",
        f"{result['flops_per_second'] / 1e9:>9,.1f} GFLOP/s",
        f"{result['share_of_roofline']:>4.0%} of the roofline",
    ]
    print("  ".join(columns), flush=True)


def _both_directions(way, inputs):
    gradients = None

    def work():
        nonlocal gradients
        results = way(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        gradients = gradients or [torch.ones_like(result) for result in results]
        torch.autograd.grad(results, inputs, gradients)

    return work


# way: (marker, fill)
LOOKS = {"ours": ("o", "black"), "eager": ("s", "none"), "compiled": ("^", "none")}


def draw(result: dict, path: str):
    """One figure: achieved FLOP/s over FLOPs per byte, under the measured roofline."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook has set
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise UserError(
            "--png needs the package matplotlib", mend="run `pip install -e '.[bench]'`"
        ) from error

    rows = sorted(result["kernels"], key=_intensity)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    _draw_roof(axes, rows)
    for way, (marker, fill) in LOOKS.items():
        points = [row for row in rows if row["way"] == way]
        if points:
            axes.scatter(
                [_intensity(row) for row in points],
                [_gigaflops(row) for row in points],
                marker=marker,
                facecolors=fill,
                edgecolors="black",
                s=45,
                label=way,
                zorder=3,
            )
    _name_operations(axes, [row for row in rows if row["way"] == "ours"])
    load = f"{result['preset']}, {result['micro_batch']} x {result['seq_len']} tokens"
    axes.set(
        xlabel="FLOPs per byte that must be moved",
        ylabel="GFLOP/s, forward and backward",
        title=f"{load}, {result['device']}",
    )
    axes.margins(x=0.15, y=0.15)
    axes.legend(loc="lower right", frameon=False)
    axes.grid(True, which="major", color="0.9")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def _intensity(row):
    """FLOPs per byte."""
    return row["flops"] / row["bytes"]


def _gigaflops(row):
    return row["flops_per_second"] / 1e9


def _draw_roof(axes, rows):
    """rows: by rising intensity."""
    bandwidth = rows[0]["bandwidth"]
    peak = max(row["matmul_flops_per_second"] for row in rows)
    left = _intensity(rows[0]) / 2
    right = _intensity(rows[-1]) * 2
    corners = [left, peak / bandwidth, right]
    roof = [min(peak, bandwidth * x) / 1e9 for x in corners]
    axes.loglog(corners, roof, color="black", linewidth=1)
    text = {"textcoords": "offset points", "ha": "right"}
    slope = (left, bandwidth * left / 1e9)
    axes.annotate(f"{bandwidth / 1e9:,.0f} GB/s", slope, xytext=(-6, 14), **text)
    axes.annotate(f"{peak / 1e9:,.0f} GFLOP/s", (right, peak / 1e9), xytext=(0, 5), **text)


def _name_operations(axes, rows):
    """rows: by rising intensity."""
    for row in rows:
        is_left = _intensity(row) > _intensity(rows[-1]) / 10
        # the names at both ends lower, since points there lie side by side
        is_end = row in (rows[0], rows[-1])
        axes.annotate(
            row["operation"],
            (_intensity(row), _gigaflops(row)),
            xytext=(-8 if is_left else 8, -16 if is_end else -3),
            textcoords="offset points",
            fontsize=9,
            ha="right" if is_left else "left",
        )

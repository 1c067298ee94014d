"""The part `kernels` of tools/bench.py: single operations of the hot loop against the roofline.

An operation can take no less time than its bytes need at the device's memory bandwidth, nor than
its FLOPs at the device's matmul rate (Williams, Waterman, Patterson, Communications of the ACM
52(4), 2009). Bytes are those that any implementation must move: every input read once, every result
written once. `share` is that least time over the time taken.
"""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gpt.errors import UserError
from gpt.kernels.attention import causal_attention
from gpt.kernels.choice import choose
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm
from gpt.kernels.linear import linear
from gpt.kernels.linear_cross_entropy import linear_cross_entropy


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


def operations(shape, rows_of_batch, device, dtype, kernels):
    """The operations of one micro-batch of `rows_of_batch` sequences."""

    def random(*size, scale=1.0):
        return (
            (torch.randn(size, device=device, generator=generator) * scale)
            .to(dtype)
            .requires_grad_()
        )

    generator = torch.Generator(device).manual_seed(0)
    n = rows_of_batch * shape.seq_len
    c = shape.h_dim
    m = shape.mlp_dim
    v = shape.vocab_size
    width, wide = dtype.itemsize, shape.n_heads * shape.head_dim
    heads = (rows_of_batch, shape.n_heads, shape.seq_len, shape.head_dim)
    yield Operation(
        "residual + LayerNorm",
        (random(n, c), random(n, c), random(c), random(c)),
        lambda x, r, w, b: add_layer_norm(x, r, w, b, 1e-5, kernels),
        _eager_norm,
        # x, residual -> normed, total; two gradients and total -> one gradient
        20 * n * c,
        (4 + 4) * n * c * width,
    )
    yield Operation(
        "bias + GELU",
        (random(n, m), random(m)),
        lambda x, b: bias_gelu(x, b, kernels),
        lambda x, b: F.gelu(x + b, approximate="tanh"),
        30 * n * m,
        (2 + 3) * n * m * width,
    )
    pairs = shape.seq_len * (shape.seq_len + 1) / 2 * rows_of_batch * shape.n_heads
    yield Operation(
        "attention",
        tuple(random(*heads) for _ in range(3)),
        causal_attention,
        _eager_attention,
        3 * 4 * pairs * shape.head_dim,
        (4 + 8) * n * wide * width,
    )
    targets = torch.randint(v, (n,), device=device, generator=generator)
    yield Operation(
        "head + cross-entropy",
        (random(n, c), random(v, c, scale=0.02)),
        lambda h, w: linear_cross_entropy(h, w, targets, kernels),
        lambda h, w: F.cross_entropy((h @ w.t()).float(), targets),
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


def measure(device, shape, args) -> list:
    kernels, reason = choose("auto", device.torch, shape, device.dtype)
    bandwidth = [device.bandwidth() for _ in range(5)]
    found = []
    print(
        f"kernels: {kernels} ({reason}), forward and backward; copying moves"
        f" {max(bandwidth) / 1e9:,.1f} GB/s"
    )
    for operation in operations(shape, args.micro_batch, device.torch, device.dtype, kernels):
        ways = {"ours": operation.ours, "eager": operation.eager}
        if args.compile:
            ways["compiled"] = torch.compile(operation.eager)
        times, rates = device.in_turn(
            {name: _both_directions(way, operation.inputs) for name, way in ways.items()},
            args.rounds,
        )
        least = max(operation.bytes / max(bandwidth), operation.flops / statistics.median(rates))
        for name, taken in times.items():
            seconds = statistics.median(taken)
            found.append(
                {
                    "operation": operation.name,
                    "way": name,
                    "seconds": seconds,
                    "flops": operation.flops,
                    "bytes": operation.bytes,
                    "flops_per_second": operation.flops / seconds,
                    "bytes_per_second": operation.bytes / seconds,
                    "share_of_roofline": least / seconds,
                    "bandwidth": max(bandwidth),
                    "matmul_flops_per_second": statistics.median(rates),
                }
            )
            print(
                f"  {operation.name:22s} {name:10s} {1e3 * seconds:>9.2f} ms "
                f" {operation.bytes / seconds / 1e9:>8,.1f} GB/s "
                f" {operation.flops / seconds / 1e9:>9,.1f} GFLOP/s  {least / seconds:>4.0%} of the"
                " roofline",
                flush=True,
            )
    return found


def _both_directions(way, inputs):
    gradients = None

    def work():
        nonlocal gradients
        results = way(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        gradients = gradients or [torch.ones_like(result) for result in results]
        torch.autograd.grad(results, inputs, gradients)

    return work


def draw(result, path):
    """One figure: achieved FLOP/s over FLOPs per byte, under the measured roofline."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "--png needs the package matplotlib: run `pip install -e '.[bench]'`"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = result["kernels"]
    bandwidth = found[0]["bandwidth"]
    peak = max(row["matmul_flops_per_second"] for row in found)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    intensities = sorted({row["flops"] / row["bytes"] for row in found})
    line = [intensities[0] / 2, peak / bandwidth, intensities[-1] * 2]
    axes.loglog(line, [min(peak, bandwidth * x) / 1e9 for x in line], color="black", linewidth=1)
    axes.annotate(
        f"{bandwidth / 1e9:,.0f} GB/s",
        (line[0], bandwidth * line[0] / 1e9),
        xytext=(-6, 14),
        textcoords="offset points",
        ha="right",
    )
    axes.annotate(
        f"{peak / 1e9:,.0f} GFLOP/s",
        (line[2], peak / 1e9),
        xytext=(0, 5),
        textcoords="offset points",
        ha="right",
    )
    for name, marker, fill in (
        ("ours", "o", "black"),
        ("eager", "s", "none"),
        ("compiled", "^", "none"),
    ):
        rows = [row for row in found if row["way"] == name]
        if rows:
            axes.scatter(
                [row["flops"] / row["bytes"] for row in rows],
                [row["flops_per_second"] / 1e9 for row in rows],
                marker=marker,
                facecolors=fill,
                edgecolors="black",
                s=45,
                label=name,
                zorder=3,
            )
    ours = sorted(
        (row for row in found if row["way"] == "ours"), key=lambda row: row["flops"] / row["bytes"]
    )
    for row in ours:  # the names at both ends lower, since points there lie side by side
        left = row["flops"] / row["bytes"] > intensities[-1] / 10
        axes.annotate(
            row["operation"],
            (row["flops"] / row["bytes"], row["flops_per_second"] / 1e9),
            xytext=(-8 if left else 8, -16 if row in (ours[0], ours[-1]) else -3),
            textcoords="offset points",
            fontsize=9,
            ha="right" if left else "left",
        )
    axes.set(
        xlabel="FLOPs per byte that must be moved",
        ylabel="GFLOP/s, forward and backward",
        title=(
            f"{result['preset']}, {result['micro_batch']} x {result['seq_len']} tokens,"
            f" {result['device']}"
        ),
    )
    axes.margins(x=0.15, y=0.15)
    axes.legend(loc="lower right", frameon=False)
    axes.grid(True, which="major", color="0.9")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)

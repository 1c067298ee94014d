"""The fused kernels against computations in float64, Triton's under its interpreter and plain torch's by the same tests.

Run by tests/test_kernels.py in a process of its own, since TRITON_INTERPRET must be set before anything imports triton;
by hand: `python -m pytest tests/interpreted_kernels.py`.

The interpreter does not notice an access out of bounds. So inputs lie in larger buffers full of NaN, which would show in
the results, and outputs in larger buffers full of a sentinel, which must be there afterwards; outputs start as NaN.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch

from gpt.errors import UserError
from gpt.kernels import cross_entropy, gelu, launch, layer_norm
from gpt.kernels.cross_entropy import score_logits, softmax_gradient_
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm

TRITON = pytest.param("triton", marks=pytest.mark.skipif(not launch.interpreted(), reason="triton is not installed"))
both = pytest.mark.parametrize("kernels", ["torch", TRITON])
only_triton = pytest.mark.parametrize("kernels", [TRITON])
# Largest relative error of rounding to the nearest number of a dtype, and half its smallest number.
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}
TINY = {torch.float32: 2.0**-150, torch.float16: 2.0**-25}
MARGIN, SENTINEL = 8192, 7.25
WIDTHS = [7, 64, 100, 768, 1025, 1600]
# Every width, and every number of rows, but their product only under the marker `slow`.
SIZES = [(5, width) for width in WIDTHS] + [(1, 7), (3, 100), (1, 1025), (3, 768)]
MATRIX = [pytest.param(r, w, marks=pytest.mark.slow) for r in (1, 3, 5) for w in WIDTHS if (r, w) not in SIZES]

pytestmark = pytest.mark.usefixtures("one_thread", "short_walks")


@pytest.fixture
def short_walks(monkeypatch):
    """Two rows to a program: five rows make three programs, the last with one row."""
    monkeypatch.setattr(launch, "ROWS_PER_PROGRAM", 2)


def random(*shape, seed=0, scale=1.0, offset=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset).to(dtype)


def strided(values, gap=9):
    """The same values as a view, rows `gap` numbers apart, in a buffer of NaN that reaches MARGIN further on each side."""
    rows, width = values.shape
    buffer = torch.full((2 * MARGIN + rows * (width + gap),), float("nan"), dtype=values.dtype)
    return buffer[MARGIN : MARGIN + rows * (width + gap)].view(rows, width + gap)[:, 3 : 3 + width].copy_(values)


def fenced(values):
    """A vector (or a contiguous matrix) with NaN before and after it."""
    buffer = torch.full((2 * MARGIN + values.numel(),), float("nan"), dtype=values.dtype)
    return buffer[MARGIN:-MARGIN].view(values.shape).copy_(values)


class Outputs:
    """Output buffers between sentinels. `check()` finds writes outside of them and places left unwritten."""

    def __init__(self):
        self.made = []

    def __call__(self, *shape, dtype=torch.float32):
        whole = torch.full((2 * MARGIN + int(np.prod(shape)),), SENTINEL, dtype=dtype)
        view = whole[MARGIN:-MARGIN].view(shape)
        self.made.append((whole, view.fill_(float("nan"))))
        return view

    def check(self):
        for whole, view in self.made:
            assert (whole[:MARGIN] == SENTINEL).all() and (whole[-MARGIN:] == SENTINEL).all()
            assert not view.isnan().any()


def double(tensor):
    return tensor.detach().double().numpy()


def close(got, expected, bound):
    """got: a tensor; expected, bound: float64. The rounding to got's dtype is allowed on top of `bound`."""
    error = np.abs(double(got) - expected)
    allowed = bound + UNIT[got.dtype] * np.abs(expected) + TINY[got.dtype]
    assert (error <= allowed).all(), f"error {np.max(error / allowed):.3g} times the bound"


# ---- LayerNorm


def numpy_layer_norm(total, weight, bias, grad_normed, grad_total, eps=1e-5):
    """(normed, d total, d weight, d bias) in float64, d total through the Jacobian of each row."""
    centred = total - total.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True) + eps)
    normal, width = centred / deviation, total.shape[1]
    centring = np.eye(width) - 1 / width
    grads = []
    for n, s, g in zip(normal, deviation, grad_normed * weight):
        jacobian = (centring - np.outer(n, n) / width) / s
        grads.append(jacobian @ g)
    return normal * weight + bias, np.array(grads) + grad_total, (grad_normed * normal).sum(0), grad_normed.sum(0)


def layer_norm_bounds(total, weight, grad_normed, kernels, dtype):
    """Errors of (normed, d total, d weight, d bias) beside the last rounding, in units of what the formulas handle.

    A sum of n numbers in fp32, added in pairs, errs by at most 2**-24 log2(n) of the sum of their magnitudes; a dozen
    further operations are one unit each. Before the mean is subtracted numbers are max|total| / deviation times as large
    as after, and every result depends on the difference. torch's own LayerNorm backward forms rstd**2 * total - … from
    such numbers, and adds up fp16 gradients of weight and bias in fp16: it is given those errors too.
    """
    deviation = total.std(1, keepdims=True)
    growth = 1 + np.abs(total).max(1, keepdims=True) / deviation
    unit = 2.0**-24 * (np.log2(total.shape[1]) + 12) * growth
    normal = np.abs(total - total.mean(1, keepdims=True)) / deviation
    if kernels == "torch":
        unit = unit * growth
    incoming = np.abs(grad_normed * weight).max(1, keepdims=True)
    sums = (unit * np.abs(grad_normed) * (1 + normal)).sum(0)
    if kernels == "torch" and dtype == torch.float16:
        sums += 2.0**-11 * total.shape[0] * (np.abs(grad_normed) * (1 + normal)).sum(0)
    return unit * (1 + normal) * (np.abs(weight) + 1), unit * incoming * (2 + normal.max()) ** 2 / deviation, sums, sums


@both
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("rows, width", SIZES + MATRIX)
def test_layer_norm(rows, width, dtype, offset, kernels):
    x, residual = (strided(random(rows, width, seed=s, offset=offset / 2, dtype=dtype)) for s in (1, 2))
    grad_normed, grad_total = (strided(random(rows, width, seed=s, dtype=dtype)) for s in (3, 4))
    weight, bias = (fenced(random(width, seed=s, offset=1.0, dtype=dtype)) for s in (5, 6))
    leaves = [tensor.requires_grad_() for tensor in (x, residual, weight, bias)]
    normed, total = add_layer_norm(*leaves, kernels=kernels)
    # One rounding to fp32 of the sum, one to the residual's dtype: float64 holds sums of two fp32 numbers well enough
    # for the first to be the same as that of a direct fp32 addition.
    assert np.array_equal(total.detach().numpy(), (double(x) + double(residual)).astype(np.float32).astype(total.numpy(force=True).dtype))
    expected = numpy_layer_norm(*map(double, (total, weight, bias, grad_normed, grad_total)))
    bounds = layer_norm_bounds(*map(double, (total, weight, grad_normed)), kernels, dtype)
    grad_x, *grads = torch.autograd.grad((normed, total), leaves, (grad_normed, grad_total))
    assert torch.equal(grad_x, grads[0])
    for got, true, bound in zip((normed, *grads), expected, bounds):
        assert got.dtype == dtype
        close(got, true, bound)

    alone = layer_norm.layer_norm(total.detach().requires_grad_(), weight, bias, kernels=kernels)
    assert torch.equal(alone, normed)

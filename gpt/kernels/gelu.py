"""GELU of a sum with a bias, forward and backward in one kernel each, the bias's gradient in the
backward kernel.

gelu(z) = z/2 (1 + tanh(u)), u = sqrt(2/pi) (z + 0.044715 z^3) (Hendrycks, Gimpel, arXiv
1606.08415), computed as z * s with s = sigmoid(2u): the same function without the cancellation in 1
+ tanh(u) at negative u. In fp32 (fp64 for fp64 tensors); the bias's gradient is summed per program
and then over programs, always in the same order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.kernels import gelu_by_sigmoid
from gpt.kernels.linear import linear
from gpt.kernels.partial_sums import finish
from gpt.kernels.triton_shared import (
    as_rows,
    block_size,
    jit,
    num_warps,
    on_device_of,
    share_rows,
    statistics_dtype,
    tl,
    wide,
)

# the most columns of one program: four warps with 8 numbers a thread
COLUMNS = 1024
# rows of a forward program: four independent loads a thread
FORWARD_ROWS = 4


@jit()
def _exp_and_sigmoid(z):
    """(exp(-2u), s), with the logarithm of 2 in the constants. Where exp overflows s is 0.

    1 / (1 + e) as the square of a reciprocal root: one instruction and a product, where a division
    takes five to keep its divisor in range.
    """
    e = tl.exp2(z * (-2.302208198144325 - 0.1029432395800235 * (z * z)))
    root = tl.rsqrt(1.0 + e)
    return e, root * root


@jit(do_not_specialize=["rows"])
def _gelu_forward_kernel(
    x,
    bias,
    result,
    x_stride,
    rows,
    width,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a tile of ROWS rows and BLOCK columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    z = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(WIDE)
    z += tl.load(bias + column, mask=column < width, other=0.0).to(WIDE)
    _, s = _exp_and_sigmoid(z)
    tl.store(result + row * width + column, (z * s).to(result.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["rows", "rows_per_program"])
def _gelu_backward_kernel(
    grad,
    x,
    bias,
    grad_x,
    partial,
    grad_stride,
    x_stride,
    rows,
    rows_per_program,
    width,
    BLOCK: tl.constexpr,
):
    """Each program walks over its rows, BLOCK columns of them, and leaves its sums of d x in
    partial (programs, width).

    d gelu / d z = s + z s (1 - s) d(2u)/dz, where 1 - s = s exp(-2u). Beyond |z| = 10 it is 0 or 1
    to 1e-35, and at -10 exp(-2u) is still finite.
    """
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    shift = tl.load(bias + column, mask=inside, other=0.0).to(partial.dtype.element_ty)
    bias_sum = tl.zeros((BLOCK,), partial.dtype.element_ty)
    first = program * rows_per_program
    for index in tl.range(first, min(first + rows_per_program, rows), num_stages=2):
        row = tl.cast(index, tl.int64)
        value = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
        z = value.to(partial.dtype.element_ty) + shift
        upstream = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0)
        upstream = upstream.to(partial.dtype.element_ty)
        z = tl.clamp(z, -10.0, 10.0, propagate_nan=tl.PropagateNan.ALL)
        e, s = _exp_and_sigmoid(z)
        slope = 1.5957691216057308 + 0.21406444881780076 * (z * z)
        result = upstream * (s + z * slope * (s * (s * e)))
        bias_sum += result
        tl.store(grad_x + row * width + column, result.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(partial + program * width + column, bias_sum, mask=inside)


def backward_warps(block: int) -> int:
    """Twice the columns a thread that `num_warps` gives: what a row costs beside its numbers, the
    loop and the prefetch, is spread over 16 of them."""
    return max(1, num_warps(block) // 2)


def launch_forward(x: Tensor, bias: Tensor, result: Tensor) -> None:
    """x: (rows, width), rows strided; bias: (width,); result, contiguous, is written."""
    rows, width = x.shape
    block = block_size(width, COLUMNS)
    grid = (-(-rows // FORWARD_ROWS), -(-width // block))
    with on_device_of(x):
        _gelu_forward_kernel[grid](
            x,
            bias,
            result,
            x.stride(0),
            rows,
            width,
            WIDE=wide(x.dtype),
            ROWS=FORWARD_ROWS,
            BLOCK=block,
            num_warps=num_warps(block),
        )


def launch_backward(
    grad: Tensor,
    x: Tensor,
    bias: Tensor,
    grad_x: Tensor,
    partial: Tensor,
    rows_per_program: int,
) -> None:
    """grad, x: (rows, width), rows strided; grad_x and partial (programs, width) are contiguous and
    written."""
    rows, width = x.shape
    block = block_size(width, COLUMNS)
    grid = (partial.shape[0], -(-width // block))
    with on_device_of(x):
        _gelu_backward_kernel[grid](
            grad,
            x,
            bias,
            grad_x,
            partial,
            grad.stride(0),
            x.stride(0),
            rows,
            rows_per_program,
            width,
            BLOCK=block,
            num_warps=backward_warps(block),
        )


@torch.library.custom_op("gpt::bias_gelu", mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    assert bias.shape == x.shape[-1:] and bias.is_contiguous()
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch_forward(as_rows(x), bias, result)
    return result


@_bias_gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("gpt::bias_gelu_backward", mutates_args=())
def _bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, width = as_rows(x).shape
    block = block_size(width, COLUMNS)
    warps = backward_warps(block) * -(-width // block)
    programs, per_program = share_rows(rows, warps, x.device)
    partial = torch.empty((programs, width), dtype=statistics_dtype(x), device=x.device)
    launch_backward(as_rows(grad), as_rows(x), bias, grad_x, partial, per_program)
    return grad_x, finish(partial[None], bias.dtype)[0]


@_bias_gelu_backward.register_fake
def _(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _bias_gelu_backward(grad, *ctx.saved_tensors)


_bias_gelu.register_autograd(_backward, setup_context=_setup_context)


def bias_gelu(x: Tensor, bias: Tensor, kernels: str = "torch") -> Tensor:
    """tanh-GELU of x + bias, in x's dtype. x: (…, width), any strides; bias: (width,).
    Differentiable once.

    kernels: "torch", which rounds the sum to x's dtype before the GELU, or "triton", which rounds
    the result alone and keeps x, not the sum, for the backward pass.
    """
    if kernels == "triton":
        return _bias_gelu(x, bias)
    return F.gelu(x + bias, approximate="tanh")


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, kernels: str = "torch") -> Tensor:
    """tanh-GELU of x @ weight.T + bias; the bias is added where that costs no pass of its own. As
    `bias_gelu`."""
    if kernels == "triton":
        return _bias_gelu(linear(x, weight), bias)
    result = linear(x, weight, bias)
    if gelu_by_sigmoid.takes(result):
        return gelu_by_sigmoid.gelu_(result)
    return F.gelu(result, approximate="tanh")

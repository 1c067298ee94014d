"""LayerNorm with the residual addition before it, forward and backward in one kernel each.

total = residual + x + x_bias, rounded once; normed = (total - mean) / sqrt(variance + eps) *
weight + bias over the last dimension (Ba, Kiros, Hinton, arXiv 1607.06450). Statistics and partial
sums are in fp32 (fp64 for fp64 tensors). The gradients of weight, bias and x_bias are summed per
program and then over programs, always in the same order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.errors import UserError
from gpt.kernels.partial_sums import finish
from gpt.kernels.triton_shared import (
    RESIDENT_WARPS,
    as_rows,
    jit,
    next_power_of_2,
    num_warps,
    on_device_of,
    share_rows,
    statistics_dtype,
    tl,
)

# a program holds a whole row in registers
MAXIMUM_WIDTH = 8192
# Of a row, up to which the backward kernel prefetches: twice as many, of three tensors, would take
# half of a multiprocessor's shared memory.
PREFETCHED_BYTES = 8192
# RESIDENT_WARPS of the backward kernel in rows of more than 1,024 columns, of which each thread has
# up to 128 registers
RESIDENT_WARPS_OF_WIDE_ROWS = 16


# How a row of statistics is aligned depends on the number of rows, and is to cost no compilation of
# its own.
@jit(do_not_specialize_on_alignment=["mean", "rstd"])
def _layer_norm_forward_kernel(
    x,
    x_bias,
    residual,
    weight,
    bias,
    normed,
    total,
    mean,
    rstd,
    x_stride,
    residual_stride,
    width,
    eps,
    BLOCK: tl.constexpr,
):
    """One program a row. residual and total are both None where there is nothing to add; x_bias is
    None where x already has its bias, or has none."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(mean.dtype.element_ty)
    if x_bias is not None:
        value += tl.load(x_bias + columns, mask=inside, other=0.0).to(mean.dtype.element_ty)
    if residual is not None:
        stream = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0)
        value += stream.to(mean.dtype.element_ty)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row * width + columns, rounded, mask=inside)
        value = rounded.to(mean.dtype.element_ty)
    average = tl.sum(value, 0) / width
    centred = tl.where(inside, value - average, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    tl.store(mean + row, average)
    tl.store(rstd + row, scale)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(mean.dtype.element_ty)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(mean.dtype.element_ty)
    result = centred * scale * gain + shift
    tl.store(normed + row * width + columns, result.to(normed.dtype.element_ty), mask=inside)


@jit(
    do_not_specialize=["rows", "rows_per_program"], do_not_specialize_on_alignment=["mean", "rstd"]
)
def _layer_norm_backward_kernel(
    grad_normed,
    grad_total,
    total,
    weight,
    mean,
    rstd,
    grad_input,
    partial,
    normed_stride,
    total_grad_stride,
    total_stride,
    rows,
    rows_per_program,
    width,
    SUMS: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program walks over its rows and leaves its sums of d weight and d bias, and with SUMS 3
    of d total, in partial (SUMS, programs, width). With STAGES 2 the next row is loaded,
    asynchronously into shared memory, while this one is computed.

    With n = (total - mean) * rstd and g = d normed * weight: d total = rstd * (g - avg(g) - n *
    avg(g * n)) + the gradient that comes to total from elsewhere (grad_total; None for none).
    """
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(mean.dtype.element_ty)
    weight_sum = tl.zeros((BLOCK,), mean.dtype.element_ty)
    bias_sum = tl.zeros((BLOCK,), mean.dtype.element_ty)
    if SUMS == 3:
        total_sum = tl.zeros((BLOCK,), mean.dtype.element_ty)
    share = 1.0 / tl.cast(width, mean.dtype.element_ty)
    first = program * rows_per_program
    last = min(first + rows_per_program, rows)
    for index in tl.range(first, last, num_stages=STAGES):
        row = tl.cast(index, tl.int64)
        value = tl.load(total + row * total_stride + columns, mask=inside, other=0.0)
        value = value.to(mean.dtype.element_ty)
        upstream = tl.load(grad_normed + row * normed_stride + columns, mask=inside, other=0.0)
        upstream = upstream.to(mean.dtype.element_ty)
        scale = tl.load(rstd + row)
        # not 0 beyond the width, where upstream and gain are
        normal = (value - tl.load(mean + row)) * scale
        weight_sum += upstream * normal
        bias_sum += upstream
        upstream *= gain
        along = tl.sum(upstream * normal, 0) * share
        result = (upstream - tl.sum(upstream, 0) * share - normal * along) * scale
        if grad_total is not None:
            past = tl.load(grad_total + row * total_grad_stride + columns, mask=inside, other=0.0)
            result += past.to(mean.dtype.element_ty)
        if SUMS == 3:
            total_sum += result
        places = grad_input + row * width + columns
        tl.store(places, result.to(grad_input.dtype.element_ty), mask=inside)
    tl.store(partial + program * width + columns, weight_sum, mask=inside)
    tl.store(partial + (tl.num_programs(0) + program) * width + columns, bias_sum, mask=inside)
    if SUMS == 3:
        places = partial + (2 * tl.num_programs(0) + program) * width + columns
        tl.store(places, total_sum, mask=inside)


def block_size(width: int) -> int:
    if width > MAXIMUM_WIDTH:
        raise UserError(
            f"LayerNorm over {width} numbers",
            mend=f'the Triton kernel takes at most {MAXIMUM_WIDTH}, set kernels to "torch"',
        )
    return next_power_of_2(width)


def resident_warps(block: int) -> int:
    """On one multiprocessor at once, of the backward kernel with `block` columns a program."""
    return RESIDENT_WARPS if block <= 1024 else RESIDENT_WARPS_OF_WIDE_ROWS


def _stages(block: int, sums: int, matrices: tuple[Tensor | None, ...]) -> int:
    """Of the backward kernel's loop over rows of these: 2 loads the next row while this one is
    computed."""
    loaded = [matrix for matrix in matrices if matrix is not None]
    # the first LayerNorm of a model, which for compute capability 10.0 would spill registers
    if sums == 2 and len(loaded) == 2:
        return 1
    row_bytes = block * max(matrix.element_size() for matrix in loaded)
    return 2 if row_bytes <= PREFETCHED_BYTES else 1


def launch_forward(
    x: Tensor,
    x_bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    normed: Tensor,
    total: Tensor | None,
    stats: Tensor,
    eps: float,
) -> None:
    """x, residual: (rows, width), rows strided; x_bias: (width,), contiguous. Written: normed and
    total (rows, width), stats (2, rows): mean, rstd."""
    rows, width = x.shape
    block = block_size(width)
    with on_device_of(x):
        _layer_norm_forward_kernel[(rows,)](
            x,
            x_bias,
            residual,
            weight,
            bias,
            normed,
            total,
            *stats.unbind(0),
            x.stride(0),
            None if residual is None else residual.stride(0),
            width,
            eps,
            BLOCK=block,
            num_warps=num_warps(block),
        )


def launch_backward(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    stats: Tensor,
    grad_input: Tensor,
    partial: Tensor,
    rows_per_program: int,
) -> None:
    """Matrices (rows, width), rows strided; grad_input and partial (2 or 3, programs, width) are
    contiguous and written. partial: sums of d weight, d bias and, as a third, of grad_input before
    it is rounded."""
    rows, width = total.shape
    block = block_size(width)
    sums, programs, _ = partial.shape
    with on_device_of(total):
        _layer_norm_backward_kernel[(programs,)](
            grad_normed,
            grad_total,
            total,
            weight,
            *stats.unbind(0),
            grad_input,
            partial,
            grad_normed.stride(0),
            None if grad_total is None else grad_total.stride(0),
            total.stride(0),
            rows,
            rows_per_program,
            width,
            SUMS=sums,
            STAGES=_stages(block, sums, (grad_normed, grad_total, total)),
            BLOCK=block,
            num_warps=num_warps(block),
        )


def _empty_results(
    x: Tensor,
    x_bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    normed = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    if residual is None:
        total = x.new_empty(0)
    else:
        total = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    stats = torch.empty((2, x.shape[:-1].numel()), dtype=statistics_dtype(x), device=x.device)
    return normed, total, stats


@torch.library.custom_op("gpt::layer_norm", mutates_args=())
def _layer_norm(
    x: Tensor,
    x_bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(normed, total, stats); total is empty where there is no residual."""
    assert weight.shape == bias.shape == x.shape[-1:]
    assert weight.is_contiguous() and bias.is_contiguous()
    assert residual is None or residual.shape == x.shape
    normed, total, stats = _empty_results(x, x_bias, residual, weight, bias, eps)
    if residual is None:
        assert x_bias is None
        launch_forward(as_rows(x), None, None, weight, bias, normed, None, stats, eps)
        return normed, total, stats
    if x_bias is not None:
        # whose gradient is summed and cast together with the weight's
        assert x_bias.shape == weight.shape and x_bias.dtype == weight.dtype
        x_bias = x_bias.contiguous()
    rows = as_rows(x), x_bias, as_rows(residual)
    launch_forward(*rows, weight, bias, normed, total, stats, eps)
    return normed, total, stats


_layer_norm.register_fake(_empty_results)


@torch.library.custom_op("gpt::layer_norm_backward", mutates_args=())
def _layer_norm_backward(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    stats: Tensor,
    sums: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of total; (sums, width): gradients of weight, bias and, with 3 sums, x_bias."""
    grad_input = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    rows, width = as_rows(total).shape
    block = block_size(width)
    resident = resident_warps(block)
    programs, per_program = share_rows(rows, num_warps(block), total.device, resident)
    partial = torch.empty((sums, programs, width), dtype=stats.dtype, device=total.device)
    launch_backward(
        as_rows(grad_normed),
        None if grad_total is None else as_rows(grad_total),
        as_rows(total),
        weight,
        stats,
        grad_input,
        partial,
        per_program,
    )
    return grad_input, finish(partial, weight.dtype)


@_layer_norm_backward.register_fake
def _(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    stats: Tensor,
    sums: int,
) -> tuple[Tensor, Tensor]:
    grad_input = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    return grad_input, weight.new_empty((sums, weight.shape[0]))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, _, residual, weight, _, _ = inputs
    _, total, stats = output
    ctx.set_materialize_grads(False)
    if residual is None:
        ctx.mark_non_differentiable(stats, total)
        ctx.save_for_backward(x, weight, stats)
    else:
        ctx.mark_non_differentiable(stats)
        ctx.save_for_backward(total, weight, stats)
    ctx.x_dtype = x.dtype


def _backward(
    ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, weight, stats = ctx.saved_tensors
    needs_x, needs_x_bias, needs_residual, *_ = ctx.needs_input_grad
    grad_weight = grad_bias = grad_x_bias = None
    if grad_normed is not None:
        sums = 3 if needs_x_bias else 2
        grad_total, grads = _layer_norm_backward(
            grad_normed, grad_total, total, weight, stats, sums
        )
        grad_weight, grad_bias = grads[0], grads[1]
        if needs_x_bias:
            grad_x_bias = grads[2]
    elif needs_x_bias and grad_total is not None:
        grad_x_bias = as_rows(grad_total).sum(0, dtype=stats.dtype).to(weight.dtype)
    # of the sum, hence of both
    grad_residual = grad_total if needs_residual else None
    grad_x = grad_total if needs_x else None
    if grad_x is not None:
        grad_x = grad_x.to(ctx.x_dtype)
    return grad_x, grad_x_bias, grad_residual, grad_weight, grad_bias, None


_layer_norm.register_autograd(_backward, setup_context=_setup_context)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    kernels: str = "torch",
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(normed, total): total = residual + x + x_bias, added in fp32 and rounded once; normed =
    LayerNorm(total).

    x, residual: (…, width), any strides; weight, bias and x_bias, None for none: (width,) of one
    dtype. total has the residual's dtype, normed the weight's. kernels: "torch", which rounds x +
    x_bias to x's dtype first, or "triton" (for widths up to 8192; its results are contiguous).
    Differentiable once.
    """
    if kernels == "triton":
        normed, total, _ = _layer_norm(x, x_bias, residual, weight, bias, eps)
        return normed, total
    if x_bias is not None:
        x = x + x_bias
    # mixed dtypes are promoted to fp32 before the sum
    total = (residual + x).to(residual.dtype)
    return layer_norm(total, weight, bias, eps), total


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, kernels: str = "torch"
) -> Tensor:
    """LayerNorm of x (…, width), in the dtype of weight and bias (width,); the rest as in
    `add_layer_norm`."""
    if kernels == "triton":
        return _layer_norm(x, None, None, weight, bias, eps)[0]
    normed = F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
    return normed.to(weight.dtype)

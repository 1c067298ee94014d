"""The linear layer of queries, keys and values, whose gradients come back as three tensors.

Attention hands back the gradients of q, k and v as tensors of their own. One Triton kernel packs
them into the gradient of the GEMM's output and sums its columns, the gradient of the bias, on the
way: in fp32 (fp64 for fp64 tensors), per program and then over programs, always in the same order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpt.kernels.attention import split_heads
from gpt.kernels.linear import linear
from gpt.kernels.partial_sums import finish
from gpt.kernels.triton_shared import (
    block_size,
    jit,
    on_device_of,
    share_rows,
    statistics_dtype,
    tl,
)

# The most columns of a program: every published width of all heads is a multiple of it. A thread
# has four loads of 128 bits under way, in as many rows.
COLUMNS = 256
ROWS = 8
WARPS = 2


@jit(do_not_specialize=["rows", "rows_per_program"])
def _pack_kernel(
    grad_q,
    grad_k,
    grad_v,
    packed,
    partial,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    rows,
    rows_per_program,
    width,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program walks over its rows, BLOCK columns of one of the three gradients, and leaves its
    sums in partial (programs, 3 * width). *_row, *_head: strides."""
    program = tl.program_id(0)
    part = tl.program_id(2)
    source = tl.where(part == 0, grad_q, tl.where(part == 1, grad_k, grad_v))
    row_stride = tl.where(part == 0, q_row, tl.where(part == 1, k_row, v_row))
    head_stride = tl.where(part == 0, q_head, tl.where(part == 1, k_head, v_head))
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    head = (column // HEAD_DIM).to(tl.int64)
    source += (head * head_stride + column % HEAD_DIM)[None, :]
    packed += (part * width + column)[None, :]
    total = tl.zeros((ROWS, BLOCK), partial.dtype.element_ty)
    first = program * rows_per_program
    last = min(first + rows_per_program, rows)
    for start in range(first, last, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        present = (row < last) & inside[None, :]
        value = tl.load(source + row * row_stride, mask=present, other=0.0)
        total += value.to(partial.dtype.element_ty)
        tl.store(packed + row * 3 * width, value, mask=present)
    places = partial + (program * 3 + part) * width + column
    tl.store(places, tl.sum(total, 0), mask=inside)


def launch(grads: Sequence[Tensor], packed: Tensor, partial: Tensor, rows_per_program: int) -> None:
    """grads: of q, k and v, each (rows, H, D), any strides with a contiguous last dimension; packed
    (rows, 3 * H * D) and partial (programs, 3 * H * D) are contiguous and written."""
    rows, n_heads, head_dim = grads[0].shape
    width = n_heads * head_dim
    block = block_size(width, COLUMNS)
    strides = [stride for grad in grads for stride in grad.stride()[:2]]
    with on_device_of(packed):
        _pack_kernel[(partial.shape[0], -(-width // block), 3)](
            *grads,
            packed,
            partial,
            *strides,
            rows,
            rows_per_program,
            width,
            HEAD_DIM=head_dim,
            ROWS=ROWS,
            BLOCK=block,
            num_warps=WARPS,
        )


def _heads_as_rows(grad: Tensor) -> Tensor:
    """(B, H, T, D) as (B * T, H, D) with a contiguous last dimension: a view of what torch's fused
    attention lays out, (B, T, H, D) in memory, a copy of what has no common stride of rows."""
    rows = grad.transpose(1, 2).flatten(0, 1)
    return rows if rows.stride(2) == 1 else rows.contiguous()


@torch.library.custom_op("gpt::pack_heads", mutates_args=())
def pack_heads(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
    """(the gradients packed, (B, T, 3 * H * D); the sums of its columns, (3 * H * D,)), of
    gradients (B, H, T, D)."""
    assert grad_q.shape == grad_k.shape == grad_v.shape
    packed, _ = _empty_results(grad_q, grad_k, grad_v)
    grads = [_heads_as_rows(grad) for grad in (grad_q, grad_k, grad_v)]
    rows, n_heads, head_dim = grads[0].shape
    width = n_heads * head_dim
    warps = 3 * -(-width // block_size(width, COLUMNS)) * WARPS
    programs, per_program = share_rows(rows, warps, packed.device)
    partial = packed.new_empty((programs, 3 * width), dtype=statistics_dtype(packed))
    launch(grads, packed.flatten(0, 1), partial, per_program)
    return packed, finish(partial[None], packed.dtype)[0]


@pack_heads.register_fake
def _empty_results(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
    batch, n_heads, length, head_dim = grad_q.shape
    width = 3 * n_heads * head_dim
    packed = torch.empty((batch, length, width), dtype=grad_q.dtype, device=grad_q.device)
    return packed, packed.new_empty(width)


class _SplitHeads(torch.autograd.Function):
    """q, k and v of a GEMM's output whose bias leaves its gradient to this function."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, ...]:
        return split_heads(qkv, n_heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        packed, column_sums = pack_heads(*grads)
        return packed, column_sums, None


def linear_heads(
    x: Tensor, weight: Tensor, bias: Tensor, n_heads: int, kernels: str = "torch"
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (B, H, T, D), as views of x @ weight.T + bias. x: (B, T, C), weight:
    (3 * H * D, C), bias: (3 * H * D,). Differentiable once.

    kernels: "torch" or "triton".
    """
    if kernels == "triton":
        # the GEMM adds the bias, but has no part in its gradient
        return _SplitHeads.apply(linear(x, weight, bias.detach()), bias, n_heads)
    return split_heads(linear(x, weight, bias), n_heads)

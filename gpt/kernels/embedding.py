"""The embedding: rows of the tokens, scaled, and the rows of their positions added.

Forward is one kernel. The gradient of the weight sums, for each id, the gradients of its tokens: a
stable sort brings the tokens of an id together as a run. Of a long run, chunks of the sorted tokens
that lie wholly in it are summed by programs of their own, so that no program walks along all tokens
of a frequent id; then one program an id adds those sums and the run's remaining rows, and writes
zeros where there is no token. All sums are in fp32 (fp64 for fp64 tensors), always in the same
order, and rounded once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.kernels.triton_shared import (
    as_rows,
    block_size,
    jit,
    num_warps,
    on_device_of,
    statistics_dtype,
    tl,
    wide,
)

# the most columns of one program: four warps with 8 numbers a thread
COLUMNS = 1024
# rows that a program loads together: four independent loads a thread
ROWS = 4
# Sorted tokens whose gradients one program sums. An id of n tokens costs its program n / CHUNK sums
# and fewer than 2 * CHUNK rows.
CHUNK = 32
# ids whose runs one program looks for
IDS = 128


@jit(
    do_not_specialize=["tokens_stride", "rows", "length"],
    do_not_specialize_on_alignment=["tokens"],
)
def _embed_forward_kernel(
    tokens,
    weight,
    positions,
    result,
    keys,
    tokens_stride,
    positions_stride,
    rows,
    length,
    vocab_size,
    width,
    scale,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a tile of ROWS tokens and BLOCK columns.

    A token outside the vocabulary is not looked up: its row is NaN, so that it cannot pass unseen,
    and its key is vocab_size.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    present = row < rows
    sequence = (row // length).to(tl.int64)
    position = row % length
    token = tl.load(tokens + sequence * tokens_stride + position, mask=present, other=0)
    known = (token >= 0) & (token < vocab_size)
    key = tl.where(known, token, vocab_size)
    first_columns = tl.program_id(1) == 0
    tl.store(keys + row, key.to(keys.dtype.element_ty), mask=present & first_columns)
    inside = present[:, None] & (column < width)
    places = weight + token[:, None] * width + column
    value = tl.load(places, mask=inside & known[:, None], other=float("nan")).to(WIDE)
    places = positions + position.to(tl.int64)[:, None] * positions_stride + column
    value = value * scale + tl.load(places, mask=inside, other=0.0).to(WIDE)
    places = result + row.to(tl.int64)[:, None] * width + column
    tl.store(places, value.to(result.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["length", "count"])
def _positions_backward_kernel(
    grad,
    grad_positions,
    grad_stride,
    length,
    count,
    width,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program sums the gradients at one position over the `count` sequences of the batch."""
    position = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    sums = tl.full((ROWS, BLOCK), 0, WIDE)
    for first in range(0, count, ROWS):
        sequence = first + tl.arange(0, ROWS)[:, None]
        row = (sequence * length + position).to(tl.int64)
        places = grad + row * grad_stride + column
        inside = (sequence < count) & (column < width)
        sums += tl.load(places, mask=inside, other=0.0).to(WIDE)
    total = tl.sum(sums, 0)[None, :].to(grad_positions.dtype.element_ty)
    places = grad_positions + position.to(tl.int64) * width + column
    tl.store(places, total, mask=column < width)


@jit(do_not_specialize=["rows", "halvings"])
def _runs_kernel(
    grad,
    keys,
    order,
    first_of_id,
    chunk_sums,
    grad_stride,
    rows,
    halvings,
    vocab_size,
    width,
    CHUNK: tl.constexpr,
    IDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program looks for the runs of IDS ids in the sorted keys, and sums the rows of one chunk
    if all of its keys are equal.

    first_of_id: (vocab_size + 1,), where the run of an id would begin: the number of smaller keys.
    Written in chunk_sums (chunks, width) are the rows of such chunks alone. halvings: so often can
    `rows` be halved.
    """
    program = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    if tl.program_id(1) == 0:
        ids = tl.program_id(0) * IDS + tl.arange(0, IDS)
        low = tl.full((IDS,), 0, tl.int32)
        high = low + rows
        for _ in range(halvings):
            middle = (low + high) // 2
            is_open = low < high
            smaller = tl.load(keys + middle, mask=is_open, other=0) < ids
            low = tl.where(is_open & smaller, middle + 1, low)
            high = tl.where(is_open & (smaller == 0), middle, high)
        tl.store(first_of_id + ids, low, mask=ids <= vocab_size)
    start = program * CHUNK
    whole = start + CHUNK <= rows
    first_key = tl.load(keys + start, mask=whole, other=0)
    last_key = tl.load(keys + start + CHUNK - 1, mask=whole, other=0)
    if whole & (first_key == last_key):
        sums = tl.full((ROWS, BLOCK), 0, chunk_sums.dtype.element_ty)
        for offset in range(0, CHUNK, ROWS):
            row = tl.load(order + start + offset + tl.arange(0, ROWS))[:, None]
            places = grad + row * grad_stride + column
            value = tl.load(places, mask=column < width, other=0.0)
            sums += value.to(chunk_sums.dtype.element_ty)
        places = chunk_sums + program * width + column
        tl.store(places, tl.sum(sums, 0)[None, :], mask=column < width)


@jit()
def _weight_backward_kernel(
    grad,
    order,
    first_of_id,
    chunk_sums,
    grad_weight,
    grad_stride,
    width,
    scale,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program an id, and BLOCK columns: adds the sums of the chunks that lie wholly in its run,
    and the rows before and behind them, and writes the id's row."""
    id = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(first_of_id + id)
    end = tl.load(first_of_id + id + 1)
    total = tl.full((BLOCK,), 0, chunk_sums.dtype.element_ty)
    if first < end:
        columns = column[None, :]
        first_chunk = (first + CHUNK - 1) // CHUNK
        end_chunk = end // CHUNK
        head_end = min(first_chunk * CHUNK, end)
        skipped = max(end_chunk * CHUNK, head_end) - head_end
        sums = tl.full((ROWS, BLOCK), 0, chunk_sums.dtype.element_ty)
        for start in range(first, end - skipped, ROWS):
            place = start + tl.arange(0, ROWS)
            present = place < end - skipped
            place = tl.where(place < head_end, place, place + skipped)
            row = tl.load(order + place, mask=present, other=0)[:, None]
            inside = present[:, None] & (columns < width)
            value = tl.load(grad + row * grad_stride + columns, mask=inside, other=0.0)
            sums += value.to(chunk_sums.dtype.element_ty)
        for start in range(first_chunk, end_chunk, ROWS):
            chunk = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
            inside = (chunk < end_chunk) & (columns < width)
            sums += tl.load(chunk_sums + chunk * width + columns, mask=inside, other=0.0)
        total = tl.sum(sums, 0) * scale
    places = grad_weight + id * width + column
    tl.store(places, total.to(grad_weight.dtype.element_ty), mask=column < width)


def launch_forward(
    tokens: Tensor, weight: Tensor, positions: Tensor, scale: float, result: Tensor, keys: Tensor
) -> None:
    """tokens: (B, T), positions: (T, width), both with strided rows; weight: (V, width). Written:
    result (B * T, width) and keys (B * T,): the tokens, or V for those outside the vocabulary."""
    rows, width = result.shape
    block = block_size(width, COLUMNS)
    with on_device_of(weight):
        _embed_forward_kernel[(-(-rows // ROWS), -(-width // block))](
            tokens,
            weight,
            positions,
            result,
            keys,
            tokens.stride(0),
            positions.stride(0),
            rows,
            tokens.shape[1],
            weight.shape[0],
            width,
            scale,
            WIDE=wide(weight.dtype),
            ROWS=ROWS,
            BLOCK=block,
            num_warps=num_warps(block),
        )


def launch_positions_backward(grad: Tensor, grad_positions: Tensor) -> None:
    """grad: (B * T, width), rows strided; grad_positions (T, width) is written."""
    length, width = grad_positions.shape
    block = block_size(width, COLUMNS)
    with on_device_of(grad):
        _positions_backward_kernel[(length, -(-width // block))](
            grad,
            grad_positions,
            grad.stride(0),
            length,
            grad.shape[0] // max(1, length),
            width,
            WIDE=wide(grad.dtype),
            ROWS=ROWS,
            BLOCK=block,
            num_warps=num_warps(block),
        )


def launch_runs(
    grad: Tensor, keys: Tensor, order: Tensor, first_of_id: Tensor, chunk_sums: Tensor
) -> None:
    """grad: (N, width), rows strided; keys: (N,), sorted; order: (N,) int64, the rows of grad that
    they come from. Written: first_of_id (V + 1,) int32 and of chunk_sums (N // CHUNK, width) the
    rows of chunks with equal keys."""
    rows, width = grad.shape
    block = block_size(width, COLUMNS)
    programs = max(chunk_sums.shape[0], -(-first_of_id.shape[0] // IDS))
    with on_device_of(grad):
        _runs_kernel[(programs, -(-width // block))](
            grad,
            keys,
            order,
            first_of_id,
            chunk_sums,
            grad.stride(0),
            rows,
            rows.bit_length(),
            first_of_id.shape[0] - 1,
            width,
            CHUNK=CHUNK,
            IDS=IDS,
            ROWS=ROWS,
            BLOCK=block,
            num_warps=num_warps(block),
        )


def launch_weight_backward(
    grad: Tensor,
    order: Tensor,
    first_of_id: Tensor,
    chunk_sums: Tensor,
    scale: float,
    grad_weight: Tensor,
) -> None:
    """The arguments of `launch_runs`, with its results; grad_weight (V, width) is written."""
    vocab_size, width = grad_weight.shape
    block = block_size(width, COLUMNS)
    with on_device_of(grad):
        _weight_backward_kernel[(vocab_size, -(-width // block))](
            grad,
            order,
            first_of_id,
            chunk_sums,
            grad_weight,
            grad.stride(0),
            width,
            scale,
            CHUNK=CHUNK,
            ROWS=ROWS,
            BLOCK=block,
            num_warps=num_warps(block),
        )


def _key_dtype(vocab_size: int) -> torch.dtype:
    """The narrowest that holds 0 … vocab_size: a radix sort takes a pass for every byte."""
    return torch.int16 if vocab_size <= torch.iinfo(torch.int16).max else torch.int32


def _empty_results(
    tokens: Tensor, weight: Tensor, positions: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    shape = (*tokens.shape, weight.shape[1])
    result = torch.empty(shape, dtype=weight.dtype, device=weight.device)
    key_dtype = _key_dtype(weight.shape[0])
    return result, torch.empty(tokens.numel(), dtype=key_dtype, device=weight.device)


@torch.library.custom_op("gpt::embed", mutates_args=())
def _embed(
    tokens: Tensor, weight: Tensor, positions: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(result, keys)"""
    assert weight.is_contiguous()
    assert positions.shape == (tokens.shape[1], weight.shape[1])
    assert positions.dtype == weight.dtype
    result, keys = _empty_results(tokens, weight, positions, scale)
    rows = result.view(-1, weight.shape[1])
    launch_forward(as_rows(tokens), weight, as_rows(positions), scale, rows, keys)
    return result, keys


_embed.register_fake(_empty_results)


@torch.library.custom_op("gpt::embed_backward_positions", mutates_args=())
def _embed_backward_positions(grad: Tensor) -> Tensor:
    """grad: (B, T, width). Returns (T, width)."""
    grad_positions = torch.empty(grad.shape[1:], dtype=grad.dtype, device=grad.device)
    launch_positions_backward(as_rows(grad), grad_positions)
    return grad_positions


@_embed_backward_positions.register_fake
def _(grad: Tensor) -> Tensor:
    return torch.empty(grad.shape[1:], dtype=grad.dtype, device=grad.device)


@torch.library.custom_op("gpt::embed_backward_weight", mutates_args=())
def _embed_backward_weight(grad: Tensor, keys: Tensor, vocab_size: int, scale: float) -> Tensor:
    """grad: (B, T, width), keys: (B * T,). Returns (vocab_size, width)."""
    keys, order = torch.sort(keys, stable=True)
    grad = as_rows(grad)
    rows, width = grad.shape
    first_of_id = torch.empty(vocab_size + 1, dtype=torch.int32, device=grad.device)
    sums_shape = (rows // CHUNK, width)
    chunk_sums = torch.empty(sums_shape, dtype=statistics_dtype(grad), device=grad.device)
    grad_weight = torch.empty((vocab_size, width), dtype=grad.dtype, device=grad.device)
    launch_runs(grad, keys, order, first_of_id, chunk_sums)
    launch_weight_backward(grad, order, first_of_id, chunk_sums, scale, grad_weight)
    return grad_weight


@_embed_backward_weight.register_fake
def _(grad: Tensor, keys: Tensor, vocab_size: int, scale: float) -> Tensor:
    return torch.empty((vocab_size, grad.shape[-1]), dtype=grad.dtype, device=grad.device)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, weight, _, scale = inputs
    _, keys = output
    ctx.mark_non_differentiable(keys)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(keys)
    ctx.vocab_size = weight.shape[0]
    ctx.scale = scale


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (keys,) = ctx.saved_tensors
    grad_weight = grad_positions = None
    _, needs_weight, needs_positions, _ = ctx.needs_input_grad
    if grad is not None and needs_weight:
        grad_weight = _embed_backward_weight(grad, keys, ctx.vocab_size, ctx.scale)
    if grad is not None and needs_positions:
        grad_positions = _embed_backward_positions(grad)
    return None, grad_weight, grad_positions, None


_embed.register_autograd(_backward, setup_context=_setup_context)


def embed(
    tokens: Tensor, weight: Tensor, positions: Tensor, scale: float, kernels: str = "torch"
) -> Tensor:
    """weight[tokens] * scale + positions. tokens: (B, T) int64 in [0, V), weight: (V, C),
    positions: (T, C), of weight's dtype. Returns (B, T, C). Differentiable once.

    kernels: "torch", which rounds each row, product and sum to the weight's dtype, or "triton",
    which rounds the result alone, and makes the rows of tokens outside the vocabulary NaN.
    """
    if kernels == "triton":
        return _embed(tokens, weight, positions, scale)[0]
    return F.embedding(tokens, weight) * scale + positions

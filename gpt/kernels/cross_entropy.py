"""Cross-entropy of a chunk of logits, whose gradient takes the logits' place, and the rank of each
target.

The softmax is taken about the row's largest logit, found together with the sum of exponentials in
one pass over the row (Milakov, Gimelshein, arXiv 1805.02867). All arithmetic is in fp32 (fp64 for
fp64 logits), whatever the logits are.
"""

import math

import torch
from torch import Tensor

from gpt.kernels.triton_shared import (
    block_size,
    jit,
    num_warps,
    on_device_of,
    statistics_dtype,
    tl,
)

IGNORE_INDEX = -100
# the most logits that a program looks at together
BLOCK = 4096
# Logits that a CPU goes through at a time, in fp32: two cores' caches hold them from pass to pass.
CPU_BLOCK = 1 << 19


@jit()
def _cross_entropy_kernel(
    logits,
    targets,
    nats,
    rank,
    stride,
    vocab_size,
    scale,
    IGNORED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row. rank: None for none; GRADIENT: write (softmax - one-hot) * scale over the
    row.

    A target outside the vocabulary is not read: its nats are NaN, so that it cannot pass unseen.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    known = (target >= 0) & (target < vocab_size)
    target_logit = tl.load(logits + target, mask=known, other=float("nan"))
    target_logit = target_logit.to(nats.dtype.element_ty)
    # The lowest finite number where -inf would do, so that no difference of two of them is NaN.
    peak = tl.full((), -3.4e38, nats.dtype.element_ty)
    total = tl.full((), 0.0, nats.dtype.element_ty)
    ahead = tl.full((), 0, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        value = tl.load(logits + ids, mask=ids < vocab_size, other=float("-inf"))
        value = value.to(nats.dtype.element_ty)
        higher = tl.maximum(peak, tl.max(value, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(value - higher), 0)
        peak = higher
        if rank is not None:
            before = (value > target_logit) | ((value == target_logit) & (ids < target))
            ahead += tl.sum(before.to(tl.int32), 0)
    ignored = target == IGNORED
    tl.store(nats + row, tl.where(ignored, 0.0, peak - target_logit + tl.log(total)))
    if rank is not None:
        tl.store(rank + row, tl.where(ignored, 0, ahead).to(tl.int64))
    if GRADIENT:
        # The target's logit has been read by every thread before any writes over it. A program of
        # several warps waits for that in the sums above; one warp may not.
        tl.debug_barrier()
        for start in range(0, vocab_size, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            value = tl.load(logits + ids, mask=ids < vocab_size, other=float("-inf"))
            value = value.to(nats.dtype.element_ty)
            difference = tl.exp(value - peak) / total - tl.where(ids == target, 1.0, 0.0)
            result = tl.where(ignored, 0.0, difference * scale)
            tl.store(logits + ids, result.to(logits.dtype.element_ty), mask=ids < vocab_size)


def launch(
    logits: Tensor,
    targets: Tensor,
    nats: Tensor,
    rank: Tensor | None,
    scale: float,
    gradient: bool,
) -> None:
    """logits: (n, V), rows strided, overwritten if `gradient`; nats (n,) and rank (n,) int64 or
    None are written."""
    rows, vocab_size = logits.shape
    block = block_size(vocab_size, BLOCK)
    with on_device_of(logits):
        _cross_entropy_kernel[(rows,)](
            logits,
            targets,
            nats,
            rank,
            logits.stride(0),
            vocab_size,
            scale,
            IGNORED=IGNORE_INDEX,
            GRADIENT=gradient,
            BLOCK=block,
            num_warps=min(8, num_warps(block)),
        )


def _check(logits: Tensor, targets: Tensor) -> None:
    assert logits.stride(1) == 1
    assert targets.is_contiguous()
    assert targets.shape == logits.shape[:1]


def _empty_nats(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape[0], dtype=statistics_dtype(logits), device=logits.device)


@torch.library.custom_op("gpt::softmax_gradient_", mutates_args=("logits",))
def _softmax_gradient_(
    logits: Tensor, targets: Tensor, scale: float, want_gradient: bool
) -> Tensor:
    _check(logits, targets)
    nats = _empty_nats(logits)
    launch(logits, targets, nats, None, scale, want_gradient)
    return nats


@_softmax_gradient_.register_fake
def _(logits: Tensor, targets: Tensor, scale: float, want_gradient: bool) -> Tensor:
    return _empty_nats(logits)


@torch.library.custom_op("gpt::score_logits", mutates_args=())
def _score_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    _check(logits, targets)
    nats = _empty_nats(logits)
    rank = torch.empty_like(targets)
    launch(logits, targets, nats, rank, 1.0, False)
    return nats, rank


@_score_logits.register_fake
def _(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_nats(logits), torch.empty_like(targets)


@torch.no_grad()
def softmax_gradient_(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    want_gradient: bool = True,
    kernels: str = "torch",
) -> Tensor:
    """nats = -log softmax(logits)[target], (n,) in fp32; with `want_gradient` the logits become
    their gradient * scale.

    logits: (n, V) fp16, bf16 or fp32, rows may be strided; targets: (n,) int64 in [0, V), or -100
    for a row that has 0 nats and gradient 0. The gradient of the sum of nats is softmax - one-hot;
    it is multiplied in fp32 by `scale`, a plain number, and rounded once to the logits' dtype.
    kernels: "torch" or "triton".
    """
    if kernels == "triton":
        return _softmax_gradient_(logits, targets, scale, want_gradient)
    if logits.device.type != "cpu" or logits.dtype == statistics_dtype(logits):
        return _softmax_gradient_by_torch_(logits, targets, scale, want_gradient)
    nats = _empty_nats(logits)
    rows = max(1, CPU_BLOCK // logits.shape[1])
    for start in range(0, logits.shape[0], rows):
        part = slice(start, start + rows)
        nats[part] = _softmax_gradient_by_torch_(logits[part], targets[part], scale, want_gradient)
    return nats


def _softmax_gradient_by_torch_(
    logits: Tensor, targets: Tensor, scale: float, want_gradient: bool
) -> Tensor:
    # The logits themselves where they may be overwritten and are wide enough, else a copy.
    work = logits.to(statistics_dtype(logits), copy=not want_gradient)
    ignored = (targets == IGNORE_INDEX)[:, None]
    target_ids = targets[:, None].masked_fill(ignored, 0)
    work -= work.amax(1, keepdim=True)
    target_logits = work.gather(1, target_ids)
    if logits.dtype == work.dtype:
        work.exp_()
    else:
        # Powers of two cost a CPU less than half; what the product rounds is lost in 16 bits.
        work.mul_(math.log2(math.e)).exp2_()
    total = work.sum(1, keepdim=True)
    nats = (total.log() - target_logits).masked_fill_(ignored, 0.0)
    if want_gradient:
        work *= (scale / total).masked_fill_(ignored, 0.0)
        one_hot = torch.full_like(total, -scale).masked_fill_(ignored, 0.0)
        work.scatter_add_(1, target_ids, one_hot)
        if work is not logits:
            logits.copy_(work)
    return nats[:, 0]


@torch.no_grad()
def score_logits(logits: Tensor, targets: Tensor, kernels: str = "torch") -> tuple[Tensor, Tensor]:
    """(nats, rank) of each target, the logits left as they are; nats as in `softmax_gradient_`.

    rank: (n,) int64, how many ids have a larger logit, of equal ones those with a lower id; 0 for
    ignored rows.
    """
    if kernels == "triton":
        return _score_logits(logits, targets)
    wide = logits.to(statistics_dtype(logits))
    ignored = (targets == IGNORE_INDEX)[:, None]
    target_ids = targets[:, None].masked_fill(ignored, 0)
    target_logits = wide.gather(1, target_ids)
    nats = -torch.log_softmax(wide, 1).gather(1, target_ids)
    ids = torch.arange(logits.shape[1], device=logits.device, dtype=torch.int32)
    tied = (wide == target_logits).logical_and_(ids < target_ids.int())
    ahead = (wide > target_logits).logical_or_(tied)
    # as bool it would be summed after a copy of 8 bytes each
    rank = ahead.view(torch.uint8).sum(1, dtype=torch.int32).long()
    return nats.masked_fill_(ignored, 0.0)[:, 0], rank.masked_fill_(ignored[:, 0], 0)

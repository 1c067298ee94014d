"""Causal self-attention by torch's scaled_dot_product_attention, whose fused backends read q, k and
v where they lie."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

# torch's fused kernel for CPUs computes what the causal mask hides. Given the queries in blocks,
# and each block only the keys that it may see, it is spared nearly half of that.
CPU_QUERIES = 128

# What scaled_dot_product_attention runs on a CPU, and its gradients.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_heads(qkv: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (B, H, T, D), of a GEMM's output (B, T, 3 * H * D): views of it, nothing is
    copied.

    The backward pass joins their gradients by one `cat`, whichever way an attention backend laid
    them out. It has four dimensions, the most that torch's fast kernel for CUDA takes.
    """
    batch, length, width = qkv.shape
    heads = qkv.view(batch, length, 3 * n_heads, width // (3 * n_heads))
    q, k, v = heads.split(n_heads, 2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _blocks(q: Tensor) -> list[tuple[int, int, Tensor]]:
    """(start, end, mask (end - start, end)) of each block of queries."""
    length = q.shape[2]
    starts = range(0, length, CPU_QUERIES)
    # the last block's; those before it see the same with fewer keys on the left
    mask = q.new_full((CPU_QUERIES, starts[-1] + CPU_QUERIES), float("-inf"))
    mask.triu_(starts[-1] + 1)
    blocks = []
    for start in starts:
        end = min(start + CPU_QUERIES, length)
        hidden_keys = starts[-1] - start
        blocks.append((start, end, mask[: end - start, hidden_keys : hidden_keys + end]))
    return blocks


class _InBlocks(torch.autograd.Function):
    """As autograd would do it, but for the gradients of keys that several blocks see: each is
    added where it belongs, instead of to zeros of the whole length first."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, T, H, D)"""
        results = []
        sums = []
        for start, end, mask in _blocks(q):
            values, log_sums = _flash(
                q[:, :, start:end], k[:, :, :end], v[:, :, :end], attn_mask=mask
            )
            results.append(values.transpose(1, 2))
            sums.append(log_sums)
        result = torch.cat(results, 1)
        ctx.save_for_backward(q, k, v, result, *sums)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, result, *sums = ctx.saved_tensors
        grad = grad.transpose(1, 2)
        result = result.transpose(1, 2)
        grad_q = torch.empty_like(q)
        of_keys: list[Tensor] = []  # and of values
        # from the last block on, whose queries see all keys
        for (start, end, mask), log_sums in reversed(list(zip(_blocks(q), sums))):
            queries = slice(start, end)
            grad_q[:, :, queries], *of_block = _flash_backward(
                grad[:, :, queries],
                q[:, :, queries],
                k[:, :, :end],
                v[:, :, :end],
                result[:, :, queries],
                log_sums,
                0.0,
                False,
                attn_mask=mask,
            )
            for total, part in zip(of_keys, of_block):
                total[:, :, :end] += part
            of_keys = of_keys or of_block
        return grad_q, *of_keys


def _goes_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether these gain by blocks, and are such as the fused kernel reads right: it looks neither
    at the last dimension's stride nor at how wide the values are."""
    return (
        q.device.type == "cpu"
        and q.shape[2] > CPU_QUERIES
        and q.shape == k.shape == v.shape
        and q.stride(3) == k.stride(3) == v.stride(3) == 1
        and not torch.compiler.is_compiling()
    )


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D), causal) v. q, k, v: (B, H, T, D), any strides; fast with a
    contiguous last dimension.

    Returns (B, T, H * D).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # torch's kernel for CPUs takes half as long again in bf16, and rounds more
        return causal_attention(q.float(), k.float(), v.float()).bfloat16()
    if _goes_in_blocks(q, k, v):
        return _InBlocks.apply(q, k, v).flatten(2)
    values = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return values.transpose(1, 2).flatten(2)


def backend(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> str:
    """Name of the backend that torch takes for q, k and v of a shape (B, H, T, D) as the model lays
    them out: flash, cudnn, efficient or math."""
    batch, heads, length, width = shape
    qkv = torch.empty(batch, length, 3 * heads * width, dtype=dtype, device=device)
    choice = SDPBackend(torch._fused_sdp_choice(*split_heads(qkv, heads), is_causal=True))
    return choice.name.removesuffix("_ATTENTION").lower()

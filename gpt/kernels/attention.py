"""Causal self-attention by torch's scaled_dot_product_attention, whose fused backends read q, k and
v where they lie."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

# torch's fused kernel for CPUs computes what the causal mask hides. Given the queries in blocks,
# and each block only the keys that it may see, it is spared nearly half of that.
CPU_QUERIES = 128


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


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D), causal) v. q, k, v: (B, H, T, D), any strides with a contiguous last
    dimension.

    Returns (B, T, H * D).
    """
    batch, _, length, _ = q.shape
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # torch's kernel for CPUs takes half as long again in bf16, and rounds more
        return causal_attention(q.float(), k.float(), v.float()).bfloat16()
    if q.device.type != "cpu" or length <= CPU_QUERIES or torch.compiler.is_compiling():
        values = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return values.transpose(1, 2).reshape(batch, length, -1)
    mask = torch.full((length, length), float("-inf"), dtype=q.dtype).triu_(1)
    blocks = []
    for start in range(0, length, CPU_QUERIES):
        end = min(start + CPU_QUERIES, length)
        values = F.scaled_dot_product_attention(
            q[:, :, start:end], k[:, :, :end], v[:, :, :end], attn_mask=mask[start:end, :end]
        )
        blocks.append(values.transpose(1, 2))
    return torch.cat(blocks, 1).reshape(batch, length, -1)


def backend(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> str:
    """Name of the backend that torch takes for q, k and v of a shape (B, H, T, D) as the model lays
    them out: flash, cudnn, efficient or math."""
    batch, heads, length, width = shape
    qkv = torch.empty(batch, length, 3 * heads * width, dtype=dtype, device=device)
    choice = SDPBackend(torch._fused_sdp_choice(*split_heads(qkv, heads), is_causal=True))
    return choice.name.removesuffix("_ATTENTION").lower()

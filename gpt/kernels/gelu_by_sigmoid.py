"""tanh-GELU on CPUs by the logistic function s, for which torch takes a quarter of the time of its
tanh:

    gelu(x) = x s(y), gelu'(x) = s(y) + gelu(x) (1 - s(y)) y', y = x (a + b x^2), y' = a + 3 b x^2

with a = 2 sqrt(2 / pi), b = 0.044715 a (Hendrycks, Gimpel, arXiv 1606.08415, and tanh(y / 2) =
2 s(y) - 1). The derivative is computed beside the value, while both are in the caches, and takes
the place of x.
"""

import math
from typing import Any

import torch
from torch import Tensor

from gpt.kernels.triton_shared import statistics_dtype

A = 2 * math.sqrt(2 / math.pi)
B = 0.044715 * A
# numbers at a time, so that all that is made of them stays in a core's second cache
PER_THREAD = 1 << 17


def takes(x: Tensor) -> bool:
    """Whether this is the faster way for x."""
    return (
        x.device.type == "cpu"
        and x.dtype != torch.float16
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


def _gelu(x: Tensor, with_slope: bool) -> Tensor:
    """gelu(x). x: contiguous; its numbers are overwritten, with gelu'(x) if with_slope."""
    wide = statistics_dtype(x)
    result = torch.empty_like(x) if with_slope else x
    size = PER_THREAD * torch.get_num_threads()
    a = torch.tensor(A, dtype=wide)
    room = torch.empty((4, min(size, x.numel())), dtype=wide)
    for part, activation in zip(x.view(-1).split(size), result.view(-1).split(size)):
        s, slope, value, product = room[:, : len(part)]
        if x.dtype == wide:
            value, product = part, activation
        else:
            value.copy_(part)
        torch.addcmul(a, value, value, value=B, out=s).mul_(value).sigmoid_()
        if with_slope:
            torch.addcmul(a, value, value, value=3 * B, out=slope)
        torch.mul(value, s, out=product)
        if with_slope:
            torch.addcmul(product, product, s, value=-1, out=value)
            torch.addcmul(s, value, slope, out=value)
        if x.dtype != wide:
            activation.copy_(product)
            if with_slope:
                part.copy_(value)
    return result


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # autograd, which lets nobody write into a view, knows nothing of the detached
        slope = x.detach()
        result = _gelu(slope, with_slope=True)
        ctx.save_for_backward(slope)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


def gelu_(x: Tensor) -> Tensor:
    """tanh-GELU of x, which nobody may need any more: its numbers are overwritten. x: contiguous,
    on a CPU. Computed in fp32 (fp64 for fp64), and rounded once to x's dtype. Differentiable
    once."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _GELU.apply(x)
    return _gelu(x, with_slope=False)

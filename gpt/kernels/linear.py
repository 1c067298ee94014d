"""Linear layers and matrix products.

For fp32 on CPUs torch takes MKL, which leaves the AVX-512 units of AMD's processors unused. oneDNN,
which torch brings as well, uses them on every make: on two cores of an EPYC it takes half the time
(`python tools/bench.py kernels`). For bf16 torch takes oneDNN too, but adds a bias in a pass of its
own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.kernels.processor import has_fast_bf16

# torch.compile's own way to oneDNN: x @ weight.T + bias, any strides. None where this torch was
# built without it.
_onednn: Any = None
if torch.backends.mkldnn.is_available():
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"

# Types of devices on which torch multiplies 16-bit matrices into an fp32 one: CUDA's from torch 2.8
# on.
_WITH_FP32_RESULTS = {"cuda"} if "dtype" in torch.ops.aten.mm.overloads() else set()


def by_onednn(x: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether products of x, if it is of `dtype`, with tensors of its kind go to oneDNN, which
    refuses empty ones."""
    return (
        _WIDE
        and _onednn is not None
        and x.device.type == "cpu"
        and x.dtype == dtype
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


def in_fast_bf16(x: Tensor) -> bool:
    """Whether x is of bf16, on a CPU with instructions for its products."""
    # in this order, for a compiler cannot follow the other into a file
    return by_onednn(x, torch.bfloat16) and has_fast_bf16()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b. a: (M, K), b: (K, N), any strides."""
    if by_onednn(a):
        return _onednn(a, b.t(), None, "none", [], "")
    return a @ b


def has_fp32_results(x: Tensor) -> bool:
    """Whether `matmul_to_fp32` takes matrices of x's kind."""
    return x.device.type in _WITH_FP32_RESULTS and x.dtype in (torch.float16, torch.bfloat16)


def matmul_to_fp32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of 16-bit matrices (M, K) and (K, N), any strides, summed and given in fp32, which no
    such sum overflows."""
    return torch.mm(a, b, torch.float32)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias, "none", [], "")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = x.flatten(0, -2)
        upstream = grad.flatten(0, -2)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = matmul(upstream, weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            # oneDNN is faster with the longer side as columns, in fp32
            if by_onednn(x) and weight.shape[0] >= weight.shape[1]:
                grad_weight = matmul(rows.t(), upstream).t()
            else:
                grad_weight = matmul(upstream.t(), rows)
        if ctx.needs_input_grad[2]:
            grad_bias = upstream.sum(0)
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias. x: (…, K), weight: (N, K), bias: (N,). Differentiable once."""
    if by_onednn(x) or in_fast_bf16(x):
        return _Linear.apply(x, weight, bias)
    if x.dim() <= 2:
        return F.linear(x, weight, bias)
    # As a matrix: given more dimensions, the F.linear that DeepSpeed puts in place under ZeRO 3
    # adds the bias in a pass of its own, and rounds once more.
    return F.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])

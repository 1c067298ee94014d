"""The linear layer of queries, keys and values, whose gradients come back as three tensors."""

from torch import Tensor

from gpt.kernels.attention import split_heads
from gpt.kernels.linear import linear


def linear_heads(
    x: Tensor, weight: Tensor, bias: Tensor, n_heads: int, kernels: str = "torch"
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (B, H, T, D), as views of x @ weight.T + bias. x: (B, T, C), weight:
    (3 * H * D, C), bias: (3 * H * D,). Differentiable once.

    kernels: "torch" or "triton".
    """
    return split_heads(linear(x, weight, bias), n_heads)

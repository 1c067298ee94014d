"""The embedding: rows of the tokens, scaled, and the rows of their positions added."""

import torch.nn.functional as F
from torch import Tensor


def embed(
    tokens: Tensor, weight: Tensor, positions: Tensor, scale: float, kernels: str = "torch"
) -> Tensor:
    """weight[tokens] * scale + positions. tokens: (B, T) int64 in [0, V), weight: (V, C),
    positions: (T, C), of weight's dtype. Returns (B, T, C). Differentiable once.

    kernels: "torch" or "triton".
    """
    return F.embedding(tokens, weight) * scale + positions

"""The GPT baseline with what language models have adopted since, one option each.

Without options it is gpt.model.GPT, to the last bit: its parameters in their order, their first
values, its losses and gradients. See Options. What an option adds is plain torch, which
"compile" fuses on a GPU. Shapes: B batch, T tokens, C h_dim, H heads, D head_dim, V vocabulary.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.architecture.own_module import Shape
from gpt.errors import UserError
from gpt.kernels.attention import causal_attention, split_heads
from gpt.kernels.gelu import linear_gelu
from gpt.kernels.layer_norm import add_layer_norm, layer_norm
from gpt.kernels.linear import linear
from gpt.kernels.triton_shared import statistics_dtype
from gpt.model import INITIAL_STD, Linear

EPS = 1e-5
ACTIVATIONS = ("gelu", "relu2", "swiglu")
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, D / 2)


@dataclass(frozen=True)
class Options:
    """Raises UserError for a value that is none."""

    # rotary positions in the place of learned ones: their base, such as 10000 (arXiv 2104.09864)
    rope: float = False
    # RMSNorm in the place of LayerNorm (arXiv 1910.07467)
    rmsnorm: bool = False
    # RMSNorm of each head's q and k, before they are rotated. Normalised first in arXiv 2010.04245;
    # as there is a gain per channel, the scores keep their factor 1 / sqrt(D) (arXiv 2302.05442)
    qk_norm: bool = False
    # "gelu", "relu2": relu squared (arXiv 2109.08668), or "swiglu" (arXiv 2002.05202), see
    # hidden_width
    activation: str = "gelu"
    # the output matrices of attention and MLP begin as zeros: each block as the identity
    zero_init: bool = False
    # heads of k and v, each for n_heads / kv_heads heads of q (arXiv 2305.13245)
    kv_heads: int = False
    # one matrix for embedding and output layer (arXiv 1608.05859), see tied_scale
    tied: bool = False
    # logits become cap * tanh(logits / cap) (arXiv 2408.00118)
    logit_cap: float = False
    # of linear layers and LayerNorms
    bias: bool = True

    def __post_init__(self):
        for name in ("rmsnorm", "qk_norm", "zero_init", "tied", "bias"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        self._require("rope", _off_or(self.rope, above=1), "false, or a base above 1 as 10000 is")
        self._require("logit_cap", _off_or(self.logit_cap, above=0), "false, or a number above 0")
        self._require("activation", self.activation in ACTIVATIONS, " or ".join(ACTIVATIONS))
        whole = isinstance(self.kv_heads, int) and _off_or(self.kv_heads, above=0)
        self._require("kv_heads", whole, "false, or a number of heads")

    def _require(self, name: str, fits: bool, choices: str) -> None:
        if not fits:
            value = getattr(self, name)
            raise UserError(f"model_options.{name} is {value!r}", mend=f"give {choices}")

    def require_shape(self, shape: Shape) -> None:
        """Raise UserError where the options do not fit a shape."""
        if self.rope and shape.head_dim % 2:
            raise UserError(
                f"model_options.rope rotates pairs, and head_dim is {shape.head_dim}",
                mend="give an even head_dim",
            )
        if self.kv_heads and shape.n_heads % self.kv_heads:
            raise UserError(
                f"model_options.kv_heads is {self.kv_heads}, which does not divide n_heads"
                f" {shape.n_heads}",
                mend="give one that does",
            )


def _off_or(value: object, above: float) -> bool:
    """Whether a value is False, or a finite number above one."""
    if isinstance(value, bool):
        return not value
    return isinstance(value, (int, float)) and above < value < math.inf


def hidden_width(shape: Shape, options: Options) -> int:
    """Of the MLPs: mlp_dim; for swiglu, which has three matrices in the place of two, 2 / 3 of it
    to the nearest multiple of 8, and so the same FLOPs (3072 becomes 2048, 512 becomes 344)."""
    if options.activation != "swiglu":
        return shape.mlp_dim
    return max(8, 8 * round(shape.mlp_dim / 12))


def tied_scale(h_dim: int) -> float:
    """Of the first values of a tied embedding, to the baseline's.

    The last norm makes of a token's embedding the logit h_dim * (their deviation) for the same
    token: with 0.02 at most 5 up to a width of 256. Wider models would begin with that token as a
    firm guess, at losses far above ln V, so theirs stays 5.
    """
    return min(1.0, 256 / h_dim)


def rotation(base: float, head_dim: int, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Cosines and sines of position * base^(-2 i / D), for the pairs i of channels."""
    pairs = torch.arange(head_dim // 2, device=positions.device, dtype=dtype)
    angles = positions.to(dtype)[:, None] * base ** (-2 * pairs / head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x (…, T, D) with each of its pairs, channels i and i + D / 2, turned by its angle."""
    cosine, sine = by
    first, second = x.to(cosine.dtype).chunk(2, -1)
    turned = first * cosine - second * sine, first * sine + second * cosine
    return torch.cat(turned, -1).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """Of the last dimension; its statistics are in fp32 at least."""

    def __init__(self, width: int):
        super().__init__(width, eps=EPS)


class AddNorm(nn.Module):
    """Adds a branch's output to the residual stream, and normalises the sum."""

    def __init__(self, shape: Shape, options: Options):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.h_dim))
        has_bias = options.bias and not options.rmsnorm
        self.bias = nn.Parameter(torch.zeros(shape.h_dim)) if has_bias else None
        self.rmsnorm = options.rmsnorm
        self.kernels = shape.kernels

    def forward(self, branch: Tensor | None, stream: Tensor) -> tuple[Tensor, Tensor]:
        """branch, stream: (B, T, C), branch None for none. Returns (the new stream, normalised;
        the new stream)."""
        if self.rmsnorm:
            total = stream if branch is None else stream + branch
            return F.rms_norm(total, self.weight.shape, self.weight, EPS), total
        bias = torch.zeros_like(self.weight) if self.bias is None else self.bias
        if branch is None:
            return layer_norm(stream, self.weight, bias, EPS, self.kernels), stream
        return add_layer_norm(branch, stream, self.weight, bias, EPS, self.kernels)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, shape: Shape, options: Options):
        super().__init__()
        self.n_heads = shape.n_heads
        self.kv_heads = options.kv_heads or shape.n_heads
        width = shape.n_heads * shape.head_dim
        self.shares_heads = bool(options.kv_heads)
        if self.shares_heads:
            self.q = Linear(shape.h_dim, width, options.bias)
            self.kv = Linear(shape.h_dim, 2 * self.kv_heads * shape.head_dim, options.bias)
        else:
            self.qkv = Linear(shape.h_dim, 3 * width, options.bias)
        self.q_norm = RMSNorm(shape.head_dim) if options.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim) if options.qk_norm else None
        self.c_proj = Linear(width, shape.h_dim, options.bias)

    def forward(self, x: Tensor, by: Rotation | None) -> Tensor:
        """x and the result: (B, T, C)."""
        q, k, v = self.heads(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        if self.shares_heads:
            # head h of q reads head h // (H / kv_heads)
            k = k.repeat_interleave(self.n_heads // self.kv_heads, 1)
            v = v.repeat_interleave(self.n_heads // self.kv_heads, 1)
        return self.c_proj(causal_attention(q, k, v))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, T, D), k and v (B, kv_heads, T, D)."""
        if not self.shares_heads:
            return split_heads(self.qkv(x), self.n_heads)
        q = self.q(x).unflatten(-1, (self.n_heads, -1))
        k, v = self.kv(x).unflatten(-1, (2 * self.kv_heads, -1)).chunk(2, 2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class Hidden(nn.Linear):
    """The hidden layer of an MLP, with its activation."""

    def __init__(self, shape: Shape, options: Options):
        width = hidden_width(shape, options)
        rows = 2 * width if options.activation == "swiglu" else width
        super().__init__(shape.h_dim, rows, options.bias)
        self.activation = options.activation
        self.kernels = shape.kernels

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, hidden width)."""
        if self.activation == "gelu" and self.bias is not None:
            return linear_gelu(x, self.weight, self.bias, self.kernels)
        x = linear(x, self.weight, self.bias)
        if self.activation == "gelu":
            return F.gelu(x, approximate="tanh")
        if self.activation == "relu2":
            return F.relu(x).square()
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


class MLP(nn.Module):
    def __init__(self, shape: Shape, options: Options):
        super().__init__()
        self.c_fc = Hidden(shape, options)
        self.c_proj = Linear(hidden_width(shape, options), shape.h_dim, options.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        return self.c_proj(self.c_fc(x))


class Block(nn.Module):
    def __init__(self, shape: Shape, options: Options):
        super().__init__()
        self.ln1 = AddNorm(shape, options)
        self.attn = Attention(shape, options)
        self.ln2 = AddNorm(shape, options)
        self.mlp = MLP(shape, options)

    def forward(
        self, branch: Tensor | None, stream: Tensor, by: Rotation | None
    ) -> tuple[Tensor, Tensor]:
        """(output of the last branch, stream without it), each (B, T, C), for those of the block
        before; None at first."""
        x, stream = self.ln1(branch, stream)
        x, stream = self.ln2(self.attn(x, by), stream)
        return self.mlp(x), stream


class Modern(nn.Module):
    output_layer = "head"

    def __init__(self, shape: Shape, options: Options):
        super().__init__()
        options.require_shape(shape)
        self.shape = shape
        self.options = options
        self.logit_cap = options.logit_cap or None
        self.scale = tied_scale(shape.h_dim) if options.tied else 1.0
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.h_dim)
        if not options.rope:
            self.position_embedding = nn.Embedding(shape.seq_len, shape.h_dim)
        self.blocks = nn.ModuleList(Block(shape, options) for _ in range(shape.n_layers))
        self.ln_f = AddNorm(shape, options)
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        if options.tied:
            self.head.weight = self.token_embedding.weight

    @property
    def fused_matrices(self) -> dict[str, int]:
        """{parameter: number of matrices that lie one under the other in it}"""
        parts = {"attn.qkv.weight": 3, "attn.kv.weight": 2}
        if self.options.activation == "swiglu":
            parts["mlp.c_fc.weight"] = 2
        names = dict(self.named_parameters())
        return {name: n for name in names for part, n in parts.items() if name.endswith(part)}

    def initial_weight(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """As gpt.model.GPT's."""
        if name.endswith("bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        std = INITIAL_STD
        if name.endswith("mlp.c_proj.weight"):
            std = INITIAL_STD / math.sqrt(2 * self.shape.n_layers)
        if name == "token_embedding.weight":
            std *= self.scale
        values = torch.empty(shape).normal_(0.0, std, generator=generator)
        if self.options.zero_init and name.endswith("c_proj.weight"):
            # drawn all the same: those that follow stay as they are without the option
            values.zero_()
        return values

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 to hidden states (B, T, C)."""
        # as wide as the GPT's begins, whatever the scale
        stream = self.token_embedding(tokens) * (math.sqrt(self.shape.h_dim) / self.scale)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        by = None
        if self.options.rope:
            dtype = statistics_dtype(stream)
            by = rotation(self.options.rope, self.shape.head_dim, positions, dtype)
        else:
            stream = stream + self.position_embedding(positions)
        branch = None
        for block in self.blocks:
            branch, stream = block(branch, stream, by)
        hidden, _ = self.ln_f(branch, stream)
        return hidden


def build(shape: Shape, **options: Any) -> nn.Module:
    """options: see Options. Raises UserError for those that do not fit."""
    names = [field.name for field in fields(Options)]
    for name in options:
        if name not in names:
            raise UserError(
                f"model_options.{name} is no option of modern", mend=f"give {', '.join(names)}"
            )
    return Modern(shape, Options(**options))

"""A recurrent language model: quasi-LSTM layers in the place of the GPT's attention.

The Languini Kitchen (arXiv 2309.11197) compares its GPT with a quasi-LSTM: an LSTM (Hochreiter and
Schmidhuber 1997) whose gates see the input alone, not the last output, as those of the quasi-
recurrent networks of Bradbury et al. (arXiv 1611.01576) do. What is left between the steps is
linear in the state, and all T of them are computed in 2 log2(T) by a parallel scan.

    f, i, o = sigmoid, z = tanh    of matrix products of the layer's normalised input
    c[t] = f[t] * c[t-1] + i[t] * z[t]    with c[-1] = 0
    output = W (o[t] * tanh(c[t]))

Here the layers stand in the GPT's residual blocks, each before the GPT's MLP, and there are no
positions. Each window of seq_len tokens begins with an empty state: nothing is carried from one to
the next, in training as in evaluation, and its scores do not compare with those of a recurrent
model that carries its state through whole documents.
Shapes: B batch, T tokens, C h_dim, W n_heads * head_dim.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gpt.architecture.own_module import Shape
from gpt.kernels.triton_shared import statistics_dtype
from gpt.model import INITIAL_STD, MLP, AddNorm, Linear, Projection


def scan(factors: Tensor, terms: Tensor) -> Tensor:
    """c[t] = factors[t] * c[t-1] + terms[t] along the second dimension, c[-1] = 0. Both (B, T, W).

    Two steps in one are a step of the same kind, so c at odd t is the scan of pairs, half as long
    (Blelloch 1990); one more step from there gives it at even t. No product is divided by, so
    factors near 0 are harmless.
    """
    length = terms.shape[1]
    if length == 1:
        return terms
    states = torch.empty_like(terms)
    odd = factors[:, 1::2]
    pairs = odd.shape[1]
    states[:, 1::2] = scan(
        odd * factors[:, : 2 * pairs : 2],
        torch.addcmul(terms[:, 1::2], odd, terms[:, : 2 * pairs : 2]),
    )
    states[:, 0] = terms[:, 0]
    before = states[:, 1 : length - 1 : 2]
    states[:, 2::2] = torch.addcmul(terms[:, 2::2], factors[:, 2::2], before)
    return states


class Recurrence(torch.autograd.Function):
    """`scan`, differentiable once: its gradient is a scan from the last step to the first."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor, terms: Tensor) -> Tensor:
        states = scan(factors, terms)
        ctx.save_for_backward(factors, states)
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        factors, states = ctx.saved_tensors
        # what flows into c[t] comes by factors[t + 1] from c[t + 1]
        reversed_factors = factors.flip(1).roll(1, 1)
        grad_terms = scan(reversed_factors, grad.flip(1)).flip(1)
        grad_factors = torch.zeros_like(factors)
        torch.mul(grad_terms[:, 1:], states[:, :-1], out=grad_factors[:, 1:])
        return grad_factors, grad_terms


class QuasiLSTM(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        width = shape.n_heads * shape.head_dim
        self.gates = Linear(shape.h_dim, 4 * width)  # of f, i, o and z
        self.c_proj = Projection(width, shape.h_dim, shape.kernels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: (B, T, C). Returns what Projection does. Gates and state are in fp32 at least: in 16
        bits a gate that keeps its state for long would round to 1."""
        gates = self.gates(x).to(statistics_dtype(x))
        f, i, o, z = gates.chunk(4, -1)  # each (B, T, W)
        state = Recurrence.apply(f.sigmoid(), i.sigmoid() * z.tanh())
        return self.c_proj((o.sigmoid() * state.tanh()).to(x.dtype))


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.ln1 = AddNorm(shape, shape.kernels)
        self.lstm = QuasiLSTM(shape)
        self.ln2 = AddNorm(shape, shape.kernels)
        self.mlp = MLP(shape, shape.kernels)

    def forward(
        self, branch: Tensor | None, stream: Tensor, branch_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(output of the last branch, stream without it, bias still to be added to the output), for
        those of the block before; branch None at first. branch, stream: (B, T, C)."""
        x, stream = self.ln1(branch, stream, branch_bias)
        x, bias = self.lstm(x)
        x, stream = self.ln2(x, stream, bias)
        x, bias = self.mlp(x)
        return x, stream, bias


class LSTM(nn.Module):
    output_layer = "head"

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.ln_f = AddNorm(shape, shape.kernels)
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        self.fused_matrices = {
            f"blocks.{layer}.lstm.gates.weight": 4 for layer in range(shape.n_layers)
        }

    def initial_weight(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """As the GPT's; the biases of f and i so that the channels keep their state for 2 up to
        seq_len steps and weigh their input accordingly (Tallec and Ollivier, arXiv 1804.11188,
        there drawn, here spread evenly over the logarithms)."""
        if name.endswith("gates.bias"):
            width = shape[0] // 4
            keep = torch.linspace(0, math.log(self.shape.seq_len - 1), width)
            return torch.cat([keep, -keep, torch.zeros(2 * width)])
        if name.endswith("bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        std = INITIAL_STD
        if name.endswith("mlp.c_proj.weight"):
            std = INITIAL_STD / math.sqrt(2 * self.shape.n_layers)
        return torch.empty(shape).normal_(0.0, std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 to hidden states (B, T, C)."""
        stream = self.token_embedding(tokens) * math.sqrt(self.shape.h_dim)
        branch = None
        bias = None
        for block in self.blocks:
            branch, stream, bias = block(branch, stream, bias)
        hidden, _ = self.ln_f(branch, stream, bias)
        return hidden


def build(shape: Shape) -> nn.Module:
    return LSTM(shape)

"""The GPT of the Languini Kitchen's baseline, as a plain nn.Module: it knows no DeepSpeed and no
files.

Pre-LN blocks, learned positions, token embedding scaled by sqrt(h_dim), tanh-GELU, LayerNorm with
bias and eps 1e-5, biases everywhere but the head, head not tied to the embedding, no dropout.
Shapes: B batch, T tokens, C h_dim, H heads, D head_dim, V vocabulary.

The residual stream runs beside the blocks: each branch's output is added to it by the LayerNorm of
the next branch, so that one kernel can do both, and add the bias of the branch's last layer on the
way. `kernels` is "torch" or "triton", see gpt/kernels.

`python gpt/model.py [preset]` builds a model, feeds it a batch and prints shapes and parameter
counts.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

# the project's folder instead of gpt/, whose module names must shadow nobody's
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from gpt.errors import explain_imports

    explain_imports()

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt.config.shape import ModelConfig
from gpt.kernels.attention import causal_attention
from gpt.kernels.compiler import eagerly
from gpt.kernels.embedding import embed
from gpt.kernels.gelu import linear_gelu
from gpt.kernels.heads import linear_heads
from gpt.kernels.layer_norm import add_layer_norm, layer_norm
from gpt.kernels.linear import linear
from gpt.kernels.linear_cross_entropy import TokenScores, linear_cross_entropy, score_tokens

# Of torch.compile. CUDA graphs, which max-autotune would add by itself, stay out: they reuse the
# memory of a block's results for the next block, while those are kept for the backward pass.
COMPILE_OPTIONS: dict[str, dict] = {
    "default": {},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}
INITIAL_STD = 0.02

# The positions that count, of a batch (B, T): (rows, columns), each (N,) int64, or a mask (B, T).
Scored = tuple[Tensor, Tensor] | Tensor
# (q, k, v), each (B, H, T, D) -> (B, T, H * D)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Projection(nn.Linear):
    """The last layer of a branch. Its bias may be left to the AddNorm behind it, whose kernel adds
    it, and sums its gradient, on the way."""

    def __init__(self, width: int, h_dim: int, kernels: str):
        super().__init__(width, h_dim)
        self.kernels = kernels

    def forward(  # type: ignore[override]
        self, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """x: (…, width). Returns values (…, C), and the bias (C,) that is still to be added to
        them, or None."""
        if self.kernels == "triton":
            # A view, not the parameter: an engine that gathers weights for each module's forward
            # takes them from the parameter behind it.
            return linear(x, self.weight), self.bias.view_as(self.bias)
        return linear(x, self.weight, self.bias), None


class HeadsLinear(nn.Linear):
    """The queries, keys and values of all heads: strided views of one GEMM's output, not copied."""

    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__(config.h_dim, 3 * config.n_heads * config.head_dim)
        self.n_heads = config.n_heads
        self.kernels = kernels

    def forward(  # type: ignore[override]
        self, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T, C). Returns q, k and v, each (B, H, T, D)."""
        return linear_heads(x, self.weight, self.bias, self.n_heads, self.kernels)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__()
        self.qkv = HeadsLinear(config, kernels)
        self.c_proj = Projection(config.n_heads * config.head_dim, config.h_dim, kernels)

    def forward(self, x: Tensor, attend: Attend | None = None) -> tuple[Tensor, Tensor | None]:
        """x: (B, T, C). attend: in place of `causal_attention`, to take in the keys and values of
        earlier tokens. Returns what Projection does."""
        if attend is None:
            attend = causal_attention
        q, k, v = self.qkv(x)
        return self.c_proj(attend(q, k, v))


class AddNorm(nn.LayerNorm):
    """Adds a branch's output to the residual stream, and normalises the sum."""

    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__(config.h_dim, eps=1e-5)
        self.kernels = kernels

    # what torch's LayerNorm takes and returns is one tensor
    def forward(  # type: ignore[override]
        self, branch: Tensor | None, stream: Tensor, branch_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """branch, stream: (B, T, C), branch None for none; branch_bias: (C,), added to it, None for
        none. Returns (LayerNorm of the new stream, new stream)."""
        if branch is None:
            return layer_norm(stream, self.weight, self.bias, self.eps, self.kernels), stream
        return add_layer_norm(
            branch, stream, self.weight, self.bias, self.eps, self.kernels, branch_bias
        )


class LinearGELU(nn.Linear):
    """tanh-GELU of a linear layer."""

    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__(config.h_dim, config.mlp_dim)
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return linear_gelu(x, self.weight, self.bias, self.kernels)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__()
        self.c_fc = LinearGELU(config, kernels)
        self.c_proj = Projection(config.mlp_dim, config.h_dim, kernels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: (…, C). Returns what Projection does."""
        return self.c_proj(self.c_fc(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__()
        self.ln1 = AddNorm(config, kernels)
        self.attn = Attention(config, kernels)
        self.ln2 = AddNorm(config, kernels)
        self.mlp = MLP(config, kernels)

    def forward(
        self,
        branch: Tensor | None,
        stream: Tensor,
        branch_bias: Tensor | None = None,
        scored: Scored | None = None,
        attend: Attend | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(output of the last branch, stream without it, bias still to be added to the output), for
        those of the block before; branch None at first.

        branch, stream: (B, T, C); branch_bias: (C,) or None. scored: the positions for which they
        are needed; then each is (N, C). attend: see Attention.
        """
        x, stream = self.ln1(branch, stream, branch_bias)
        x, bias = self.attn(x, attend=attend)
        if scored is not None:
            x = x[scored]
            stream = stream[scored]
        x, stream = self.ln2(x, stream, bias)
        x, bias = self.mlp(x)
        return x, stream, bias


class TokenEmbedding(nn.Embedding):
    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__(config.vocab_size, config.h_dim)
        self.kernels = kernels

    def forward(  # type: ignore[override]
        self, tokens: Tensor, positions: Tensor
    ) -> Tensor:
        """Scaled embeddings of tokens (B, T), int64, and the rows (T, C) of their positions added:
        (B, T, C)."""
        scale = math.sqrt(self.embedding_dim)
        return embed(tokens, self.weight, positions, scale, self.kernels)


class PositionEmbedding(nn.Embedding):
    def __init__(self, config: ModelConfig):
        super().__init__(config.seq_len, config.h_dim)

    def forward(  # type: ignore[override]
        self, start: int, length: int
    ) -> Tensor:
        """The rows (length, C) of the positions from `start` on: a view."""
        return self.weight[start : start + length]


class Head(nn.Module):
    """The output layer. A module of its own, so that engines which gather weights per module see
    its weight used."""

    def __init__(self, config: ModelConfig, kernels: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.h_dim))
        self.kernels = kernels

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, score: bool = False
    ) -> Tensor | TokenScores:
        """hidden (N, C), targets (N,): the mean loss, or TokenScores if `score`; without targets
        the logits (N, V)."""
        if targets is None:
            return hidden @ self.weight.t()
        if score:
            return score_tokens(hidden, self.weight, targets, self.kernels)
        return linear_cross_entropy(hidden, self.weight, targets, self.kernels)


def eager_without_gradients(is_compiled: bool) -> AbstractContextManager:
    """Inside, what is compiled for training runs eagerly where no gradients are asked for."""
    if is_compiled and not torch.is_grad_enabled():
        return eagerly()
    return nullcontext()


class GPT(nn.Module):
    """A decoder-only transformer with learned positions.

    With activation_checkpointing only each block's input is kept for the backward pass. Weights are
    drawn from `seed`, the same for the same seed; None leaves them unset, for weights that will be
    loaded. compile: "none", "default" or "max-autotune" (torch.compile), of each block, and only
    while gradients are wanted: evaluations stay as exact as they are without it, and their many
    shapes cost no compilations. Initialisation: weights N(0, 0.02), but each MLP's output N(0, 0.02
    / sqrt(2 n_layers)); biases 0.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int | None = 0,
        activation_checkpointing: bool = False,
        kernels: str = "torch",
        compile: str = "none",
    ):
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.token_embedding = TokenEmbedding(config, kernels)
        self.position_embedding = PositionEmbedding(config)
        self._compiled = compile != "none"
        # compiled: plain torch inside, for no compiler fuses across operations of our own
        block_kernels = "torch" if self._compiled else kernels
        self.blocks = nn.ModuleList(Block(config, block_kernels) for _ in range(config.n_layers))
        if self._compiled:
            # forward alone: an engine's hooks on the block are no graph
            for block in self.blocks:
                block.forward = torch.compile(block.forward, **COMPILE_OPTIONS[compile])
        self.ln_f = AddNorm(config, kernels)
        self.head = Head(config, kernels)
        if seed is not None:
            with torch.no_grad():
                for parameter, (_, values) in zip(self.parameters(), self.initial_weights(seed)):
                    parameter.copy_(values)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter in their order, each drawn when it is
        asked for."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            yield name, self._initial_values(name, parameter.shape, generator)

    def _initial_values(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if name.endswith("bias"):
            return torch.zeros(shape)
        if ".ln" in name or name.startswith("ln_f"):
            return torch.ones(shape)
        std = INITIAL_STD
        if name.endswith("mlp.c_proj.weight"):
            std = INITIAL_STD / math.sqrt(2 * self.config.n_layers)
        return torch.empty(shape).normal_(0.0, std, generator=generator)

    @property
    def fused_matrices(self) -> dict[str, int]:
        """{parameter name: number of equal matrices that lie one under the other in it}"""
        return {f"blocks.{index}.attn.qkv.weight": 3 for index in range(len(self.blocks))}

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """The residual stream (B, T, C) as it enters the first block. tokens: (B, T) int64, of the
        positions from `start` on."""
        return self.token_embedding(tokens, self.position_embedding(start, tokens.shape[1]))

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        scored: Scored | None = None,
    ) -> Tensor | TokenScores:
        """What the arguments ask for. Of (B, T) tokens, T <= seq_len:

        model(tokens)                   the logits (B, T, V)
        model(tokens, targets)          the mean loss in nats per token, an fp32 scalar
        model(tokens, targets, scored)  TokenScores of the scored positions in their order; no
                                        others go through the last MLP and the head

        tokens, targets: (B, T) int64. One method for all three, since engines prepare and gather
        weights around `forward` alone.
        """
        stream = self.embed(tokens)
        with eager_without_gradients(self._compiled):
            branch, stream, bias = self._through_blocks(stream, scored)
        hidden, _ = self.ln_f(branch, stream, bias)  # (B, T, C), or (N, C) of scored positions
        if targets is None:
            return self.head(hidden)
        if scored is None:
            return self.head(hidden.flatten(0, 1), targets.flatten())
        return self.head(hidden, targets[scored], score=True)

    def _through_blocks(
        self, stream: Tensor, scored: Scored | None
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(output of the last branch, stream without it, bias still to be added to the output): the
        first two (B, T, C), or (N, C) of scored positions."""
        recomputed = self.activation_checkpointing and torch.is_grad_enabled()
        last = len(self.blocks) - 1
        branch: Tensor | None = None
        bias: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            needed = scored if layer == last else None
            if not recomputed:
                branch, stream, bias = block(branch, stream, bias, needed)
                continue
            # one tensor to keep, not two
            if branch is not None:
                stream = stream + (branch if bias is None else branch + bias)
            branch, stream, bias = checkpoint(
                block, None, stream, None, needed, use_reentrant=False, preserve_rng_state=False
            )
        return branch, stream, bias


def main() -> None:
    from gpt.config.shape import load_presets

    presets = load_presets()
    name = sys.argv[1] if len(sys.argv) > 1 else "nano"
    if name not in presets or len(sys.argv) > 2:
        from gpt.errors import UserError

        raise UserError(
            f"usage: python gpt/model.py [PRESET], where PRESET is one of {', '.join(presets)}"
        )
    config = ModelConfig(**presets[name], vocab_size=16384, seq_len=512)
    print(f"{name}: {config}")
    model = GPT(config)
    _print_parameters(model)
    _print_a_pass(model)


def _print_parameters(model: GPT) -> None:
    config = model.config
    for name, parameter in model.named_parameters():
        if not name.startswith("blocks.") or name.startswith("blocks.0."):
            shape = str(tuple(parameter.shape))
            print(f"  {name:32s} {shape:16s} {parameter.numel():>13,}")
    print(f"  blocks.1 … blocks.{config.n_layers - 1} are like blocks.0")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"parameters: {parameters:,} (by formula: {config.parameters():,})")


def _print_a_pass(model: GPT) -> None:
    vocab_size = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (2, 64), generator=generator)
    with torch.no_grad():
        logits = model(tokens)
        loss = model(tokens[:, :-1], tokens[:, 1:])
    print(f"tokens {tuple(tokens.shape)} -> logits {tuple(logits.shape)} {logits.dtype}")
    uniform = f"ln {vocab_size} = {math.log(vocab_size):.4f}"
    print(f"loss of the untrained model: {loss.item():.4f} nats per token ({uniform})")


if __name__ == "__main__":
    from gpt.errors import command

    command(main)

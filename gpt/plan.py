"""Pure arithmetic about a run: batch, schedule, parameters, FLOPs. Imports neither torch nor deepspeed."""

import math
from dataclasses import dataclass

from gpt.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. `n_heads * head_dim` need not equal `h_dim`."""

    n_layers: int
    h_dim: int  # width of the residual stream
    mlp_dim: int  # width of the hidden layer of each MLP
    n_heads: int
    head_dim: int  # width of q, k and v of one head
    vocab_size: int
    seq_len: int  # longest context, in tokens: the number of learned positions

    def parameters(self) -> int:
        """Number of trainable parameters, biases, LayerNorms and both embeddings included."""
        attention = self.n_heads * self.head_dim
        block = (
            4 * self.h_dim  # two LayerNorms
            + 3 * attention * (self.h_dim + 1)  # q, k, v
            + (attention + 1) * self.h_dim  # attention output
            + (self.h_dim + 1) * self.mlp_dim
            + (self.mlp_dim + 1) * self.h_dim
        )
        embeddings = (self.vocab_size + self.seq_len) * self.h_dim
        return embeddings + self.n_layers * block + 2 * self.h_dim + self.vocab_size * self.h_dim

    def matmul_flops_per_token(self) -> int:
        """FLOPs of one token's forward and backward matrix products; look-ups, norms and activations are not counted.

        2 FLOPs per weight and token in the forward pass and 4 in the backward pass (Kaplan et al., arXiv 2001.08361,
        table 1), over the weights of the GEMMs, the head included. Attention scores and their product with v add
        2 * 2 * seq_len * n_heads * head_dim per layer and pass, halved since a causal query sees half of the keys on
        average.
        """
        attention = self.n_heads * self.head_dim
        weights = self.n_layers * (4 * attention * self.h_dim + 2 * self.h_dim * self.mlp_dim)
        weights += self.vocab_size * self.h_dim
        causal_attention = self.n_layers * 2 * self.seq_len * attention
        return 3 * (2 * weights + causal_attention)


@dataclass(frozen=True)
class BatchPlan:
    """How one optimiser step's sequences are shared out: `global_size = micro_size * accumulation * world_size`."""

    global_size: int  # sequences per optimiser step, over all ranks
    micro_size: int  # sequences per forward pass of one rank
    accumulation: int  # forward passes per optimiser step of one rank
    world_size: int  # number of ranks


def plan_batch(global_size, micro_size, accumulation, world_size) -> BatchPlan:
    """Solve `train_batch_size = micro batch * accumulation * world size` for what is None; accumulation is 1 by default.

    Raises UserError where no whole numbers fit.
    """
    if global_size is None and micro_size is None:
        raise UserError("train_batch_size is missing: it is the number of sequences per optimiser step over all GPUs")
    if global_size is None:
        global_size = micro_size * (accumulation or 1) * world_size
    if accumulation is None:
        accumulation = global_size // (micro_size * world_size) if micro_size else 1
    if micro_size is None:
        micro_size = global_size // (accumulation * world_size)
    if micro_size * accumulation * world_size != global_size or not micro_size * accumulation:
        fitting = [a for a in range(1, global_size // world_size + 1) if global_size % (a * world_size) == 0]
        advice = (
            f"with {world_size} rank(s) gradient_accumulation_steps can be {', '.join(map(str, fitting))}"
            if fitting
            else f"train_batch_size must be a multiple of the {world_size} ranks"
        )
        raise UserError(
            f"train_batch_size {global_size} is not micro batch {micro_size} x gradient_accumulation_steps "
            f"{accumulation} x {world_size} rank(s): {advice}"
        )
    return BatchPlan(global_size, micro_size, accumulation, world_size)


@dataclass(frozen=True)
class CosineSchedule:
    """The baseline's learning rate: linear warm-up times a cosine from `max_lr` to `min_lr` over `decay_steps`.

    Both factors count from step 1, so that the warm-up multiplies the cosine already under way, as in the Languini
    Kitchen's trainer.
    """

    max_lr: float
    min_lr: float
    warmup_steps: int
    decay_steps: int

    def lr(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 1; `min_lr` from `decay_steps` on."""
        progress = min(step, self.decay_steps) / self.decay_steps
        cosine = self.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (self.max_lr - self.min_lr)
        warmup = min(step, self.warmup_steps) / self.warmup_steps if self.warmup_steps else 1.0
        return warmup * cosine

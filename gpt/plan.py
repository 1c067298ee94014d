"""Pure arithmetic about a run: batch, schedule, parameters, FLOPs, evaluation windows, memory, disk. Imports no torch."""

import math
from dataclasses import dataclass

from gpt.errors import UserError

# Elements of one chunk of the output layer's logits, by device type. On a CPU a chunk should stay near the caches. A GPU
# wants all rows in one, for which no gradients of chunks are added up: 32 x 512 tokens at vocabulary 16,384 in half a GiB.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "default": 1 << 28}


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

    def matmul_flops_per_token(self, causal: bool = True) -> int:
        """FLOPs of one token's forward and backward matrix products; look-ups, norms and activations are not counted.

        2 FLOPs per weight and token in the forward pass and 4 in the backward pass (Kaplan et al., arXiv 2001.08361,
        table 1), over the weights of the GEMMs, the head included. Attention scores and their product with v add
        2 * 2 * seq_len * n_heads * head_dim per layer and pass, halved since a causal query sees half of the keys on
        average (as Dao, arXiv 2307.08691, section 4.1, counts them). Not causal: not halved, as PaLM (arXiv 2204.02311,
        appendix B), the Languini Kitchen and torch's FlopCounterMode count. What is computed twice, under activation
        checkpointing or in a fused attention's backward pass, counts once.
        """
        attention = self.n_heads * self.head_dim
        weights = self.n_layers * (4 * attention * self.h_dim + 2 * self.h_dim * self.mlp_dim)
        weights += self.vocab_size * self.h_dim
        scores_and_values = self.n_layers * (2 if causal else 4) * self.seq_len * attention
        return 3 * (2 * weights + scores_and_values)


@dataclass(frozen=True)
class BatchPlan:
    """How one optimiser step's sequences are shared out: `global_size = micro_size * accumulation * world_size`."""

    global_size: int  # sequences per optimiser step, over all ranks
    micro_size: int  # sequences per forward pass of one rank
    accumulation: int  # forward passes per optimiser step of one rank
    world_size: int  # number of ranks
    micro_limit: int | None = None  # what was asked for, where micro_size is the largest that fits

    @property
    def share(self) -> int:
        """Sequences per optimiser step of one rank."""
        return self.micro_size * self.accumulation


def plan_batch(global_size, micro_size, accumulation, world_size) -> BatchPlan:
    """Solve `train_batch_size = micro batch * accumulation * world size` for what is None.

    A micro batch beside a global batch, without an accumulation, is a limit: the largest divisor of
    each rank's share that does not exceed it is taken, so that one file serves any number of GPUs.
    Where DeepSpeed takes the pair at all, both mean the same. Without either the accumulation is 1.
    Raises UserError where no whole numbers fit.
    """
    if global_size is None and micro_size is None:
        raise UserError("train_batch_size is missing: it is the number of sequences per optimiser step over all GPUs")
    if global_size is None:
        global_size = micro_size * (accumulation or 1) * world_size
    share, limit = global_size // world_size, micro_size if accumulation is None else None
    product = f"gradient_accumulation_steps {accumulation} x {world_size} rank(s)"
    if accumulation is None:
        problem = f"is not a multiple of {world_size} rank(s)"
        micro_size = max((size for size in divisors(share) if size <= (limit or share)), default=0)
        accumulation = share // micro_size if micro_size else 0
    elif micro_size is None:
        problem = f"is not a multiple of {product}"
        micro_size = share // accumulation
    else:
        problem = f"is not micro batch {micro_size} x {product}"
    if micro_size * accumulation * world_size != global_size:
        if global_size % world_size == 0:
            fitting = divisors(global_size // world_size)
            advice = f"with {world_size} rank(s) gradient_accumulation_steps can be {', '.join(map(str, fitting))}"
        else:
            ranks = [n for n in divisors(global_size) if n <= 2 * world_size][-6:]
            near = sorted({max(1, global_size // world_size) * world_size, (global_size // world_size + 1) * world_size})
            advice = (f"train_batch_size must be a multiple of the ranks, for example {' or '.join(map(str, near))}; "
                      f"{global_size} sequences fit {', '.join(map(str, ranks))} rank(s)")  # fmt: skip
        raise UserError(f"train_batch_size {global_size} {problem}: {advice}")
    return BatchPlan(global_size, micro_size, accumulation, world_size, limit)


def divisors(number: int) -> list:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


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


@dataclass(frozen=True)
class Window:
    """One forward pass of the evaluator: inputs [start, start + length), targets one further; the last `scored` targets count."""

    start: int
    length: int
    scored: int


def windows(tokens: int, seq_len: int, last_n: int) -> int:
    """Number of windows of a stream of `tokens` tokens."""
    return 1 + max(0, math.ceil((tokens - 1 - seq_len) / last_n)) if tokens > 1 else 0


def window(index: int, tokens: int, seq_len: int, last_n: int) -> Window:
    """Window `index` (from 0). The last one is as long as the stream lasts."""
    start = index * last_n
    length = min(seq_len, tokens - 1 - start)
    return Window(start, length, length if index == 0 else length - (seq_len - last_n))


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device while it trains, by part. What DeepSpeed keeps was measured in version 0.19.8."""

    weights: int
    gradients: int
    optimizer: int  # fp32 copy of the weights, and the optimizer's own numbers
    activations: int  # kept for the backward pass of one micro batch
    logits: int  # one chunk of logits with its temporaries, and the output layer's gradients until the backward pass
    gathered: int  # ZeRO 3: weights of other ranks, or from host memory, while they are in use
    update: int  # temporary fp32 gradients of the update
    host: int  # not on the device but in this rank's share of host memory: what is offloaded

    @property
    def total(self) -> int:
        """The most that is held at once: the update begins when activations and logits are gone."""
        held = self.weights + self.gradients + self.optimizer
        return held + max(self.activations + self.logits + self.gathered, self.update)


def memory(model: ModelConfig, micro_size: int, world_size: int, stage: int, precision: str, checkpointing: bool,
           chunk_elements: int, moments: int = 2, offload: bool = False, live_parameters: int = 10**9,
           offload_weights: bool = False) -> Memory:  # fmt: skip
    """Memory of one rank under a ZeRO stage (Rajbhandari et al., arXiv 1910.02054, with DeepSpeed's own buffers).

    precision: fp32, fp16 or bf16. moments: numbers per parameter that the optimizer keeps (Adam 2). offload: optimizer
    states live in host memory. chunk_elements: logits per chunk of the output layer. live_parameters: what ZeRO 3 may
    gather at a time. offload_weights: under ZeRO 3 a rank's share of the weights, too, lives in host memory.
    """
    n, width = model.parameters(), 4 if precision == "fp32" else 2
    own = -(-n // world_size)  # elements of one rank's share, rounded up
    updated = own if stage else n  # elements that one rank updates
    copy = 4 * updated if stage or precision != "fp32" else 0
    tokens = micro_size * model.seq_len
    per_block, per_input = _activations(model, width)
    blocks = model.n_layers * per_input + per_block if checkpointing else model.n_layers * per_block
    final = (2 * model.h_dim) * width + 8  # input and statistics of the last LayerNorm, gradient of the hidden states
    chunk = min(chunk_elements, tokens * model.vocab_size)
    offload_weights = offload_weights and stage == 3
    host = 4 * updated * (2 + moments + (stage < 3)) if offload else 0  # with fp32 gradients; below 3 their sum, too
    return Memory(
        weights=0 if offload_weights else width * (own if stage == 3 else n),
        gradients=width * (own if stage >= 2 else n),
        optimizer=0 if offload else copy + 4 * moments * updated,
        activations=tokens * (blocks + final),
        logits=chunk * (8 if precision == "fp32" else 12) + 4 * model.vocab_size * model.h_dim,
        gathered=width * min(n, live_parameters) if stage == 3 and (world_size > 1 or offload_weights) else 0,
        update=4 * updated if precision != "fp32" and not offload else 0,
        host=host + (width * own if offload_weights else 0),
    )


def _activations(model: ModelConfig, width: int):
    """Bytes per token that one block keeps for its backward pass, and those of its input alone.

    Inputs and outputs of both LayerNorms; q, k, v and attention's output; the MLP's hidden layer before and after GELU;
    in fp32 the LayerNorms' statistics and attention's log-sum-exp.
    """
    attention = model.n_heads * model.head_dim
    elements = 4 * model.h_dim + 4 * attention + 2 * model.mlp_dim
    return elements * width + 4 * (4 + model.n_heads), model.h_dim * width


def checkpoint_bytes(model: ModelConfig, stage: int, precision: str, moments: int = 2) -> int:
    """Size on disk of one checkpoint: fp32 weights and moments, and below stage 3 the model in the run's precision."""
    width = 4 if precision == "fp32" else 2
    masters = 4 * (1 + moments) if stage else 4 * moments
    return model.parameters() * (masters + (width if stage < 3 else 0))

"""Pure arithmetic about a run: batch, schedule, parameters, FLOPs, evaluation windows, memory,
disk. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpt.errors import UserError

# Elements of one chunk of the output layer's logits, by device type. On a CPU a chunk should stay
# near the caches. A GPU wants all rows in one, for which no gradients of chunks are added up: 32 x
# 512 tokens at vocabulary 16,384 in half a GiB.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "default": 1 << 28}

# DeepSpeed's own sizes, in elements.
ALLREDUCE_ELEMENTS = 5 * 10**8  # stage 0: gradients reduced at a time
SUB_GROUP_ELEMENTS = 10**9  # stage 3: updated at a time
LIVE_ELEMENTS = 10**9  # stage 3: weights that may be gathered at once
PREFETCH_ELEMENTS = 5 * 10**7  # stage 3: weights fetched ahead


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
        embeddings = (self.vocab_size + self.seq_len) * self.h_dim
        return (
            embeddings
            + self.n_layers * self.block_parameters()
            + 2 * self.h_dim
            + self.vocab_size * self.h_dim
        )

    def block_parameters(self) -> int:
        """Number of trainable parameters of one block."""
        attention = self.n_heads * self.head_dim
        return (
            4 * self.h_dim  # two LayerNorms
            + 3 * attention * (self.h_dim + 1)  # q, k, v
            + (attention + 1) * self.h_dim  # attention output
            + (self.h_dim + 1) * self.mlp_dim
            + (self.mlp_dim + 1) * self.h_dim
        )

    def matmul_flops_per_token(self, causal: bool = True) -> int:
        """FLOPs of one token's forward and backward matrix products; look-ups, norms and
        activations are not counted.

        2 FLOPs per weight and token in the forward pass and 4 in the backward pass (Kaplan et al.,
        arXiv 2001.08361, table 1), over the weights of the GEMMs, the head included. Attention
        scores and their product with v add 2 * 2 * seq_len * n_heads * head_dim per layer and pass,
        halved since a causal query sees half of the keys on average (as Dao, arXiv 2307.08691,
        section 4.1, counts them). Not causal: not halved, as PaLM (arXiv 2204.02311, appendix B),
        the Languini Kitchen and torch's FlopCounterMode count. What is computed twice, under
        activation checkpointing or in a fused attention's backward pass, counts once.
        """
        attention = self.n_heads * self.head_dim
        weights = self.n_layers * (4 * attention * self.h_dim + 2 * self.h_dim * self.mlp_dim)
        weights += self.vocab_size * self.h_dim
        scores_and_values = self.n_layers * (2 if causal else 4) * self.seq_len * attention
        return 3 * (2 * weights + scores_and_values)


@dataclass(frozen=True)
class BatchPlan:
    """How one optimiser step's sequences are shared out: `global_size = micro_size * accumulation *
    world_size`."""

    global_size: int  # sequences per optimiser step, over all ranks
    micro_size: int  # sequences per forward pass of one rank
    accumulation: int  # forward passes per optimiser step of one rank
    world_size: int  # number of ranks
    # what was asked for, where micro_size is the largest that fits
    micro_limit: int | None = None

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
        raise UserError(
            "train_batch_size is missing: it is the number of sequences per optimiser step over all"
            " GPUs"
        )
    if global_size is None:
        global_size = micro_size * (accumulation or 1) * world_size
    share = global_size // world_size
    limit = micro_size if accumulation is None else None
    exact = world_size * (accumulation or 1) * (micro_size or 1 if accumulation else 1)
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
        if accumulation and global_size % (accumulation * world_size) == 0:
            advice = (
                f"so many passes take micro batches of {share // accumulation}: set "
                "train_micro_batch_size_per_gpu to that, or leave one of the two out"
            )
        elif global_size % world_size == 0:
            fitting = divisors(global_size // world_size)
            advice = (
                f"with {world_size} rank(s) gradient_accumulation_steps can be"
                f" {', '.join(map(str, fitting))}"
            )
        else:
            ranks = [n for n in divisors(global_size) if n <= 2 * world_size][-6:]
            near = sorted(
                {max(1, global_size // exact) * exact, (global_size // exact + 1) * exact}
            )
            advice = (
                "train_batch_size must be a multiple of the ranks, for example"
                f" {' or '.join(map(str, near))}; {global_size} sequences fit"
                f" {', '.join(map(str, ranks))} rank(s)"
            )
        raise UserError(f"train_batch_size {global_size} {problem}: {advice}")
    return BatchPlan(global_size, micro_size, accumulation, world_size, limit)


def divisors(number: int) -> list:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


@dataclass(frozen=True)
class CosineSchedule:
    """The baseline's learning rate: linear warm-up times a cosine from `max_lr` to `min_lr` over
    `decay_steps`.

    Both factors count from step 1, so that the warm-up multiplies the cosine already under way, as
    in the Languini Kitchen's trainer.
    """

    max_lr: float
    min_lr: float
    warmup_steps: int
    decay_steps: int

    def lr(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 1; `min_lr` from
        `decay_steps` on."""
        progress = min(step, self.decay_steps) / self.decay_steps
        cosine = self.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (
            self.max_lr - self.min_lr
        )
        warmup = min(step, self.warmup_steps) / self.warmup_steps if self.warmup_steps else 1.0
        return warmup * cosine


@dataclass(frozen=True)
class Window:
    """One forward pass of the evaluator: inputs [start, start + length), targets one further; the
    last `scored` targets count."""

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
    """Bytes on one rank's device while it trains, by part. What DeepSpeed allocates was counted in
    version 0.19.8."""

    weights: int
    gradients: int  # kept from one micro-batch to the next
    optimizer: int  # fp32 copy of the weights, and the optimizer's own numbers
    activations: int  # kept for the backward pass of one micro-batch
    # one chunk of logits with its temporaries, and the output layer's gradients until the backward
    # pass
    logits: int
    gathered: int  # ZeRO 3: weights of other ranks, or from host memory, while they are in use
    buckets: int  # what gradients are copied into on their way to their rank
    # where a step's gradients are reduced at its end: copies, and this rank's share of the result
    reduction: int
    update: int  # gradients of this rank's share in all their copies, and what the norms need
    host: int  # not on the device but in this rank's share of host memory: what is offloaded
    # the most on the device at once: in a micro-batch, where gradients are reduced, or in the
    # update
    total: int


def memory(
    model: ModelConfig,
    micro_size: int,
    world_size: int,
    stage: int,
    precision: str,
    checkpointing: bool,
    chunk_elements: int,
    moments: int = 2,
    *,
    accumulation: int = 1,
    fp32_sums: bool = False,
    norms: bool = False,
    zero: Mapping = MappingProxyType({}),
    kernels: str = "torch",
) -> Memory:
    """Memory of one rank under a ZeRO stage (Rajbhandari et al., arXiv 1910.02054, with DeepSpeed's
    own buffers).

    precision: fp32, fp16 or bf16. chunk_elements: logits per chunk of the output layer. moments:
    numbers per parameter that the optimizer keeps (Adam 2). accumulation: micro-batches per step,
    whose gradients are summed in fp32 if fp32_sums. norms: in a step that finds the norms of the
    updates. zero: the configuration's block zero_optimization. kernels: "torch", or "triton", whose
    cross-entropy makes no fp32 copy of 16-bit logits.
    """
    run = _Zero(
        model.parameters(),
        world_size,
        stage,
        4 if precision == "fp32" else 2,
        fp32_sums,
        accumulation,
        zero,
    )
    tokens = micro_size * model.seq_len
    per_block, per_input = _activations(model, run.width)
    blocks = model.n_layers * per_input + per_block if checkpointing else model.n_layers * per_block
    # input and statistics of the last LayerNorm, gradient of the hidden states
    final = (2 * model.h_dim) * run.width + 8
    activations = tokens * (blocks + final)
    copied = precision != "fp32" and kernels == "torch"
    logits = min(chunk_elements, tokens * model.vocab_size) * (run.width + 4 * copied)
    logits += 4 * model.vocab_size * model.h_dim
    weights = run.weights()
    gathered = run.gathered(model.block_parameters())
    optimizer, host = run.optimizer(moments)
    gradients = run.gradients()
    buckets = run.buckets()
    reduction = run.reduction()
    # weights before the update, until it is done
    update = run.update()
    kept = 4 * run.updated if norms else 0
    update, host = (update, host + kept) if run.offloaded else (update + kept, host)
    passing = activations + logits
    # Of a single micro-batch, whole gradients come as activations go.
    passing = max(passing, gradients) if stage < 2 and accumulation == 1 else passing + gradients
    passing += gathered + (max(buckets, reduction) if run.overlaps else buckets)
    most = weights + optimizer + max(passing, gradients + reduction, update)
    return Memory(
        weights,
        gradients,
        optimizer,
        activations,
        logits,
        gathered,
        buckets,
        reduction,
        update,
        host,
        most,
    )


class _Zero:
    """What DeepSpeed's optimizers of stages 0 to 3 allocate on the device, in bytes
    (runtime/zero/stage_1_and_2.py, stage3.py, partitioned_param_coordinator.py)."""

    def __init__(self, parameters, world_size, stage, width, fp32_sums, accumulation, block):
        self.n = parameters
        self.ranks = world_size
        self.stage = stage
        self.width = width
        self.own = -(-parameters // world_size)  # elements of one rank's share, rounded up
        self.updated = self.own if stage else parameters
        self.fp32_sums = fp32_sums and width < 4
        self.sum_width = 4 if self.fp32_sums else width
        self.accumulation = accumulation
        self.block = block
        self.offloaded = stage > 0 and is_offloaded(block, "offload_optimizer")
        self.weights_offloaded = stage == 3 and is_offloaded(block, "offload_param")
        self.overlaps = bool(block.get("overlap_comm")) and stage in (1, 2)
        self.bucket = block.get("reduce_bucket_size", 0)
        self.contiguous = block.get("contiguous_gradients", True) or (self.offloaded and stage < 3)

    def weights(self):
        return (
            0 if self.weights_offloaded else self.width * (self.own if self.stage == 3 else self.n)
        )

    def optimizer(self, moments):
        """(on the device, in host memory)."""
        copy = 4 * self.updated if self.stage or self.width < 4 else 0
        host = self.width * self.own if self.weights_offloaded else 0
        if not self.offloaded:
            return copy + 4 * moments * self.updated, host
        host += copy + 4 * (1 + moments) * self.updated  # with the fp32 gradient
        host += self.width * self.updated if self.stage < 3 else self.sum_width * self.own
        if self.stage == 2 and self.accumulation > 1 and not self.fp32_sums:
            host += self.width * self.own
        return 0, host

    def gradients(self):
        """Between two micro-batches."""
        if self.stage < 2:
            return self.sum_width * self.n
        # DeepSpeed sums these on the device
        on_host = self.offloaded and not (self.stage == 2 and self.fp32_sums)
        return 0 if on_host else self.sum_width * self.own

    def buckets(self):
        """From a micro-batch's first gradient to its last, or to that of the step's last
        micro-batch."""
        if self.stage == 0:
            return 0
        if self.stage == 3:
            return self.width * self.contiguous * self.bucket
        buffers = self.bucket * (self.contiguous + self.overlaps)
        if self.stage == 1:
            return self.sum_width * buffers
        # parts of other ranks are joined
        copied = min(self.bucket, self.n) if self.ranks > 1 or self.fp32_sums else 0
        second = self.accumulation > 1 and not self.fp32_sums and not self.offloaded
        # The share of the micro-batch under way lies beside the sum of those before.
        return self.width * (buffers + copied + (self.own if second else 0))

    def reduction(self):
        """Beside the gradients, after the last backward pass; below stage 2 alone, which reduces as
        it goes."""
        if self.stage == 0:
            return self.width * min(self.n, ALLREDUCE_ELEMENTS)
        if self.stage > 1 or not self.contiguous:
            return 0
        filled = min(self.bucket, self.n)  # these gradients lie in the bucket alone
        spare = self.sum_width * (self.bucket * (1 + self.overlaps) - filled)
        if self.fp32_sums:  # the bucket is copied in fp32, and that in 16 bits
            return spare + 4 * self.own + (4 + self.width) * filled
        return spare + max(self.width * filled, 0 if self.offloaded else self.width * self.own)

    def update(self):
        """The reduced share of the gradients, its flat copy, and that in fp32."""
        if self.stage == 0:
            return self.width * self.n
        if self.offloaded:
            return 0
        share = self.sum_width * self.own
        if self.stage == 3:
            flat = (
                min(self.own, self.block.get("sub_group_size", SUB_GROUP_ELEMENTS)) * self.sum_width
            )
            kept = self.width * self.contiguous * self.bucket
            return share + kept + flat + (0 if self.sum_width == 4 else 4 * flat // self.sum_width)
        if self.fp32_sums:
            return share
        return 2 * share + (0 if self.width == 4 else 4 * self.own)

    def gathered(self, block_parameters):
        """A block's weights are fetched together, and those to come behind them."""
        if self.stage < 3 or (self.ranks == 1 and not self.weights_offloaded):
            return 0
        live = min(self.n, self.block.get("stage3_max_live_parameters", LIVE_ELEMENTS))
        ahead = self.block.get("stage3_prefetch_bucket_size", PREFETCH_ELEMENTS)
        # arrives in one piece, then is cut up
        in_flight = min(self.n, block_parameters + ahead) if self.ranks > 1 else 0
        return self.width * (live + in_flight)


def is_offloaded(zero: Mapping, name: str) -> bool:
    """Whether a zero_optimization block moves a part off the device. name: offload_optimizer or
    offload_param."""
    return zero.get(name, {}).get("device", "none") != "none"


def _activations(model: ModelConfig, width: int):
    """Bytes per token that one block keeps for its backward pass, and those of its input alone.

    Inputs and outputs of both LayerNorms; q, k, v and attention's output; the MLP's hidden layer
    before and after GELU; in fp32 the LayerNorms' statistics and attention's log-sum-exp.
    """
    attention = model.n_heads * model.head_dim
    elements = 4 * model.h_dim + 4 * attention + 2 * model.mlp_dim
    return elements * width + 4 * (4 + model.n_heads), model.h_dim * width


def checkpoint_bytes(model: ModelConfig, stage: int, precision: str, moments: int = 2) -> int:
    """Size on disk of one checkpoint: fp32 weights and moments, and below stage 3 the model in the
    run's precision."""
    width = 4 if precision == "fp32" else 2
    masters = 4 * (1 + moments) if stage else 4 * moments
    return model.parameters() * (masters + (width if stage < 3 else 0))

"""Pure arithmetic about a run: batch, schedule, parameters, FLOPs, evaluation windows, memory,
disk. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpt.config.shape import ModelConfig

# DeepSpeed's own sizes, in elements.
ALLREDUCE_ELEMENTS = 5 * 10**8  # stage 0: gradients reduced at a time
SUB_GROUP_ELEMENTS = 10**9  # stage 3: updated at a time
LIVE_ELEMENTS = 10**9  # stage 3: weights that may be gathered at once
PREFETCH_ELEMENTS = 5 * 10**7  # stage 3: weights fetched ahead


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

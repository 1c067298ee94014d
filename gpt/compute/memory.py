"""Memory of a rank while it trains, and the size of a checkpoint, on paper. Imports no torch.

What DeepSpeed allocates was counted in version 0.19.8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpt.compute.costs import Costs, bytes_of

# DeepSpeed's own sizes, in elements.
ALLREDUCE_ELEMENTS = 5 * 10**8  # stage 0: gradients reduced at a time
SUB_GROUP_ELEMENTS = 10**9  # stage 3: updated at a time
LIVE_ELEMENTS = 10**9  # stage 3: weights that may be gathered at once
PREFETCH_ELEMENTS = 5 * 10**7  # stage 3: weights fetched ahead


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device while it trains, by part."""

    weights: int
    # kept from one micro-batch to the next
    gradients: int
    # fp32 copy of the weights, and the optimizer's own numbers
    optimizer: int
    # kept for the backward pass of one micro-batch
    activations: int
    # one chunk of logits with its temporaries, and the output layer's gradients until the backward
    # pass
    logits: int
    # ZeRO 3: weights of other ranks, or from host memory, while they are in use
    gathered: int
    # what gradients are copied into on their way to their rank
    buckets: int
    # where a step's gradients are reduced at its end: copies, and this rank's share of the result
    reduction: int
    # gradients of this rank's share in all their copies, and what the norms need
    update: int
    # not on the device but in this rank's share of host memory: what is offloaded
    host: int
    # the most on the device at once: in a micro-batch, where gradients are reduced, or in the
    # update
    total: int
    # whether activations are in it, which are not known of every model
    is_whole: bool = True


def memory(
    costs: Costs,
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
    graphed: bool = False,
) -> Memory:
    """Memory of one rank under a ZeRO stage (Rajbhandari et al., arXiv 1910.02054, with DeepSpeed's
    own buffers).

    precision: fp32, fp16 or bf16. chunk_elements: logits per chunk of the output layer. moments:
    numbers per parameter that the optimizer keeps (Adam 2). accumulation: micro-batches per step,
    whose gradients are summed in fp32 if fp32_sums. norms: in a step that finds the norms of the
    updates. zero: the configuration's block zero_optimization. kernels: "torch", or "triton", whose
    cross-entropy makes no fp32 copy of 16-bit logits. graphed: a CUDA graph makes the passes, and
    keeps their memory, and that of the gradients, beside all that follows.
    """
    width = bytes_of(precision)
    rank = _Rank(costs.parameters, world_size, stage, width, fp32_sums, accumulation, zero)

    weights = rank.weights()
    gradients = rank.gradients()
    optimizer = rank.optimizer(moments)
    known_activations = costs.activations(micro_size, precision, checkpointing)
    activations = known_activations or 0
    logits = _logits(costs, micro_size, precision, chunk_elements, kernels)
    gathered = rank.gathered(costs.block_parameters)
    buckets = rank.buckets()
    reduction = rank.reduction()
    update = rank.update()
    host = rank.host(moments)
    if norms and rank.offloaded:
        host += rank.weights_before_the_update()
    elif norms:
        update += rank.weights_before_the_update()
    micro_batch = rank.micro_batch(activations + logits) + gathered
    most = max(micro_batch, gradients + reduction, update)
    if graphed:
        most = activations + logits + gradients + max(buckets + reduction, update)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        gathered=gathered,
        buckets=buckets,
        reduction=reduction,
        update=update,
        host=host,
        total=weights + optimizer + most,
        is_whole=known_activations is not None,
    )


@dataclass(frozen=True)
class _Rank:
    """What DeepSpeed's optimizers of stages 0 to 3 allocate on one rank, in bytes
    (runtime/zero/stage_1_and_2.py, stage3.py, partitioned_param_coordinator.py)."""

    parameters: int  # elements, of the whole model
    ranks: int
    stage: int
    width: int  # bytes of a number in the run's precision
    asks_fp32_sums: bool
    accumulation: int  # micro-batches per step
    zero: Mapping  # the configuration's block

    @property
    def own(self) -> int:
        """Elements of one rank's share, rounded up."""
        return -(-self.parameters // self.ranks)

    @property
    def updated(self) -> int:
        """Elements that this rank's optimizer updates."""
        return self.own if self.stage > 0 else self.parameters

    @property
    def fp32_sums(self) -> bool:
        return self.asks_fp32_sums and self.width < 4

    @property
    def sum_width(self) -> int:
        """Bytes of a number of a gradient that is summed over micro-batches."""
        return 4 if self.fp32_sums else self.width

    @property
    def offloaded(self) -> bool:
        return self.stage > 0 and is_offloaded(self.zero, "offload_optimizer")

    @property
    def weights_offloaded(self) -> bool:
        return self.stage == 3 and is_offloaded(self.zero, "offload_param")

    @property
    def overlaps(self) -> bool:
        """Whether one bucket is reduced while the next is filled."""
        return self.stage in (1, 2) and bool(self.zero.get("overlap_comm"))

    @property
    def bucket(self) -> int:
        """Elements of a bucket of gradients."""
        return self.zero.get("reduce_bucket_size", 0)

    @property
    def contiguous(self) -> bool:
        """Whether gradients are copied into a bucket of their own."""
        by_offloading = self.offloaded and self.stage < 3
        return self.zero.get("contiguous_gradients", True) or by_offloading

    @property
    def contiguous_bucket(self) -> int:
        return self.bucket if self.contiguous else 0

    def weights(self) -> int:
        if self.weights_offloaded:
            return 0
        return self.width * (self.own if self.stage == 3 else self.parameters)

    def gradients(self) -> int:
        """Between two micro-batches."""
        if self.stage < 2:
            return self.sum_width * self.parameters
        # DeepSpeed sums these on the device, though the optimizer is offloaded
        on_device = self.stage == 2 and self.fp32_sums
        if self.offloaded and not on_device:
            return 0
        return self.sum_width * self.own

    def _fp32_weights(self) -> int:
        return 4 * self.updated if self.stage > 0 or self.width < 4 else 0

    def optimizer(self, moments: int) -> int:
        """On the device."""
        if self.offloaded:
            return 0
        return self._fp32_weights() + 4 * moments * self.updated

    def host(self, moments: int) -> int:
        """In host memory, of weights, gradients and optimizer."""
        size = self.width * self.own if self.weights_offloaded else 0
        if not self.offloaded:
            return size
        fp32_gradient = 4 * self.updated
        size += self._fp32_weights() + fp32_gradient + 4 * moments * self.updated
        size += self.sum_width * self.own if self.stage == 3 else self.width * self.updated
        if self.stage == 2 and self.accumulation > 1 and not self.fp32_sums:
            size += self.width * self.own
        return size

    def buckets(self) -> int:
        """From a micro-batch's first gradient to its last, or to that of the step's last
        micro-batch."""
        filled = self.contiguous_bucket + (self.bucket if self.overlaps else 0)
        match self.stage:
            case 0:
                return 0
            case 1:
                return self.sum_width * filled
            case 2:
                return self.width * (filled + self._joined() + self._under_way())
            case _:
                return self.width * self.contiguous_bucket

    def _joined(self) -> int:
        """Stage 2: elements of a bucket in which the parts of other ranks are joined."""
        return min(self.bucket, self.parameters) if self.ranks > 1 or self.fp32_sums else 0

    def _under_way(self) -> int:
        """Stage 2: elements of the share of the micro-batch under way, which lies beside the sum of
        those before."""
        beside = self.accumulation > 1 and not self.fp32_sums and not self.offloaded
        return self.own if beside else 0

    def reduction(self) -> int:
        """Beside the gradients, after the last backward pass; below stage 2 alone, which reduces as
        it goes."""
        match self.stage:
            case 0:
                return self.width * min(self.parameters, ALLREDUCE_ELEMENTS)
            case 1 if self.contiguous:
                return self._bucket_reduction()
            case _:
                return 0

    def _bucket_reduction(self) -> int:
        filled = min(self.bucket, self.parameters)  # these gradients lie in the bucket alone
        spare = self.sum_width * (self.bucket * (2 if self.overlaps else 1) - filled)
        if self.fp32_sums:  # the bucket is copied in fp32, and that in 16 bits
            return spare + 4 * self.own + (4 + self.width) * filled
        share = 0 if self.offloaded else self.width * self.own
        return spare + max(self.width * filled, share)

    def update(self) -> int:
        """The reduced share of the gradients, its flat copy, and that in fp32."""
        if self.offloaded:
            return 0
        share = self.sum_width * self.own
        match self.stage:
            case 0:
                return self.width * self.parameters
            case 1 | 2 if self.fp32_sums:
                return share
            case 1 | 2:
                return 2 * share + (0 if self.width == 4 else 4 * self.own)
            case _:
                return share + self.width * self.contiguous_bucket + self._group_update()

    def micro_batch(self, passing: int) -> int:
        """The most at once in a micro-batch, beside weights and optimizer. passing: what comes and
        goes with it, activations and logits."""
        # of a single micro-batch, whole gradients come as activations go
        if self.stage < 2 and self.accumulation == 1:
            size = max(passing, self.gradients())
        else:
            size = passing + self.gradients()
        if self.overlaps:
            return size + max(self.buckets(), self.reduction())
        return size + self.buckets()

    def weights_before_the_update(self) -> int:
        """In fp32, until the norms of the updates are found."""
        return 4 * self.updated

    def _group_update(self) -> int:
        """Stage 3: of the elements that are updated at a time."""
        group = min(self.own, self.zero.get("sub_group_size", SUB_GROUP_ELEMENTS))
        return self.sum_width * group + (0 if self.sum_width == 4 else 4 * group)

    def gathered(self, block_parameters: int) -> int:
        """A block's weights are fetched together, and those to come behind them."""
        if self.stage < 3 or (self.ranks == 1 and not self.weights_offloaded):
            return 0
        live = self.zero.get("stage3_max_live_parameters", LIVE_ELEMENTS)
        ahead = self.zero.get("stage3_prefetch_bucket_size", PREFETCH_ELEMENTS)
        # arrives in one piece, then is cut up
        in_flight = block_parameters + ahead if self.ranks > 1 else 0
        return self.width * (min(self.parameters, live) + min(self.parameters, in_flight))


def is_offloaded(zero: Mapping, name: str) -> bool:
    """Whether a zero_optimization block moves a part off the device. name: offload_optimizer or
    offload_param."""
    return zero.get(name, {}).get("device", "none") != "none"


def _logits(
    costs: Costs, micro_size: int, precision: str, chunk_elements: int, kernels: str
) -> int:
    """Bytes, as for `memory`."""
    shape = costs.shape
    width = bytes_of(precision)
    elements = micro_size * shape.seq_len * shape.vocab_size
    if costs.output_width is None:
        # the model's own, and an fp32 copy of 16-bit ones
        return elements * (width if precision == "fp32" else width + 4)
    chunk = min(chunk_elements, elements)
    # a capped chunk, and its slope
    copies = 3 if costs.is_capped else 1
    fp32_copy = 4 * chunk if precision != "fp32" and kernels == "torch" else 0
    return copies * width * chunk + fp32_copy + 4 * shape.vocab_size * costs.output_width


def checkpoint_bytes(parameters: int, stage: int, precision: str, moments: int = 2) -> int:
    """Size on disk of one checkpoint: fp32 weights and moments, and below stage 3 the model in the
    run's precision."""
    fp32_numbers = moments + (1 if stage > 0 else 0)
    weights = bytes_of(precision) if stage < 3 else 0
    return parameters * (4 * fp32_numbers + weights)

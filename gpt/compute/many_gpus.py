"""What more GPUs would bring, on paper: computing and communicating time of a step under each ZeRO
stage. Imports no torch.

Model. A collective over n ranks in a ring costs, for m bytes, a latency a per hop and a bandwidth b
of the ring's slowest link (Thakur, Rabenseifner and Gropp, "Optimization of collective
communication operations in MPICH", 2005, sections 4.1 and 4.4):

    all-gather, reduce-scatter    (n - 1) a + (n - 1)/n m/b
    all-reduce                    2 (n - 1) a + 2 (n - 1)/n m/b

How often each stage moves all gradients or weights in DeepSpeed 0.19.8, counted in its calls
(tests/support/traffic_run.py). Below ZeRO 3 that is more than in the paper (Rajbhandari et al.,
arXiv 1910.02054, section 7), for its default (`use_multi_rank_bucket_allreduce`) is to all-reduce
gradients where a reduce-scatter would do:

    ZeRO 0    an all-reduce of the gradients per step
    ZeRO 1    an all-reduce of the gradients and an all-gather of the weights per step
    ZeRO 2    an all-reduce per micro-batch, an all-gather per step
    ZeRO 3    an all-gather (forward) and a reduce-scatter per micro-batch; another all-gather
              (backward) of the weights that were let go, those between whose two uses
              `stage3_max_reuse_distance` (1e9) elements pass

Assumed: every GPU computes at the reference GPU's rate, unless its host needs longer to launch a
micro-batch than the GPU to compute it (gpt/compute/host_time.py); nothing is communicated while it
computes (the other end is the longest of the times alone: `Step.overlapped`); all is moved in the
run's precision, in its own buckets, under ZeRO 3 weights block by block; evaluation and checkpoints
are left out. Across hosts the slowest link of a ring is a host's network, all its cards together.
"""

import math
from dataclasses import dataclass

from gpt.compute.costs import Costs
from gpt.config.batch import BatchPlan, plan_batch

# assumed latency of one hop, not measured
HOP_SECONDS = 10e-6
# DeepSpeed's defaults, in elements
BUCKET_ELEMENTS = 5 * 10**8
REUSE_ELEMENTS = 10**9
# numbers of GPUs that a dry run looks at
RANKS = tuple(2**power for power in range(11))


@dataclass(frozen=True)
class Step:
    """One optimiser step's time in seconds, on every rank alike."""

    computing: float  # of a GPU that its host keeps busy
    communicating: float
    launching: float = 0.0  # of its host, meanwhile

    @property
    def seconds(self) -> float:
        return max(self.computing, self.launching) + self.communicating

    @property
    def overlapped(self) -> float:
        """Seconds if all communication that can hide behind computing did."""
        return max(self.computing, self.launching, self.communicating)

    @property
    def share(self) -> float:
        """Of the step that is spent on communication."""
        return self.communicating / self.seconds

    @property
    def efficiency(self) -> float:
        """Speed over that of as many GPUs that wait neither for one another nor for their hosts."""
        return self.computing / self.seconds


def ring(size: float, ranks: int, bandwidth: float, calls: int = 1) -> float:
    """Seconds of an all-gather or a reduce-scatter of `size` bytes in `calls` pieces; bandwidth in
    bytes per second."""
    return (ranks - 1) * (calls * HOP_SECONDS + size / ranks / bandwidth)


def step(
    costs: Costs,
    batch: BatchPlan,
    stage: int,
    precision: str,
    tokens_per_second: float,
    bandwidth: float,
    zero: dict,
    launching: float = 0.0,
) -> Step:
    """A step's time. tokens_per_second: of one GPU. bandwidth: bytes per second and direction of a
    ring's slowest link. zero: the run's zero_optimization block. launching: seconds of the host per
    micro-batch."""
    parameters = costs.parameters
    size = parameters * (4 if precision == "fp32" else 2)

    def once(elements: float) -> float:
        """All weights or gradients once round the ring, so many at a time."""
        return ring(size, batch.world_size, bandwidth, math.ceil(parameters / elements))

    reduced = once(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    gathered = once(zero.get("allgather_bucket_size", BUCKET_ELEMENTS))
    match stage:
        case 0:
            communicating = 2 * once(BUCKET_ELEMENTS)
        case 1:
            communicating = 2 * reduced + gathered
        case 2:
            communicating = 2 * batch.accumulation * reduced + gathered
        case _:
            # the embeddings and the head as two blocks more
            by_block = once(parameters / (costs.blocks + 2))
            reuse_distance = zero.get("stage3_max_reuse_distance", REUSE_ELEMENTS)
            # of the weights, from the forward pass to the backward pass
            kept = min(1.0, reuse_distance / (2 * parameters))
            communicating = batch.accumulation * ((2 - kept) * by_block + reduced)
    computing = batch.share * costs.shape.seq_len / tokens_per_second
    return Step(computing, communicating, batch.accumulation * launching)


def on_ranks(batch: BatchPlan, ranks: int) -> BatchPlan | None:
    """The same global batch on another number of ranks; None where it does not divide.

    Its micro-batches are at most of the size asked for, or else of the present one.
    """
    if batch.train_batch_size % ranks:
        return None
    return plan_batch(batch.train_batch_size, batch.micro_limit or batch.micro_size, None, ranks)

"""How a batch is cut over ranks and accumulation steps."""

import math
from dataclasses import dataclass

from gpt.errors import UserError

# the three keys of a run's JSON that say it
BATCH = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"


@dataclass(frozen=True)
class BatchPlan:
    """How one optimiser step's sequences are shared out: `train_batch_size = micro_size *
    accumulation * world_size`."""

    train_batch_size: int  # sequences per optimiser step, over all ranks
    micro_size: int  # sequences per forward pass of one rank
    accumulation: int  # forward passes per optimiser step of one rank
    world_size: int  # number of ranks
    # the micro batch in the file, where micro_size is the largest that fits below it
    micro_limit: int | None = None

    @property
    def share(self) -> int:
        """Sequences per optimiser step of one rank."""
        return self.micro_size * self.accumulation


def plan_batch(
    train_batch_size: int | None,
    micro_size: int | None,
    accumulation: int | None,
    world_size: int,
) -> BatchPlan:
    """Solve `train_batch_size = micro batch * accumulation * world size` for what is None.

    A micro batch beside a global batch, without an accumulation, is a limit: the largest divisor of
    each rank's share that does not exceed it is taken, so that one file serves any number of GPUs.
    Where DeepSpeed takes the pair at all, both mean the same. Without either the accumulation is 1.
    Raises UserError where no whole numbers fit.
    """
    if train_batch_size is None:
        if micro_size is None:
            raise UserError(
                "train_batch_size is missing",
                mend="it is the number of sequences per optimiser step over all GPUs",
            )
        train_batch_size = micro_size * (accumulation or 1) * world_size
    share = train_batch_size // world_size
    limit = None
    # sequences that a batch must be a multiple of
    unit = world_size * (accumulation or 1)
    product = f"{ACCUMULATION} {accumulation} x {world_size} rank(s)"
    if accumulation is None:
        problem = f"is not a multiple of {world_size} rank(s)"
        limit = micro_size
        micro_size = _largest_divisor(share, limit)
        accumulation = share // micro_size if micro_size else 0
    elif micro_size is None:
        problem = f"is not a multiple of {product}"
        micro_size = share // accumulation
    else:
        problem = f"is not micro batch {micro_size} x {product}"
        unit *= micro_size
    if micro_size * accumulation * world_size != train_batch_size:
        raise UserError(
            f"train_batch_size {train_batch_size} {problem}",
            mend=_advice(train_batch_size, accumulation, world_size, unit),
        )
    return BatchPlan(train_batch_size, micro_size, accumulation, world_size, limit)


def _largest_divisor(number: int, limit: int | None) -> int:
    """The largest divisor that does not exceed `limit`; 0 where there is none."""
    fitting = [divisor for divisor in divisors(number) if divisor <= (limit or number)]
    return max(fitting, default=0)


def _advice(batch: int, accumulation: int, world_size: int, unit: int) -> str:
    """What to do about a batch that cannot be shared out; `unit` is what it must be a multiple
    of."""
    if accumulation and batch % (accumulation * world_size) == 0:
        return (
            f"so many passes take micro batches of {batch // world_size // accumulation}: set"
            f" {MICRO} to that, or leave one of the two out"
        )
    if batch % world_size == 0:
        passes = ", ".join(map(str, divisors(batch // world_size)))
        return f"with {world_size} rank(s) {ACCUMULATION} can be {passes}"
    below = max(1, batch // unit) * unit
    above = (batch // unit + 1) * unit
    multiples = " or ".join(map(str, sorted({below, above})))
    ranks = [count for count in divisors(batch) if count <= 2 * world_size]
    return (
        f"train_batch_size must be a multiple of the ranks, for example {multiples}; {batch}"
        f" sequences fit {', '.join(map(str, ranks[-6:]))} rank(s)"
    )


def divisors(number: int) -> list[int]:
    """All divisors, in ascending order."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})

"""How a batch is cut over ranks and accumulation steps."""

import math
from dataclasses import dataclass

from gpt.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """How one optimiser step's sequences are shared out: `train_batch_size = micro_size *
    accumulation * world_size`."""

    train_batch_size: int  # sequences per optimiser step, over all ranks
    micro_size: int  # sequences per forward pass of one rank
    accumulation: int  # forward passes per optimiser step of one rank
    world_size: int  # number of ranks
    # what was asked for, where micro_size is the largest that fits
    micro_limit: int | None = None

    @property
    def share(self) -> int:
        """Sequences per optimiser step of one rank."""
        return self.micro_size * self.accumulation


def plan_batch(train_batch_size, micro_size, accumulation, world_size) -> BatchPlan:
    """Solve `train_batch_size = micro batch * accumulation * world size` for what is None.

    A micro batch beside a global batch, without an accumulation, is a limit: the largest divisor of
    each rank's share that does not exceed it is taken, so that one file serves any number of GPUs.
    Where DeepSpeed takes the pair at all, both mean the same. Without either the accumulation is 1.
    Raises UserError where no whole numbers fit.
    """
    if train_batch_size is None and micro_size is None:
        raise UserError(
            "train_batch_size is missing: it is the number of sequences per optimiser step over all"
            " GPUs"
        )
    if train_batch_size is None:
        train_batch_size = micro_size * (accumulation or 1) * world_size
    share = train_batch_size // world_size
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
    if micro_size * accumulation * world_size != train_batch_size:
        if accumulation and train_batch_size % (accumulation * world_size) == 0:
            advice = (
                f"so many passes take micro batches of {share // accumulation}: set "
                "train_micro_batch_size_per_gpu to that, or leave one of the two out"
            )
        elif train_batch_size % world_size == 0:
            fitting = divisors(train_batch_size // world_size)
            advice = (
                f"with {world_size} rank(s) gradient_accumulation_steps can be"
                f" {', '.join(map(str, fitting))}"
            )
        else:
            ranks = [n for n in divisors(train_batch_size) if n <= 2 * world_size][-6:]
            near = sorted(
                {max(1, train_batch_size // exact) * exact, (train_batch_size // exact + 1) * exact}
            )
            advice = (
                "train_batch_size must be a multiple of the ranks, for example"
                f" {' or '.join(map(str, near))}; {train_batch_size} sequences fit"
                f" {', '.join(map(str, ranks))} rank(s)"
            )
        raise UserError(f"train_batch_size {train_batch_size} {problem}: {advice}")
    return BatchPlan(train_batch_size, micro_size, accumulation, world_size, limit)


def divisors(number: int) -> list:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})

"""The learning rate of every optimiser step, by the trainer's own schedules."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gpt.config.optimizer_keys import COOLDOWN, COSINE


@dataclass(frozen=True)
class CosineSchedule:
    """The baseline's learning rate: linear warm-up times a cosine from `max_lr` to `min_lr` over
    `decay_steps`.

    Both factors count from step 1, so that the warm-up multiplies the cosine already under way, as
    in the Languini Kitchen's trainer.
    """

    kind: ClassVar[str] = COSINE
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
        return _warmup(step, self.warmup_steps) * cosine

    @property
    def corners(self) -> tuple[int, ...]:
        """Steps at which the rate begins to go another way."""
        return max(1, self.warmup_steps), self.decay_steps


@dataclass(frozen=True)
class CooldownSchedule:
    """Linear warm-up to `max_lr`, which stays; over the last `cooldown_share` of `decay_steps` a
    straight line to `min_lr`.

    Until the cooldown the rate does not depend on `decay_steps`, so that one run can be the trunk
    of runs of many lengths (Hägele et al., arXiv 2405.18392).
    """

    kind: ClassVar[str] = COOLDOWN
    max_lr: float
    min_lr: float
    warmup_steps: int
    decay_steps: int
    cooldown_share: float  # 0: the rate stays to the end

    @property
    def cooldown_start(self) -> int:
        """The last step at `max_lr`."""
        if self.cooldown_share == 0:
            return self.decay_steps
        return self.decay_steps - max(1, round(self.cooldown_share * self.decay_steps))

    def lr(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 1; from `decay_steps` on `min_lr`,
        or `max_lr` where there is no cooldown."""
        start = self.cooldown_start
        if step <= start or self.cooldown_share == 0:
            return _warmup(step, self.warmup_steps) * self.max_lr
        progress = (min(step, self.decay_steps) - start) / (self.decay_steps - start)
        return (1 - progress) * self.max_lr + progress * self.min_lr

    @property
    def corners(self) -> tuple[int, ...]:
        """As a CosineSchedule's."""
        return max(1, self.warmup_steps), max(1, self.cooldown_start), self.decay_steps


OwnSchedule = CosineSchedule | CooldownSchedule


def own_schedule(block: Mapping[str, Any] | None) -> OwnSchedule | None:
    """The schedule in a run's block "scheduler", complete; None where it is none of the
    trainer's own."""
    for schedule in (CosineSchedule, CooldownSchedule):
        if block and block.get("type") == schedule.kind:
            return schedule(**block["params"])
    return None


def _warmup(step: int, warmup_steps: int) -> float:
    """The share of the rate that warm-up allows."""
    return min(step, warmup_steps) / warmup_steps if warmup_steps else 1.0

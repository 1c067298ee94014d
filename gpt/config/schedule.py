"""The learning rate of every optimiser step."""

import math
from dataclasses import dataclass


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

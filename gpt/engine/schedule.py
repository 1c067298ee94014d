"""A schedule of the trainer's own in the shape that DeepSpeed steps and saves.

Part of the boundary that gpt/engine/boundary.py is: it changes DeepSpeed's objects, but needs
nothing of its modules.
"""

from typing import Any

import torch

from gpt.config.optimizer_keys import LR_SCALE
from gpt.config.schedule import OwnSchedule


class Schedule(torch.optim.lr_scheduler.LRScheduler):
    """Step s of the optimizer runs at `schedule.lr(s)`, times the `lr_scale` of groups of
    parameters that have one."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: OwnSchedule):
        self._schedule = schedule
        super().__init__(optimizer)

    @property
    def lr(self) -> float:
        """Learning rate of the next step, before any scale."""
        return self._schedule.lr(self.last_epoch + 1)

    def get_lr(self) -> list[float | torch.Tensor]:
        lr = self.lr
        return [lr * group.get(LR_SCALE, 1.0) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict) -> None:
        self.last_epoch = state["last_epoch"]


def set_lr(ds: Any) -> None:
    """Give the optimizer the learning rate that its schedule is at, if it has one. ds: DeepSpeed's
    engine."""
    if ds.lr_scheduler is not None:
        for group, lr in zip(ds.optimizer.param_groups, ds.lr_scheduler.get_lr()):
            group["lr"] = lr

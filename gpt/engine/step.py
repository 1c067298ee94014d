"""One optimiser step over a global batch: forward and backward passes, and an update, or none.

Part of the boundary that gpt/engine/boundary.py is: it calls DeepSpeed's objects, but needs nothing
of its modules.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpt.cluster.world import World, to_device
from gpt.engine import loss_scale
from gpt.engine.gradients import forget
from gpt.engine.loss_scale import LossScaleExhausted
from gpt.engine.optimizer import without_steps
from gpt.engine.schedule import set_lr
from gpt.engine.shards import Shards


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step was."""

    applied: bool  # False: nothing was changed but, after an fp16 overflow, the loss scale
    refused: bool  # not applied because `accept` was against it, on all ranks
    exhausted: bool  # an fp16 overflow at a loss scale that can sink no further
    # mean over this rank's part of the global batch, nats per token; float64, on the device
    loss: torch.Tensor
    # 2-norm of the whole gradient before clipping; float64, on the device
    grad_norm: torch.Tensor
    norms: dict | None  # {"weight" | "gradient" | "update": {parameter group: 2-norm}}


class Steps:
    """The optimiser steps of DeepSpeed's engine `ds`. stage: of ZeRO. names: {parameter: name}."""

    def __init__(self, ds: Any, stage: int, shards: Shards, names: dict, world: World):
        self._ds = ds
        self._stage = stage
        self._shards = shards
        self._names = names
        self._world = world

    def take(
        self,
        batch: np.ndarray,
        want_norms: bool,
        accept: Callable[[float], bool] | None,
        mark: Callable[[str], None],
        watch: AbstractContextManager | None,
    ) -> StepResult:
        """One step, as gpt.engine.boundary.Engine.step tells."""
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        before_update = None
        refused = False
        exhausted = False
        for index, micro_batch in enumerate(to_device(batch, self._world.device), 1):
            last = index == len(batch)
            with watch or nullcontext():
                loss = self._ds(micro_batch[:, :-1], micro_batch[:, 1:])
            total += loss.detach() / len(batch)
            if last and accept is not None:
                mean_loss = self._world.sum(total.clone()).item() / self._world.size
                refused = not accept(mean_loss)
                if refused:
                    loss = loss_scale.refused(loss)
            mark("forward")
            self._ds.backward(loss)
            mark("backward")
            if want_norms and last:
                before_update = self._shards.before_update(loss_scale.current(self._ds))
            try:
                applied = self._update(last, refused)
            except LossScaleExhausted:
                applied = False
                exhausted = True
            mark("step")
        norms = self._shards.norms(before_update) if before_update and applied else None
        return StepResult(applied, refused, exhausted, total, self._grad_norm(), norms)

    def _update(self, last: bool, refused: bool) -> bool:
        """Have the optimizer step if this was the last micro-batch; returns whether it did."""
        if last and self._stage == 0:  # where DeepSpeed tells no norm
            self._norm = self._shards.gradient_norm()
            if refused or not math.isfinite(self._norm):
                self._pass_over()
                return False
        with loss_scale.unmoved(self._ds) if refused else nullcontext():
            loss_scale.step(self._ds)
        applied = self._ds.was_step_applied()
        if last and not applied and self._stage in (1, 2):
            forget(self._ds.optimizer)
        return applied

    def _pass_over(self):
        """Stage 0, where nothing else keeps a bad gradient from the weights: DeepSpeed's step
        without the optimizer's own, and its schedule is set back."""
        for parameter in self._names:
            parameter.grad = None
        schedule = self._ds.lr_scheduler
        before = schedule.state_dict() if schedule is not None else None
        with without_steps(self._ds.optimizer):
            self._ds.step()
        if schedule is not None:
            schedule.load_state_dict(before)
        set_lr(self._ds)

    def _grad_norm(self) -> torch.Tensor:
        """Gradient norm of the last update, as a tensor on the device: nothing waits for it."""
        norm = self._norm if self._stage == 0 else self._ds.get_global_grad_norm()
        if torch.is_tensor(norm):
            return norm.to(self._world.device, torch.float64)
        norm = math.nan if norm is None else norm  # before the first update
        return torch.full((), norm, dtype=torch.float64, device=self._world.device)

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
from gpt.engine.cuda_graph import GraphedPasses
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
    """The optimiser steps of DeepSpeed's engine `ds`. stage: of ZeRO. names: {parameter: name}.
    graphed: makes the passes in DeepSpeed's place; None: none does."""

    def __init__(
        self,
        ds: Any,
        stage: int,
        shards: Shards,
        names: dict,
        world: World,
        graphed: GraphedPasses | None,
    ):
        self._ds = ds
        self._stage = stage
        self._shards = shards
        self._names = names
        self._world = world
        self._graphed = graphed

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
        if self._graphed is not None:
            self._graphed.begin(loss_scale.current(self._ds))
        for index, micro_batch in enumerate(to_device(batch, self._world.device), 1):
            last = index == len(batch)
            loss = self._forward(micro_batch, watch)
            total += loss.detach() / len(batch)
            if last and accept is not None:
                mean_loss = self._world.sum(total.clone()).item() / self._world.size
                refused = not accept(mean_loss)
            mark("forward")
            self._backward(loss, last, refused)
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

    def _forward(
        self, micro_batch: torch.Tensor, watch: AbstractContextManager | None
    ) -> torch.Tensor:
        """The loss of a micro-batch; a graph makes the backward pass with it."""
        if self._graphed is not None:
            return self._graphed.run(micro_batch, watch)
        with watch or nullcontext():
            return self._ds(micro_batch[:, :-1], micro_batch[:, 1:])

    def _backward(self, loss: torch.Tensor, last: bool, refused: bool) -> None:
        if self._graphed is None:
            self._ds.backward(loss_scale.refused(loss) if refused else loss)
        elif last:
            self._graphed.hand_over(refused)

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

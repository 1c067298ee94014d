"""DeepSpeed's Muon, changed where it hides the gradient.

DeepSpeed's ZeRO puts Muon's steps in the place of the gradients that they are made of, before it
takes the norm and looks for overflow. Here both are taken of the gradients.

Part of the boundary that gpt/engine/boundary.py is: it changes DeepSpeed's objects, but needs
nothing of its modules.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpt.cluster.world import World
from gpt.engine.gradients import norm_over_ranks


@contextmanager
def left_uncompiled(compiler: Any) -> Iterator[None]:
    """Inside, DeepSpeed's Muon is imported without torch.compile, which needs a compiler and a new
    graph for every shape of matrix, and whose machinery each rank would load, for DeepSpeed imports
    its Muon for every optimizer. compiler: the module deepspeed.runtime.compiler."""
    usual = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        yield
    finally:
        compiler.compile = usual


def keep_gradient_norms(zero: Any, stage: int, world: World) -> dict:
    """Have a ZeRO optimizer with Muon take norms of gradients, and leave Muon's momenta alone where
    one is not finite; after gpt.engine.gradients.find_by_norm.

    zero: DeepSpeed's, at stage 1, 2 or 3. Returns {parameter: 2-norm of this rank's stretch of its
    gradient, times the loss scale; float64}, of the parameters that Muon updates, which each step
    fills anew between backward and update.
    """
    norms: dict = {}
    norm_of_others = zero.get_grad_norm_direct

    def norm(gradients: Any, parameters: list, norm_type: int = 2) -> torch.Tensor:
        if not parameters or not parameters[0].use_muon:
            return norm_of_others(gradients, parameters, norm_type)
        total = norm_over_ranks([norms[parameter] for parameter in parameters], world)
        # which DeepSpeed multiplies Muon's norms by
        return total / float(zero.loss_scale)

    zero.get_grad_norm_direct = norm
    if stage == 3:
        _note_at_stage_3(zero, norms, world)
    else:
        _note_below_stage_3(zero, norms)
    return norms


def _note_below_stage_3(zero: Any, norms: dict) -> None:
    flatten = zero.get_flat_partition

    def note_and_flatten(
        parameters: list, first_offset: int, size: int, *arguments: Any, **named: Any
    ) -> Any:
        group = named["param_group_idx"]
        if parameters and parameters[0].use_muon:
            start, room = first_offset, int(size)
            for parameter, gradient in zip(parameters, zero.all_grad_tensors[group]):
                own = gradient.flatten()[start:][:room]
                norms[parameter] = torch.linalg.vector_norm(own, dtype=torch.float64)
                room -= own.numel()
                start = 0
        return flatten(parameters, first_offset, size, *arguments, **named)

    zero.get_flat_partition = note_and_flatten


def _note_at_stage_3(zero: Any, norms: dict, world: World) -> None:
    apply = zero._apply_muon_to_accumulated_grads

    def note_and_apply() -> None:
        for index, group in enumerate(zero.fp16_groups):
            if zero.sub_groups_using_muon[index]:
                for parameter, stretch in zip(group, zero.averaged_gradients[index]):
                    norms[parameter] = torch.linalg.vector_norm(stretch, dtype=torch.float64)
        # below stage 3 DeepSpeed keeps the momenta of a step that is left out by itself
        if norm_over_ranks(list(norms.values()), world).isfinite():
            apply()

    zero._apply_muon_to_accumulated_grads = note_and_apply

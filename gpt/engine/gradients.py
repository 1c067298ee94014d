"""How DeepSpeed's ZeRO sums, judges and forgets gradients, changed where it is slow or wrong.

DeepSpeed looks for infinities and NaN in every parameter's gradient (below ZeRO 3 thirteen kernels
each) and takes its norm afterwards (two more). The norm alone tells both: of a gradient with a
number that is not finite it is not finite either, and DeepSpeed refuses such an update by itself.

Part of the boundary that gpt/engine/boundary.py is: it changes DeepSpeed's objects, but needs
nothing of its modules.
"""

from collections.abc import Iterable
from typing import Any

import torch

from gpt.cluster.world import World


def find_by_norm(optimizer: Any, world: World) -> None:
    """Have a ZeRO optimizer find overflow by the gradient's norm, in one pass.

    optimizer: DeepSpeed's, at stage 1, 2 or 3. Each rank holds its own part of the gradient.
    Squares are added in fp64: in fp32 a CPU, which adds them one after another, is off by a
    hundredth at 10^8 of them.
    """

    def norm(gradients: Any, parameters: Iterable[torch.nn.Parameter], norm_type: int = 2):
        whole = getattr(gradients, "flat_partition", None)
        tensors = list(gradients) if whole is None else [whole]
        return norm_over_ranks(torch._foreach_norm(tensors, 2, dtype=torch.float64), world)

    def norm_of_offloaded(parameters: Iterable[torch.nn.Parameter]):
        """Of gradients in host memory, whose norms were taken on the device before. They are scaled
        on the host, where their norm must be, too."""
        taken = optimizer.norm_for_param_grads
        ids = map(optimizer.get_param_id, parameters)
        norms = [taken[number] for number in ids if number in taken]
        return norm_over_ranks(norms, world).cpu()

    optimizer.check_overflow = lambda partition_gradients=True: None
    optimizer.update_offload_overflow_tracker = lambda gradient: None
    optimizer.get_grad_norm_direct = norm
    optimizer.complete_grad_norm_calculation_for_cpu_offload = norm_of_offloaded


def norm_over_ranks(
    norms: list[torch.Tensor] | tuple[torch.Tensor, ...], world: World
) -> torch.Tensor:
    """2-norm of what all ranks have, from norms of each rank's parts, float64; fp32."""
    if not norms:  # a rank beyond the last parameter
        norms = [torch.zeros((), dtype=torch.float64, device=world.device)]
    squares = torch.stack(norms).square().sum()
    return world.sum(squares).sqrt().float()


def sum_in_fp32(optimizer: Any) -> None:
    """Have ZeRO 1 sum the bf16 gradients of micro-batches in fp32, as it does those of fp16.

    Told so by data_types.grad_accum_dtype, DeepSpeed would take its BF16_Optimizer, whose
    checkpoints cannot be consolidated.
    """
    optimizer.gradient_accumulation_dtype = torch.float32
    optimizer.use_separate_grad_accum = optimizer.use_grad_accum_attribute = True
    optimizer._fill_param_grad_accum_attribute = _sum_up
    # neither contiguous_gradients nor overlap_comm needs them
    if not optimizer._grad_acc_hooks:
        optimizer.create_gradient_handling_hooks()


def _sum_up(parameter: Any) -> None:
    """As DeepSpeed does it, in one kernel: without first a cast of the gradient as a tensor of its
    own."""
    if parameter.grad is None:
        return
    if parameter.grad_accum is None:
        parameter.grad_accum = parameter.grad.float()
    else:
        parameter.grad_accum.add_(parameter.grad)
    parameter.grad = None


def forget(optimizer: Any) -> None:
    """After an update that ZeRO 1 or 2 left out: with the optimizer in host memory, DeepSpeed would
    sum the next batch's gradients upon what it refused."""
    for group in optimizer.averaged_gradients:
        optimizer.averaged_gradients[group] = None

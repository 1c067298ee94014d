"""Where in a model the first value that is not finite arises."""

from collections.abc import Callable

import torch


def first_nonfinite(model: torch.nn.Module, run_passes: Callable[[], None]) -> str | None:
    """The first module whose output is not finite, or is reached by a gradient that is not, while
    `run_passes` computes forward and backward passes; None if all are finite."""
    places: list[str] = []
    named = [(name, module) for name, module in model.named_modules() if name]
    hooks = [module.register_forward_hook(_watch(name, places)) for name, module in named]
    run_passes()
    for hook in hooks:
        hook.remove()
    return places[0] if places else None


def _watch(name: str, places: list[str]):
    """A forward hook that adds to `places` what is not finite at this module's output."""

    def look_at_gradient(gradient: torch.Tensor) -> None:
        if not _is_finite(gradient):
            places.append(f"the gradient of the output of {name}")

    def look_at_output(
        module: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple
    ) -> None:
        for value in output if isinstance(output, tuple) else (output,):
            if not torch.is_tensor(value):
                continue
            if not _is_finite(value):
                places.append(f"the output of {name}")
            elif value.requires_grad:
                value.register_hook(look_at_gradient)

    return look_at_output


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())

"""A model's weights brought to their places before DeepSpeed takes the model.

Part of the boundary that gpt/engine/boundary.py is: what it needs of DeepSpeed is passed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpt.architecture.architecture import set_parameter


def place(
    model: torch.nn.Module,
    weights: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    device: torch.device,
    settings: dict,
    zero_init: Callable,
) -> None:
    """Give a model on torch's meta device its parameters one at a time: on the device, whole or,
    under ZeRO 3, cut up and this rank's stretch kept.

    weights: (name, fp32 tensor), the next made when the last is in its place. settings: DeepSpeed's
    configuration. zero_init: deepspeed.zero.Init.
    """
    first: Any = None
    for name, values in weights:
        parameter = torch.nn.Parameter(values.to(device, dtype))
        set_parameter(model, name, parameter)
        if settings["zero_optimization"]["stage"] == 3:
            if first is None:  # makes of it a parameter that can do the same to others
                module = torch.nn.ParameterList([parameter])
                zero_init(module=module, config_dict_or_path=settings)
                first = parameter
            else:
                first.convert_to_zero_parameters(param_list=[parameter])
        del values  # before the next is drawn
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


@contextmanager
def keeping_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Have a model's buffers keep their precision, whatever is made of the model inside."""
    buffers = dict(model.named_buffers())
    yield
    for name, values in buffers.items():
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, values)

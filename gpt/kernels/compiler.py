"""What torch.compile needs is loaded where something is compiled, and nowhere else: it takes a core
1.7 s, more than all the rest of torch does, and with inductor 3 s, at each start of each rank."""

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MACHINERY = "torch._dynamo"
# Torch keeps the compiler away from these, which every run calls, and loads it for that.
KEPT_FROM_COMPILER = (
    torch.optim.Optimizer.add_param_group,
    torch.optim.Optimizer.load_state_dict,
    torch.optim.Optimizer.state_dict,
    torch.optim.Optimizer.zero_grad,
)
# The engine's of torch, whose steps load it for a break in a graph that nobody draws.
OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def is_loaded() -> bool:
    return MACHINERY in sys.modules


def eagerly() -> AbstractContextManager:
    """Inside, what has been compiled runs eagerly."""
    return torch.compiler.set_stance("force_eager") if is_loaded() else nullcontext()


def leave_unloaded() -> None:
    """From here on torch's optimizers do not load torch.compile's machinery. Once something else
    has, they are kept from it as ever."""
    for function in KEPT_FROM_COMPILER:
        if hasattr(function, "__wrapped__"):
            _call_directly(function)
    for kind in OPTIMIZERS:
        if "step" in vars(kind):
            setattr(kind, "step", torch.no_grad()(inspect.unwrap(kind.step)))  # noqa: B010


def _call_directly(wrapper: Any) -> None:
    """wrapper: of torch._disable_dynamo, which looks for this attribute before it loads any."""
    function = wrapper.__wrapped__

    def until_loaded(*arguments: Any, **named: Any) -> Any:
        if not is_loaded():
            return function(*arguments, **named)
        del function.__dynamo_disable
        return wrapper(*arguments, **named)

    function.__dynamo_disable = until_loaded


class NothingDrawn(TorchFunctionMode):
    """Inside, what is on the meta device is given no normal values, which it could not hold: torch
    decomposes them there, and loads the compiler's machinery for that."""

    DRAWS = (torch.nn.init.normal_, torch.Tensor.normal_)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in self.DRAWS:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    """One that torch does not load its compiler's machinery for, in order to keep it off."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

"""From a file of the user's to the module that it builds.

A model file defines

    build(shape, **options) -> nn.Module

shape is a Shape. The module maps tokens (B, T) int64 to hidden states (B, T, C), and its attribute
`output_layer` names the submodule whose weight (V, C) makes logits of them; without that attribute
it maps tokens to logits (B, T, V), which takes more memory. It never sees targets: the loss is the
trainer's own.

What the module may have besides:

    logit_cap                        logits become logit_cap * tanh(logits / logit_cap)
    flops_per_token                  of its matrix products in training, where counting cannot tell
    fused_matrices                   {parameter name: how many equal matrices lie one under the
                                     other in it}, such as 3 of q, k and v, which Muon takes apart
    initial_weight(name, shape, generator) -> Tensor
                                     first values of each parameter; without it those that build
                                     gives them, after torch.manual_seed
    without_gradient                 names of parameters that may stay without a gradient

Its buffers are constants that build computes, registered with persistent=False. They keep their own
precision, whatever the run's is.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from gpt.architecture.own_python import BUILD, function_of, require_options, telling
from gpt.config.options import MODEL_OPTIONS_KEY
from gpt.config.own_code import OwnCode
from gpt.config.shape import ModelConfig
from gpt.errors import UserError
from gpt.kernels.compiler import NothingDrawn


@dataclasses.dataclass(frozen=True)
class Shape(ModelConfig):
    """What `build` gets: the sizes of a ModelConfig, and which kernels the run computes with."""

    # "torch" or "triton", for functions of gpt.kernels that take it
    kernels: str = "torch"


def build_module(
    code: OwnCode,
    shape: ModelConfig,
    options: Mapping[str, Any],
    kernels: str = "torch",
    seed: int | None = None,
) -> nn.Module:
    """What a model file's `build` returns: its parameters on torch's meta device, or, where there
    is a seed, on the CPU with the values that they begin with. Its buffers have their values: those
    on paper the same in every run, rank and evaluation, though they be drawn.

    Raises UserError where the file cannot do it.
    """
    build = build_of(code)
    require_options(code, build, options, MODEL_OPTIONS_KEY, given=1)
    full_shape = Shape(**dataclasses.asdict(shape), kernels=kernels)
    parameters = _on_paper() if seed is None else nullcontext()
    with telling(code, BUILD), torch.device("cpu"), parameters, _seeded(seed or 0):
        module = build(full_shape, **options)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{code.path}: {BUILD} returns {type(module).__name__}, not a torch.nn.Module",
            mend="return the model",
        )
    return module


def build_of(code: OwnCode) -> Callable[..., nn.Module]:
    """A model file's `build`. Raises UserError where it cannot be run, or defines none."""
    return function_of(code, BUILD, f"{BUILD}(shape, **options) -> nn.Module")


@contextmanager
def _on_paper() -> Iterator[None]:
    """Inside, every parameter that a module takes lies on the meta device, without values; one
    that several modules share stays one."""
    register = nn.Module.register_parameter
    moved: dict[nn.Parameter, nn.Parameter] = {}

    def register_on_paper(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
            parameter = moved[parameter]
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_paper  # type: ignore[assignment, method-assign]
    try:
        with NothingDrawn():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, whoever draws numbers begins at a seed; outside, nobody notices."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

"""Which model a run trains, and how to make one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpt.architecture.language_model import LanguageModel
from gpt.architecture.own_module import build_module
from gpt.config.own_code import OwnCode
from gpt.config.run_config import Config
from gpt.config.shape import ModelConfig
from gpt.kernels import compiler
from gpt.model import GPT

compiler.leave_unloaded()

Model = GPT | LanguageModel


@dataclass(frozen=True)
class Architecture:
    """The GPT, or the model of a file, in a shape."""

    shape: ModelConfig
    code: OwnCode | None = None  # None: the GPT
    options: Mapping[str, Any] = field(default_factory=dict)  # arguments of the file's build

    @classmethod
    def of(cls, config: Config) -> "Architecture":
        """That of a run."""
        return cls(config.model, config.model_code, config.options.model_options or {})

    def __str__(self) -> str:
        return "the GPT" if self.code is None else str(self.code)

    def build(
        self, kernels: str = "torch", activation_checkpointing: bool = False, compile: str = "none"
    ) -> Model:
        """The model without its parameters' memory: their values come one by one, by
        `initial_weights` or from a file. Raises UserError where the user's file cannot make it."""
        if self.code is None:
            with torch.device("meta"), compiler.NothingDrawn():
                return GPT(self.shape, None, activation_checkpointing, kernels, compile)
        # compiled: plain torch inside, for no compiler fuses across operations of our own
        inside = kernels if compile == "none" else "torch"
        build_body = partial(build_module, self.code, self.shape, self.options, inside)
        return LanguageModel(
            build_body(),
            self.code,
            self.shape,
            lambda seed: build_body(seed=seed),
            activation_checkpointing,
            kernels,
            compile,
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{parameter name: shape}"""
        return {name: tuple(p.shape) for name, p in self.build().named_parameters()}

    def parameters(self) -> int:
        """Number of trained parameters, one that several modules share counted once."""
        return sum(map(math.prod, self.shapes().values()))

    def with_weights(self, weights: Mapping[str, Tensor]) -> Model:
        """The model with these parameters, which are its own by name and shape, for evaluation."""
        model = self.build()
        for name, values in weights.items():
            set_parameter(model, name, nn.Parameter(values))
        return model.eval()


def build(config: Config, kernels: str) -> Model:
    """The model that a run trains, without its memory. kernels: "torch" or "triton"."""
    options = config.options
    return Architecture.of(config).build(kernels, options.activation_checkpointing, options.compile)


def set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter in the place of the one that bears its name, in every module that has it."""
    owner, _, own_name = name.rpartition(".")
    old = getattr(model.get_submodule(owner), own_name)
    for module in model.modules():
        own = list(module.named_parameters(recurse=False, remove_duplicate=False))
        for key, other in own:
            if other is old:
                setattr(module, key, parameter)

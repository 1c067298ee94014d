"""From a file of the user's to the optimizer that it builds.

An optimizer file defines

    build(named_parameters, **options) -> torch.optim.Optimizer

named_parameters is a list of (name, parameter). Each group of the optimizer has a learning rate
"lr", which the run's schedule sets before every step, times the group's "lr_scale" where it has
one; without a schedule it stays as built.

What step needs from one step to the next stands in the optimizer's `state` alone, under each
parameter: checkpoints hold that, and bring it to other ranks and ZeRO stages.
gpt.optimizers.trial tries whether this one does.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from gpt.architecture.own_python import BUILD, function_of, require_options, telling
from gpt.config.keys import is_number
from gpt.config.options import OPTIMIZER_OPTIONS_KEY
from gpt.config.own_code import OwnCode
from gpt.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]  # {parameter name: shape}
SIGNATURE = "build(named_parameters, **options) -> torch.optim.Optimizer"
MEND = "mend it"


def build_optimizer(
    code: OwnCode, options: Mapping[str, Any], parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """What an optimizer file's `build` returns. Raises UserError where it cannot, or where that is
    no optimizer of all these parameters, each once."""
    named_parameters = list(parameters)
    build = function_of(code, BUILD, SIGNATURE)
    require_options(code, build, options, OPTIMIZER_OPTIONS_KEY, given=1)
    with telling(code, BUILD, MEND):
        optimizer = build(list(named_parameters), **options)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"{code.path}: {BUILD} returns {type(optimizer).__name__}, not a torch.optim.Optimizer",
            mend="return the optimizer",
        )
    names = {parameter: name for name, parameter in named_parameters}
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    missing = [name for parameter, name in names.items() if parameter not in set(updated)]
    if missing or len(updated) != len(names) or len(set(updated)) != len(names):
        what = f"leaves out {missing[0]}" if missing else "has parameters that it was not given"
        raise UserError(
            f"{code.path}: the optimizer {what}", mend="give it every parameter, each once"
        )
    for group in optimizer.param_groups:
        _require_rates(code, group)
    return optimizer


def _require_rates(code: OwnCode, group: Mapping[str, Any]) -> None:
    """Raise UserError where a group has no learning rate that a schedule can set."""
    if "lr" not in group:
        raise UserError(
            f'{code.path}: a group of the optimizer\'s parameters has no learning rate "lr"',
            mend="keep it there, where the schedule sets it",
        )
    for name in ("lr", "lr_scale"):
        value = group.get(name, 1.0)
        if not is_number(value) or not 0 <= value < math.inf:
            raise UserError(
                f'{code.path}: "{name}" of a group of the optimizer\'s parameters is {value!r}',
                mend="give a number of at least 0",
            )


def build_for_zero(
    code: OwnCode, options: Mapping[str, Any], shapes: Shapes, parameters: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer over parameters that ZeRO has cut up or will cut up, built by their shapes.

    shapes: of the parameters while they are whole.
    """
    stand_ins = {
        name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in shapes.items()
    }
    optimizer = build_optimizer(code, options, stand_ins.items())
    names = {stand_in: name for name, stand_in in stand_ins.items()}
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[stand_in]] for stand_in in group["params"]]
    return optimizer

"""From a file of the user's to the optimizer that it builds, and whether that fits the run.

An optimizer file defines

    build(named_parameters, **options) -> torch.optim.Optimizer

named_parameters is a list of (name, parameter). Each group of the optimizer has a learning rate
"lr", which the run's schedule sets before every step, times the group's "lr_scale" where it has
one; without a schedule it stays as built.

ZeRO hands an optimizer flat stretches of parameters. Of one that works element by element the
steps are the same; whether this one does is tried on the CPU, on parameters of a few elements.
"""

import io
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpt.architecture.own_module import BUILD
from gpt.architecture.own_python import function_of, telling
from gpt.config.keys import is_number
from gpt.config.options import TRIAL_STEPS
from gpt.config.own_code import OwnCode
from gpt.errors import UserError, in_brief

Shapes = Mapping[str, tuple[int, ...]]  # {parameter name: shape}
SIGNATURE = "build(named_parameters, **options) -> torch.optim.Optimizer"
Tensors = Mapping[str, nn.Parameter]
MEND = "mend it"
STAGE_0 = "use --zero_optimization.stage 0, in fp32"
# of a trial: the most rows and columns of a parameter, the largest for which all have so many
# elements; its steps; and into how many stretches a flat group is cut
LONGEST = (256, 128, 64, 32, 12)
MOST_ELEMENTS = 1 << 22
STEPS = 3
STRETCHES = 2


def build_optimizer(
    code: OwnCode, options: Mapping[str, Any], parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """What an optimizer file's `build` returns. Raises UserError where it cannot, or where that is
    no optimizer of all these parameters, each once."""
    named_parameters = list(parameters)
    build = function_of(code, BUILD, SIGNATURE)
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


def require_fitting(
    code: OwnCode, options: Mapping[str, Any], shapes: Shapes, zero_stage: int
) -> None:
    """Raise UserError where a run cannot use the optimizer, as a trial of a few steps tells."""

    def build(parameters: Tensors) -> torch.optim.Optimizer:
        return build_optimizer(code, options, parameters.items())

    # a few steps of large parameters, and many of small ones, for what begins later
    for longest, steps in ((_longest(shapes), STEPS), (LONGEST[-1], TRIAL_STEPS)):
        small = {name: tuple(min(n, longest) for n in shape) for name, shape in shapes.items()}
        _try(code, build, small, steps, zero_stage)


def _try(
    code: OwnCode,
    build: Callable[[Tensors], torch.optim.Optimizer],
    shapes: Shapes,
    steps: int,
    zero_stage: int,
) -> None:
    whole = _drawn(shapes, 0)
    gradients = [_drawn(shapes, step + 1) for step in range(steps)]
    with torch.random.fork_rng(devices=[]):
        optimizer = build(whole)
        if optimizer.state:
            raise UserError(
                f"{code.path}: the optimizer keeps states before its first step, which ZeRO would"
                " lose",
                mend="make them in the first step",
            )
        with telling(code, "the optimizer's step", MEND):
            for gradient in gradients:
                _step(optimizer, whole, gradient)
    _require_plain_state(code, optimizer)
    if not zero_stage:
        return
    for rank in range(STRETCHES):
        if not _makes_the_same(build, code, _drawn(shapes, 0), gradients, whole, rank):
            raise UserError(
                f"{code.path}: the optimizer needs whole matrices (of flat stretches it makes"
                f" other steps), and ZeRO stage {zero_stage} has none",
                mend=STAGE_0,
            )


def _longest(shapes: Shapes) -> int:
    """The most rows and columns for which a trial's parameters have no more than MOST_ELEMENTS, so
    that equal shapes stay equal."""
    for longest in LONGEST:
        sizes = [math.prod(min(n, longest) for n in shape) for shape in shapes.values()]
        if sum(sizes) <= MOST_ELEMENTS:
            break
    return longest


def _drawn(shapes: Shapes, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def _step(
    optimizer: torch.optim.Optimizer, parameters: Tensors, gradients: Mapping[str, Tensor]
) -> None:
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].detach().clone()
    optimizer.step()
    optimizer.zero_grad()


def _require_plain_state(code: OwnCode, optimizer: torch.optim.Optimizer) -> None:
    """Raise UserError where a checkpoint, from which no code is loaded, cannot hold the state."""
    file = io.BytesIO()
    with telling(code, "saving the optimizer's state", MEND):
        torch.save(optimizer.state_dict(), file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{code.path}: a checkpoint cannot hold the optimizer's state ({in_brief(error)})",
            mend="keep tensors, numbers and texts in its state and in its groups",
        ) from error


def _makes_the_same(
    build: Callable[[Tensors], torch.optim.Optimizer],
    code: OwnCode,
    parameters: Tensors,
    gradients: list[Tensors],
    whole: Tensors,
    rank: int,
) -> bool:
    """Whether steps of a flat stretch of each group, as a rank of ZeRO has them, make the same
    weights as steps of whole parameters. whole: after those."""
    optimizer = build(parameters)
    names = {parameter: name for name, parameter in parameters.items()}
    members = {}
    stretches = {}
    for index, group in enumerate(optimizer.param_groups):
        key = str(index)
        members[key] = [names[parameter] for parameter in group["params"]]
        stretches[key] = nn.Parameter(_stretch(parameters, members[key], rank))
        group["params"] = [stretches[key]]
    what = "the optimizer's step of a flat stretch, as ZeRO has them,"
    with torch.random.fork_rng(devices=[]), telling(code, what, STAGE_0):
        for gradient in gradients:
            flat = {key: _stretch(gradient, group, rank) for key, group in members.items()}
            _step(optimizer, stretches, flat)
    return all(
        torch.allclose(stretches[key], _stretch(whole, group, rank), rtol=1e-4, atol=1e-6)
        for key, group in members.items()
    )


def _stretch(tensors: Mapping[str, Tensor], names: list[str], rank: int) -> Tensor:
    """A rank's part of tensors laid end to end."""
    flat = torch.cat([tensors[name].detach().flatten() for name in names])
    start = flat.numel() * rank // STRETCHES
    end = flat.numel() * (rank + 1) // STRETCHES
    return flat[start:end].clone()

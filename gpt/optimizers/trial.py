"""Whether the optimizer of a run can update its parameters, tried before a device is taken.

An optimizer of the user's own makes steps on the CPU, of small parameters with drawn gradients. Its
learning rate must be its groups' "lr", which the schedule sets. What it keeps must be in its state,
from which a run goes on, here as on other ranks and at other stages of ZeRO. And ZeRO hands an
optimizer flat stretches of parameters: one that works element by element makes the same steps of
them.
"""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gpt.architecture.architecture import Architecture
from gpt.architecture.own_python import telling
from gpt.config.optimizer_keys import LR_SCALE, MUON
from gpt.config.options import TRIAL_STEPS
from gpt.config.own_code import OwnCode
from gpt.config.run_config import Config
from gpt.errors import UserError, in_brief
from gpt.optimizers.groups import groups_of
from gpt.optimizers.own import MEND, Shapes, build_optimizer

Tensors = Mapping[str, nn.Parameter]
Build = Callable[[Tensors], torch.optim.Optimizer]
STAGE_0 = "use --zero_optimization.stage 0 --fp16.enabled false"
KEEP_IN_STATE = "keep what step needs in self.state[parameter]"
# the most rows and columns of a trial's parameter, the largest for which all have so many elements
LONGEST = (256, 128, 64, 32, 12)
MOST_ELEMENTS = 1 << 22
STEPS = 3
RATE = 0.01
# into how many a flat group is cut
STRETCHES = 2


def require_optimizer(config: Config) -> None:
    """Raise UserError where a run's optimizer cannot update the parameters of its model."""
    code = config.optimizer_code
    is_muon = code is None and config.deepspeed["optimizer"]["type"] == MUON
    if code is None and not is_muon:
        return
    model = Architecture.of(config).build()
    if code is None:
        groups_of(model, config)
        return
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    require_fitting(code, config.options.optimizer_options or {}, shapes, config.zero_stage)


def require_fitting(
    code: OwnCode, options: Mapping[str, Any], shapes: Shapes, zero_stage: int
) -> None:
    """Raise UserError where a run cannot use the optimizer, as a trial of a few steps tells."""

    def build(parameters: Tensors) -> torch.optim.Optimizer:
        return build_optimizer(code, options, parameters.items())

    large = _Trial(code, build, _of_at_most(shapes, _longest(shapes)), STEPS)
    large.require_plain_state()
    # many steps of small parameters, for what begins later
    small = _Trial(code, build, _of_at_most(shapes, LONGEST[-1]), TRIAL_STEPS)
    small.require_groups_kept()
    small.require_rates_followed()
    small.require_state_whole()
    if zero_stage:
        for trial in (large, small):
            trial.require_element_wise(zero_stage)
    else:
        small.require_steps_without_a_gradient()


class _Trial:
    """Steps of the optimizer on whole parameters, and others held against them."""

    def __init__(self, code: OwnCode, build: Build, shapes: Shapes, steps: int):
        self._code = code
        self._build = build
        self._shapes = shapes
        self._gradients = [_drawn(shapes, step + 1) for step in range(steps)]
        self._half = steps // 2
        parameters = _drawn(shapes, 0)
        with _drawing_alike():
            self._optimizer = build(parameters)
            self._settings = self._copied_settings()
            if self._optimizer.state:
                raise UserError(
                    f"{code.path}: the optimizer keeps states before its first step, which ZeRO"
                    " would lose",
                    mend="make them in the first step",
                )
            self._make_steps(self._optimizer, parameters, self._gradients[: self._half])
            self._at_half = _values(parameters)
            self._state_at_half = self._saved_state()
            self._drawn_at_half = torch.get_rng_state()
            self._make_steps(self._optimizer, parameters, self._gradients[self._half :])
        self._at_end = _values(parameters)

    def _make_steps(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Tensors,
        gradients: Sequence[Mapping[str, Tensor]],
        rate: float = RATE,
        what: str = "the optimizer's step",
        mend: str = MEND,
    ) -> None:
        """Steps at a learning rate. gradients: of each step; a parameter without one is left out
        there."""
        with telling(self._code, what, mend):
            for of_step in gradients:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get(LR_SCALE, 1.0)
                for name, parameter in parameters.items():
                    if name in of_step:
                        parameter.grad = of_step[name].detach().clone()
                optimizer.step()
                optimizer.zero_grad()

    def _copied_settings(self) -> list[dict[str, Any]]:
        """Of each group, all but its parameters and the rate that a schedule sets."""
        settings = []
        for group in self._optimizer.param_groups:
            others = {key: value for key, value in group.items() if key not in ("params", "lr")}
            with telling(self._code, "copying the values of the optimizer's groups", MEND):
                settings.append(copy.deepcopy(others))
        return settings

    def _saved_state(self) -> bytes:
        """As a checkpoint has it: what the class keeps beside state and groups is not in it."""
        file = io.BytesIO()
        with telling(self._code, "saving the optimizer's state", MEND):
            torch.save(torch.optim.Optimizer.state_dict(self._optimizer), file)
        return file.getvalue()

    def require_plain_state(self) -> None:
        """Raise UserError where a checkpoint, from which no code is loaded, cannot hold the
        state."""
        try:
            torch.load(io.BytesIO(self._saved_state()), weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self._code.path}: a checkpoint cannot hold the optimizer's state"
                f" ({in_brief(error)})",
                mend="keep tensors, numbers and texts in its state and in its groups",
            ) from error

    def require_groups_kept(self) -> None:
        """Raise UserError where steps change values of the groups, which a run takes from the file
        alone, and of which ZeRO 3 hands one after another to a step of its own."""
        after = self._copied_settings()
        if len(after) != len(self._settings):
            raise UserError(
                f"{self._code.path}: the optimizer's steps change its groups of parameters",
                mend="make all groups in build",
            )
        for old, new in zip(self._settings, after):
            for key, value in new.items():
                if key not in old or not _is_same(old[key], value):
                    raise UserError(
                        f"{self._code.path}: the optimizer's steps change {key!r} of a group of"
                        " parameters, which a run that goes on would lose",
                        mend=KEEP_IN_STATE,
                    )

    def require_rates_followed(self) -> None:
        """Raise UserError where the groups' "lr" is not the rate of the steps."""
        parameters = _drawn(self._shapes, 0)
        with _drawing_alike():
            optimizer = self._build(parameters)
            self._make_steps(optimizer, parameters, self._gradients[:STEPS], rate=0.0)
        moved = _first_other(_values(parameters), _values(_drawn(self._shapes, 0)))
        if moved:
            raise self._ignoring_rate(f'moves {moved} at an "lr" of 0')
        parameters = _drawn(self._shapes, 0)
        with _drawing_alike():
            optimizer = self._build(parameters)
            self._make_steps(optimizer, parameters, self._gradients[: self._half])
            self._make_steps(optimizer, parameters, self._gradients[self._half :], RATE / 2)
        for name, values in parameters.items():
            is_moved = not torch.equal(self._at_end[name], self._at_half[name])
            if is_moved and torch.equal(values, self._at_end[name]):
                raise self._ignoring_rate(f'makes the same steps of {name} at half the "lr"')

    def _ignoring_rate(self, how: str) -> UserError:
        return UserError(
            f'{self._code.path}: the optimizer does not go by "lr" of its groups, which the'
            f" schedule sets: it {how}",
            mend='take group["lr"] as the rate, of weight decay too',
        )

    def require_state_whole(self) -> None:
        """Raise UserError where a new optimizer with the saved state goes on otherwise."""
        parameters = {name: nn.Parameter(values) for name, values in self._at_half.items()}
        with _drawing_alike():
            optimizer = self._build(parameters)
            state = torch.load(io.BytesIO(self._state_at_half), weights_only=True)
            with telling(self._code, "loading the optimizer's state", MEND):
                torch.optim.Optimizer.load_state_dict(optimizer, state)
            torch.set_rng_state(self._drawn_at_half)
            what = "the optimizer's step after its state was loaded"
            gradients = self._gradients[self._half :]
            self._make_steps(optimizer, parameters, gradients, what=what, mend=KEEP_IN_STATE)
        other = _first_other(_values(parameters), self._at_end)
        if other:
            raise UserError(
                f"{self._code.path}: a run that goes on would not be the same: with the optimizer's"
                f" state loaded into a new one, steps of {other} differ",
                mend=KEEP_IN_STATE,
            )

    def require_steps_without_a_gradient(self) -> None:
        """Raise UserError where the optimizer takes it for granted that each parameter has a
        gradient."""
        parameters = _drawn(self._shapes, 0)
        names = list(parameters)
        partial = []
        for index, gradients in enumerate(self._gradients[:STEPS]):
            without = names[index % len(names)]
            partial.append({name: g for name, g in gradients.items() if name != without})
        with _drawing_alike():
            self._make_steps(
                self._build(parameters),
                parameters,
                partial,
                what="the optimizer's step with a parameter that has no gradient",
                mend="pass over a parameter whose grad is None",
            )

    def require_element_wise(self, zero_stage: int) -> None:
        """Raise UserError where steps of flat stretches of the groups, as ranks of ZeRO have them,
        are others than those of whole parameters."""
        for rank in range(STRETCHES):
            if not self._makes_the_same(rank):
                raise UserError(
                    f"{self._code.path}: the optimizer needs whole matrices (of flat stretches it"
                    f" makes other steps), and ZeRO stage {zero_stage} has none",
                    mend=STAGE_0,
                )

    def _makes_the_same(self, rank: int) -> bool:
        parameters = _drawn(self._shapes, 0)
        with _drawing_alike():
            optimizer = self._build(parameters)
            names = {parameter: name for name, parameter in parameters.items()}
            members = {}
            stretches = {}
            for index, group in enumerate(optimizer.param_groups):
                key = str(index)
                members[key] = [names[parameter] for parameter in group["params"]]
                stretches[key] = nn.Parameter(_stretch(parameters, members[key], rank))
                group["params"] = [stretches[key]]
            flat = []
            for gradients in self._gradients:
                flat.append(
                    {key: _stretch(gradients, group, rank) for key, group in members.items()}
                )
            what = "the optimizer's step of a flat stretch, as ZeRO has them,"
            self._make_steps(optimizer, stretches, flat, what=what, mend=STAGE_0)
        return all(
            torch.allclose(
                stretches[key], _stretch(self._at_end, group, rank), rtol=1e-4, atol=1e-6
            )
            for key, group in members.items()
        )


@contextmanager
def _drawing_alike() -> Iterator[None]:
    """Inside, an optimizer that draws numbers begins with the same ones; outside, nobody
    notices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _longest(shapes: Shapes) -> int:
    """The most rows and columns for which a trial's parameters have no more than MOST_ELEMENTS, so
    that equal shapes stay equal."""
    for longest in LONGEST:
        sizes = map(math.prod, _of_at_most(shapes, longest).values())
        if sum(sizes) <= MOST_ELEMENTS:
            break
    return longest


def _of_at_most(shapes: Shapes, longest: int) -> Shapes:
    return {name: tuple(min(n, longest) for n in shape) for name, shape in shapes.items()}


def _drawn(shapes: Shapes, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def _values(parameters: Tensors) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _first_other(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str | None:
    """The first name under which there are other numbers."""
    for name, values in tensors.items():
        if not torch.allclose(values, others[name], rtol=0, atol=0, equal_nan=True):
            return name
    return None


def _is_same(value: Any, other: Any) -> bool:
    if torch.is_tensor(value) or torch.is_tensor(other):
        both = torch.is_tensor(value) and torch.is_tensor(other)
        return both and torch.equal(value, other)
    return bool(value == other)


def _stretch(tensors: Mapping[str, Tensor], names: list[str], rank: int) -> Tensor:
    """A rank's part of tensors laid end to end."""
    flat = torch.cat([tensors[name].detach().flatten() for name in names])
    start = flat.numel() * rank // STRETCHES
    end = flat.numel() * (rank + 1) // STRETCHES
    return flat[start:end].clone()

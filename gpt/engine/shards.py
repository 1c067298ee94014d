"""This rank's stretches of weights, gradients and optimizer states: their norms, whether they are
sound, and how whole tensors are brought into them. gpt.engine.layouts tells where each ZeRO stage
keeps them.

Part of the boundary that gpt/engine/boundary.py is: it reads and writes DeepSpeed's objects, but
needs nothing of its modules.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from gpt.checkpoint.zero_files import FullState
from gpt.cluster.world import World

# torch.nn.Parameter with the attributes that DeepSpeed hangs on it
Parameter = Any


class Home(NamedTuple):
    """Where the optimizer updates this rank's stretch of a parameter."""

    flat: torch.Tensor  # which the optimizer has as one of its parameters
    start: int
    size: int


class BeforeUpdate(NamedTuple):
    """What the norms of an update need of the weights and gradients before it."""

    norms: torch.Tensor  # of weights and gradients, float64 (2, parameters)
    negated: dict  # {parameter: minus this rank's stretch of its weight}


class Shards(ABC):
    """This rank's stretches of all parameters of one engine."""

    def __init__(self, ds: Any, names: dict, world: World):
        self._ds = ds
        self._names = names
        self._world = world
        # {parameter: 2-norm of its gradient} where something else has the gradient's place
        self._gradient_norms: dict = {}
        self._keeps_any_state = False

    @abstractmethod
    def _weight(self, parameter: Parameter) -> torch.Tensor | None:
        """This rank's own stretch of a parameter, fp32, or None where other ranks hold all
        of it."""

    @abstractmethod
    def _gradient(self, parameter: Parameter) -> torch.Tensor:
        """Gradient of `_weight(parameter)`, times the loss scale; only between backward and the
        update."""

    @abstractmethod
    def _own_stretch(self, parameter: Parameter, values: torch.Tensor) -> torch.Tensor:
        """This rank's part of a whole tensor of the parameter's shape, flat."""

    @abstractmethod
    def _home(self, parameter: Parameter) -> Home | None:
        """None where this rank holds nothing of the parameter."""

    @abstractmethod
    def _refresh_weights(self):
        """Have the weights of the hot loop follow their fp32 copies."""

    @property
    def _inner_optimizer(self):
        """What updates the stretches, without ZeRO around it."""
        return self._ds.optimizer.optimizer

    def gradient_norm(self) -> float:
        """2-norm of the whole gradient at stage 0, where every rank holds it; only between backward
        and the update."""
        norms = _norms([p.grad for p in self._names if p.grad is not None])
        return torch.linalg.vector_norm(torch.stack(norms)).item()

    @torch.no_grad()
    def before_update(self, loss_scale: float) -> BeforeUpdate:
        """What `norms` needs of weights and gradients; only between backward and the update.

        Until then it keeps 4 bytes for each parameter of this rank, beside the weights.
        """
        weights = self._held(self._weight)
        gradients = {p: self._gradient(p) for p in weights if p not in self._gradient_norms}
        of_gradients = {**_norms_of(gradients), **self._gradient_norms}
        norms = torch.stack(
            [self._in_order(_norms_of(weights)), self._in_order(of_gradients) / loss_scale]
        )
        negated = torch._foreach_neg(list(weights.values())) if weights else []
        return BeforeUpdate(norms, dict(zip(weights, negated)))

    @torch.no_grad()
    def norms(self, before: BeforeUpdate) -> dict:
        """2-norms of weight, gradient and update since `before` (from `before_update`) per
        parameter group: a module's own weights and biases."""
        changes = before.negated
        if changes:
            weights = self._held(self._weight)
            torch._foreach_add_(
                list(changes.values()), [weights[parameter] for parameter in changes]
            )
        of_changes = self._in_order(_norms_of(changes))
        squares = torch.cat([before.norms, of_changes[None]]).square()
        weight, gradient, update = self._world.sum(squares).tolist()
        return {
            "weight": self._by_group(weight),
            "gradient": self._by_group(gradient),
            "update": self._by_group(update),
        }

    @torch.no_grad()
    def first_nonfinite(self) -> str | None:
        """What is not finite of this rank's weights and optimizer states, padding left out; None if
        all is. States on a disk are not looked at."""
        stretches = {}
        for parameter, weight in self._held(self._weight).items():
            name = self._names[parameter]
            stretches[name] = weight
            for key, state in self._states(parameter, weight.numel()):
                stretches[f"{key} of {name}"] = state
        if not stretches:
            return None
        norms = [norm.to(self._world.device) for norm in _norms(list(stretches.values()))]
        finite = torch.stack(norms).isfinite().tolist()
        return next((name for name, is_good in zip(stretches, finite) if not is_good), None)

    def _states(self, parameter: Parameter, size: int) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, values) of the optimizer's states of this rank's stretch. size: of that."""
        home = self._home(parameter)
        assert home is not None, "this rank holds a stretch of it"
        for key, state in self._inner_optimizer.state.get(home.flat, {}).items():
            if not _is_of_weights(state):
                continue
            start, _ = self._place_in_state(parameter, home, key)
            if state.numel() >= start + size:
                yield key, state.view(-1).narrow(0, start, size)

    def _place_in_state(self, parameter: Parameter, home: Home, key: str) -> tuple[int, int]:
        """(where in an optimizer's state this rank's stretch begins, how long that state is)."""
        return home.start, home.flat.numel()

    @torch.no_grad()
    def first_misfit(self) -> str | None:
        """What of this rank's tensors does not fit together, as after a load of damaged files;
        None if all does."""
        for parameter, weight in self._held(self._weight).items():
            name = self._names[parameter]
            rounded = self._rounded_stretch(parameter)
            if rounded is not None and not torch.equal(rounded, weight.to(rounded)):
                return f"{name} is not what the optimizer updates"
            home = self._home(parameter)
            assert home is not None, "this rank holds a stretch of it"
            is_on_disk = home.flat.numel() < home.start + home.size
            for key, state in self._inner_optimizer.state.get(home.flat, {}).items():
                _, size = self._place_in_state(parameter, home, key)
                is_looked_at = _is_of_weights(state) and not self._keeps_any_state
                if is_looked_at and not is_on_disk and state.numel() != size:
                    return f"{key} of {name} has another size than the weights"
        return None

    def _rounded_stretch(self, parameter: Parameter) -> torch.Tensor | None:
        """The weights of the hot loop that follow `_weight(parameter)`; None where a load makes
        them from those."""
        return None

    def _held(self, stretch_of: Callable) -> dict:
        """{parameter: its stretch} of all that this rank holds a part of."""
        held = {}
        for parameter in self._names:
            stretch = stretch_of(parameter)
            if stretch is not None and stretch.numel():
                held[parameter] = stretch
        return held

    def _in_order(self, norms: dict) -> torch.Tensor:
        """{parameter: norm} of this rank's stretches as one tensor, 0 where it has none: float64
        (parameters,), on the device."""
        if not norms:
            return torch.zeros(len(self._names), dtype=torch.float64, device=self._world.device)
        none = next(iter(norms.values())).new_zeros(())
        all_norms = torch.stack([norms.get(parameter, none) for parameter in self._names])
        return all_norms.to(self._world.device)

    def _by_group(self, squares: list[float]):
        sums: dict[str, float] = {}
        for name, square in zip(self._names.values(), squares):
            group = name.rpartition(".")[0]
            sums[group] = sums.get(group, 0.0) + square
        return {group: math.sqrt(total) for group, total in sums.items()}

    def adopt(self, full: FullState) -> None:
        """Take over whole weights and moments, each rank its stretches."""
        inner = self._inner_optimizer
        for parameter, name in self._names.items():
            home = self._home(parameter)
            if home is None:
                continue
            own = self._own_stretch(parameter, full.weights[name])
            home.flat.data.view(-1).narrow(0, home.start, home.size)[: own.numel()].copy_(own)
            for key, values in full.moments.items():
                if name in values:
                    self._adopt_state(parameter, home, key, values[name])
            for key, counts in full.counts.items():
                if name in counts:
                    inner.state[home.flat][key] = _as_kept_by(inner, home.flat, key, counts[name])
        self._refresh_weights()

    def _adopt_state(
        self, parameter: Parameter, home: Home, key: str, values: torch.Tensor
    ) -> None:
        """Take over an optimizer's state of a parameter. values: whole, of its shape."""
        start, size = self._place_in_state(parameter, home, key)
        own = self._own_stretch(parameter, values)
        self._write_state(home, key, size, start, own)

    def _write_state(self, home: Home, key: str, size: int, start: int, own: torch.Tensor) -> None:
        """Put numbers at their place in an optimizer's state, which is made where it is not there
        yet. size: of that."""
        state = self._inner_optimizer.state[home.flat]
        if key not in state:
            like = home.flat.shape if size == home.flat.numel() else size
            state[key] = torch.zeros(like, dtype=torch.float32, device=home.flat.device)
        state[key].view(-1).narrow(0, start, own.numel()).copy_(own)


def _is_of_weights(state: Any) -> bool:
    """Whether an optimizer's state has numbers of each weight; one of a single number counts
    updates."""
    return torch.is_tensor(state) and state.numel() > 1


def _as_kept_by(inner: torch.optim.Optimizer, flat: torch.Tensor, key: str, count: Any) -> Any:
    """A number of an optimizer's state as that optimizer keeps it: torch's Adams their steps in a
    tensor, beside the weights if they are fused there; DeepSpeed's own in a number."""
    adam = getattr(inner, "aux_optimizer", inner)
    if key == "step" and isinstance(adam, (torch.optim.Adam, torch.optim.AdamW)):
        fused = any(group.get("fused") for group in adam.param_groups)
        device = flat.device if fused else "cpu"
        return torch.tensor(float(count), dtype=torch.float32, device=device)
    if key == "step" and type(inner).__module__.startswith("deepspeed."):
        return int(count)
    return count.clone() if torch.is_tensor(count) else count


def _norms_of(stretches: dict) -> dict:
    """{parameter: 2-norm of its stretch}, float64."""
    return dict(zip(stretches, _norms(list(stretches.values())))) if stretches else {}


def _norms(tensors: list[torch.Tensor]):
    """2-norm of each tensor, summed in float64."""
    return torch._foreach_norm(tensors, 2, dtype=torch.float64)

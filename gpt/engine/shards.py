"""Where DeepSpeed's ZeRO keeps each parameter: this rank's stretches of weights, gradients and
optimizer states.

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


def shards_of(stage: int, ds: Any, names: dict, world: World) -> "Shards":
    """ds: DeepSpeed's engine. names: {parameter: name}. stage: of ZeRO."""
    if stage == 0:
        return WholeShards(ds, names, world)
    if stage == 3:
        return CutShards(ds, names, world)
    return FlatShards(ds, names, world)


class Shards(ABC):
    """This rank's stretches of all parameters of one engine."""

    def __init__(self, ds: Any, names: dict, world: World):
        self._ds = ds
        self._names = names
        self._world = world

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
        gradients = {parameter: self._gradient(parameter) for parameter in weights}
        norms = torch.stack([self._each(weights), self._each(gradients) / loss_scale])
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
        squares = torch.cat([before.norms, self._each(changes)[None]]).square()
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
            # those without a dimension count updates
            if torch.is_tensor(state) and state.dim() and state.numel() >= home.start + size:
                yield key, state.view(-1).narrow(0, home.start, size)

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
            size = home.flat.numel()
            is_on_disk = size < home.start + home.size
            for key, state in self._inner_optimizer.state.get(home.flat, {}).items():
                is_of_weights = torch.is_tensor(state) and bool(state.dim())
                if is_of_weights and not is_on_disk and state.numel() != size:
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

    def _each(self, stretches: dict) -> torch.Tensor:
        """2-norm of this rank's stretch of every parameter, 0 where it has none: float64
        (parameters,), on the device."""
        if not stretches:
            return torch.zeros(len(self._names), dtype=torch.float64, device=self._world.device)
        norms = dict(zip(stretches, _norms(list(stretches.values()))))
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
            state = inner.state[home.flat]
            if full.moments:
                state["step"] = self._updates(inner, home.flat, full.updates)
            for key, values in full.moments.items():
                if key not in state:
                    state[key] = torch.zeros_like(home.flat, dtype=torch.float32)
                own = self._own_stretch(parameter, values[name]).to(home.flat.device)
                state[key].view(-1).narrow(0, home.start, home.size)[: own.numel()].copy_(own)
        self._refresh_weights()

    def _updates(self, inner: torch.optim.Optimizer, flat: torch.Tensor, count: float):
        """The number of updates as an optimizer keeps it: torch's in a tensor, beside the weights
        if it is fused there; DeepSpeed's own in a number."""
        if not type(inner).__module__.startswith("torch."):
            return int(count)
        fused = any(group.get("fused") for group in inner.param_groups)
        return torch.tensor(count, dtype=torch.float32, device=flat.device if fused else "cpu")


class WholeShards(Shards):
    """Stage 0: all ranks hold the same, and rank 0 speaks for all."""

    @property
    def _inner_optimizer(self):
        return self._ds.optimizer

    def _weight(self, parameter: Parameter):
        return parameter.detach() if self._world.rank == 0 else None

    def _gradient(self, parameter: Parameter):
        return parameter.grad

    def _own_stretch(self, parameter: Parameter, values: torch.Tensor):
        return values.reshape(-1)

    def _home(self, parameter: Parameter):
        return Home(parameter, 0, parameter.numel())

    def _refresh_weights(self):
        pass  # they are what the optimizer updates


class FlatShards(Shards):
    """Stages 1 and 2: each rank keeps one stretch of a group's parameters, flattened one after
    another."""

    def _weight(self, parameter: Parameter):
        mapping = parameter._hp_mapping
        return None if mapping is None else mapping.hp_fragment

    def _rounded_stretch(self, parameter: Parameter):
        return self._own_stretch(parameter, parameter.detach())

    def _gradient(self, parameter: Parameter):
        mapping = parameter._hp_mapping
        gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
        if gradient.numel() != mapping.hp_fragment.numel():  # the whole parameter's
            return self._own_stretch(parameter, gradient)
        return gradient

    def _own_stretch(self, parameter: Parameter, values: torch.Tensor):
        address = parameter._hp_mapping.lp_fragment_address
        return values.reshape(-1)[address.start : address.start + address.numel]

    def _home(self, parameter: Parameter):
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        address = mapping.hp_fragment_address
        groups = self._ds.optimizer.single_partition_of_fp32_groups
        return Home(groups[mapping.param_group_index], address.start, address.numel)

    def _refresh_weights(self):
        self._ds.optimizer.update_lp_params()


class CutShards(Shards):
    """Stage 3: each rank keeps a stretch of every parameter, the last one padded."""

    def __init__(self, ds: Any, names: dict, world: World):
        super().__init__(ds, names, world)
        self._index_in_group: dict[Parameter, int] = {}
        for group in ds.optimizer.fp16_groups:
            self._index_in_group |= {parameter: index for index, parameter in enumerate(group)}

    def _own_size(self, parameter: Parameter):
        """Of this rank's stretch, without the padding."""
        size = parameter.ds_tensor.numel()
        return max(0, min(size, parameter.ds_numel - size * self._world.rank))

    def _weight(self, parameter: Parameter):
        zero = self._ds.optimizer
        if zero.swap_optimizer:  # on a disk, and read into a buffer that is used again
            stretch = zero.get_local_fp32_param(parameter).clone()
            return stretch.flatten()[: self._own_size(parameter)]
        home = self._home(parameter)
        return home.flat.detach().narrow(0, home.start, self._own_size(parameter))

    def _gradient(self, parameter: Parameter):
        zero = self._ds.optimizer
        group, start, _ = zero.grad_position[zero.get_param_id(parameter)]
        if zero.swap_optimizer:
            gradient = zero.get_local_fp32_grad_for_param(parameter).clone()
        elif zero.offload_optimizer:
            gradient = zero.fp32_partitioned_groups_flat[group].grad[start:]
        else:
            gradient = zero.averaged_gradients[group][self._index_in_group[parameter]]
        return gradient.flatten()[: self._own_size(parameter)]

    def _own_stretch(self, parameter: Parameter, values: torch.Tensor):
        start = parameter.ds_tensor.numel() * self._world.rank
        return values.reshape(-1)[start:][: self._own_size(parameter)]

    def _home(self, parameter: Parameter):
        zero = self._ds.optimizer
        group, start, size = zero.grad_position[zero.get_param_id(parameter)]
        return Home(zero.fp32_partitioned_groups_flat[group], start, size)

    def _refresh_weights(self):
        for parameter in self._names:
            own = self._weight(parameter)
            parameter.ds_tensor.data.view(-1)[: own.numel()].copy_(own)
        persistent = self._ds.optimizer.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)


def _norms(tensors: list[torch.Tensor]):
    """2-norm of each tensor, summed in float64."""
    return torch._foreach_norm(tensors, 2, dtype=torch.float64)

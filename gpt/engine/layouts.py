"""Where DeepSpeed's ZeRO keeps each parameter, stage by stage.

Part of the boundary that gpt/engine/boundary.py is: it reads and writes DeepSpeed's objects, but
needs nothing of its modules.
"""

from typing import Any

import torch

from gpt.cluster.world import World
from gpt.engine.shards import Home, Parameter, Shards

# the key of DeepSpeed's Muon for its momentum
MUON_MOMENTUM = "momentum_buffer"


def shards_of(
    stage: int, ds: Any, names: dict, world: World, gradient_norms: dict, keeps_any_state: bool
) -> Shards:
    """ds: DeepSpeed's engine. names: {parameter: name}. stage: of ZeRO. gradient_norms: of the
    parameters that Muon updates, as gpt.engine.muon notes them. keeps_any_state: the optimizer's
    states may have other shapes than the parameters."""
    if stage == 0:
        return WholeShards(ds, names, world, keeps_any_state)
    if stage == 3:
        return CutShards(ds, names, world)
    return FlatShards(ds, names, world, gradient_norms)


class WholeShards(Shards):
    """Stage 0: all ranks hold the same, and rank 0 speaks for all."""

    def __init__(self, ds: Any, names: dict, world: World, keeps_any_state: bool):
        super().__init__(ds, names, world)
        self._keeps_any_state = keeps_any_state

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

    def _adopt_state(
        self, parameter: Parameter, home: Home, key: str, values: torch.Tensor
    ) -> None:
        state = self._inner_optimizer.state[parameter]
        state[key] = values.to(parameter.device, torch.float32, copy=True)

    def _refresh_weights(self):
        pass  # they are what the optimizer updates


class FlatShards(Shards):
    """Stages 1 and 2: each rank keeps one stretch of a group's parameters, flattened one after
    another."""

    def __init__(self, ds: Any, names: dict, world: World, gradient_norms: dict):
        super().__init__(ds, names, world)
        self._gradient_norms = gradient_norms

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

    def _place_in_state(self, parameter: Parameter, home: Home, key: str) -> tuple[int, int]:
        if not self._is_whole(parameter, key):
            return super()._place_in_state(parameter, home, key)
        mapping = parameter._hp_mapping
        members = self._ds.optimizer.params_in_partition[mapping.param_group_index]
        before = 0
        for member in members:
            if member is parameter:
                break
            before += member.numel()
        start = before + mapping.lp_fragment_address.start
        return start, sum(member.numel() for member in members)

    def _adopt_state(
        self, parameter: Parameter, home: Home, key: str, values: torch.Tensor
    ) -> None:
        if not self._is_whole(parameter, key):
            super()._adopt_state(parameter, home, key, values)
            return
        start, size = self._place_in_state(parameter, home, key)
        first = parameter._hp_mapping.lp_fragment_address.start
        self._write_state(home, key, size, start - first, values.reshape(-1))

    def _is_whole(self, parameter: Parameter, key: str) -> bool:
        """Whether a state is kept whole of every parameter that this rank has a stretch of, as
        DeepSpeed's Muon has its momentum."""
        return key == MUON_MOMENTUM and getattr(parameter, "use_muon", False)

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

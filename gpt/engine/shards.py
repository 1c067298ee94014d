"""Where DeepSpeed's ZeRO keeps each parameter: this rank's stretches of weights, gradients and
optimizer states.

Part of the boundary that gpt/engine/boundary.py is: it reads and writes DeepSpeed's objects, but
needs nothing of its modules.
"""

import math
from contextlib import contextmanager

import torch

# by training, of a dynamic loss scale
MOVED = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@contextmanager
def keeping_settings(ds):
    """Around a load, which in DeepSpeed takes hyperparameters, clipping and the rules of the loss
    scale from the checkpoint: they stay what the configuration says, and what training has moved is
    loaded."""
    optimizer = ds.optimizer
    scheduled = ds.lr_scheduler is not None
    moved = {"params", "step", *(["lr"] if scheduled else [])}
    groups = [
        {key: value for key, value in group.items() if key not in moved}
        for group in optimizer.param_groups
    ]
    kept = {
        key: vars(optimizer)[key]
        for key in ("clip_grad", "loss_scaler", "dynamic_loss_scale")
        if key in vars(optimizer)
    }
    yield
    for group, settings in zip(optimizer.param_groups, groups):
        group.update(settings)
    loaded = vars(optimizer).get("loss_scaler")
    vars(optimizer).update(kept)
    if loaded is not None and loaded.dynamic and kept["loss_scaler"].dynamic:
        vars(kept["loss_scaler"]).update({key: vars(loaded)[key] for key in MOVED})


def _norms(tensors):
    """2-norm of each tensor, summed in float64."""
    return torch._foreach_norm(tensors, 2, dtype=torch.float64)


class Shards:
    """This rank's stretches of all parameters of one engine.

    ds: DeepSpeed's engine. names: {parameter: name}. stage: of ZeRO; 1 and 2 keep a stretch of the
    flattened parameters per rank, 3 a stretch of every parameter; at stage 0 all ranks hold the
    same, and rank 0 speaks for all.
    """

    def __init__(self, ds, names: dict, stage: int, world):
        self._ds = ds
        self._names = names
        self._stage = stage
        self._world = world
        if stage == 3:
            self._index_in_group = {
                p: index for group in ds.optimizer.fp16_groups for index, p in enumerate(group)
            }

    def _weight(self, parameter):
        """This rank's own stretch of a parameter, fp32, or None where other ranks hold all
        of it."""
        zero = self._ds.optimizer
        # on a disk, and read into a buffer that is used again
        if self._stage == 3 and zero.swap_optimizer:
            return (
                zero.get_local_fp32_param(parameter).clone().flatten()[: self._own_size(parameter)]
            )
        if self._stage == 3:
            flat, start, _ = self._home(parameter)
            return flat.detach().narrow(0, start, self._own_size(parameter))
        if self._stage == 0:
            return parameter.detach() if self._world.rank == 0 else None
        return None if parameter._hp_mapping is None else parameter._hp_mapping.hp_fragment

    def _gradient(self, parameter):
        """Gradient of `_weight(parameter)`, times the loss scale; only between backward and the
        update."""
        if self._stage == 0:
            return parameter.grad
        zero = self._ds.optimizer
        if self._stage == 3:
            group, start, _ = zero.grad_position[zero.get_param_id(parameter)]
            if zero.swap_optimizer:
                gradient = zero.get_local_fp32_grad_for_param(parameter).clone()
            elif zero.offload_optimizer:
                gradient = zero.fp32_partitioned_groups_flat[group].grad[start:]
            else:
                gradient = zero.averaged_gradients[group][self._index_in_group[parameter]]
            return gradient.flatten()[: self._own_size(parameter)]
        mapping = parameter._hp_mapping
        gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
        whole = gradient.numel() != mapping.hp_fragment.numel()
        return self._own_stretch(parameter, gradient) if whole else gradient

    def _own_size(self, parameter):
        size = parameter.ds_tensor.numel()
        # the rest of the stretch is padding
        return max(0, min(size, parameter.ds_numel - size * self._world.rank))

    def gradient_norm(self) -> float:
        """2-norm of the whole gradient at stage 0, where every rank holds it; only between backward
        and the update."""
        norms = _norms([p.grad for p in self._names if p.grad is not None])
        return torch.linalg.vector_norm(torch.stack(norms)).item()

    @torch.no_grad()
    def before_update(self, loss_scale: float):
        """What `norms` needs of weights and gradients; only between backward and the update.

        Until then it keeps 4 bytes for each parameter of this rank, beside the weights.
        """
        weights = self._held(self._weight)
        gradients = {parameter: self._gradient(parameter) for parameter in weights}
        norms = torch.stack([self._each(weights), self._each(gradients) / loss_scale])
        negated = torch._foreach_neg(list(weights.values())) if weights else []
        return norms, dict(zip(weights, negated))

    @torch.no_grad()
    def norms(self, before) -> dict:
        """2-norms of weight, gradient and update since `before` (from `before_update`) per
        parameter group: a module's own weights and biases."""
        norms, changes = before
        if changes:
            weights = self._held(self._weight)
            torch._foreach_add_(
                list(changes.values()), [weights[parameter] for parameter in changes]
            )
        squares = torch.cat([norms, self._each(changes)[None]]).square()
        rows = self._world.sum(squares).tolist()
        return {
            kind: self._by_group(row) for kind, row in zip(("weight", "gradient", "update"), rows)
        }

    def _held(self, part):
        """{parameter: its stretch} of all that this rank holds a part of."""
        stretches = ((parameter, part(parameter)) for parameter in self._names)
        return {
            parameter: values
            for parameter, values in stretches
            if values is not None and values.numel()
        }

    def _each(self, stretches):
        """2-norm of this rank's stretch of every parameter, 0 where it has none: float64
        (parameters,), on the device."""
        if not stretches:
            return torch.zeros(len(self._names), dtype=torch.float64, device=self._world.device)
        found = dict(zip(stretches, _norms(list(stretches.values()))))
        none = next(iter(found.values())).new_zeros(())
        return torch.stack([found.get(parameter, none) for parameter in self._names]).to(
            self._world.device
        )

    def _by_group(self, squares):
        sums = {}
        for name, square in zip(self._names.values(), squares):
            group = name.rpartition(".")[0]
            sums[group] = sums.get(group, 0.0) + square
        return {group: math.sqrt(total) for group, total in sums.items()}

    def adopt(self, full):
        """Take over whole weights and moments (gpt.checkpoint.zero_files.FullState), each rank its
        stretches."""
        inner = self._ds.optimizer if self._stage == 0 else self._ds.optimizer.optimizer
        for parameter, name in self._names.items():
            flat, start, size = self._home(parameter)
            if flat is None:
                continue
            own = self._own_stretch(parameter, full.weights[name])
            flat.data.view(-1).narrow(0, start, size)[: own.numel()].copy_(own)
            state = inner.state[flat]
            if full.moments:
                state["step"] = self._updates(inner, flat, full.updates)
            for key, values in full.moments.items():
                if key not in state:
                    state[key] = torch.zeros_like(flat, dtype=torch.float32)
                own = self._own_stretch(parameter, values[name]).to(flat.device)
                state[key].view(-1).narrow(0, start, size)[: own.numel()].copy_(own)
        self._refresh_weights()

    def _updates(self, inner, flat, count):
        """The number of updates as an optimizer keeps it: torch's in a tensor, beside the weights
        if it is fused there; DeepSpeed's own in a number."""
        if not type(inner).__module__.startswith("torch."):
            return int(count)
        fused = any(group.get("fused") for group in inner.param_groups)
        return torch.tensor(count, dtype=torch.float32, device=flat.device if fused else "cpu")

    def _home(self, parameter):
        """(flat tensor that the optimizer updates, where in it this rank's stretch of a parameter
        begins, its size)."""
        if self._stage == 0:
            return parameter, 0, parameter.numel()
        zero = self._ds.optimizer
        if self._stage == 3:
            group, start, size = zero.grad_position[zero.get_param_id(parameter)]
            return zero.fp32_partitioned_groups_flat[group], start, size
        mapping = parameter._hp_mapping
        if mapping is None:
            return None, 0, 0
        address = mapping.hp_fragment_address
        return (
            zero.single_partition_of_fp32_groups[mapping.param_group_index],
            address.start,
            address.numel,
        )

    def _own_stretch(self, parameter, values):
        """This rank's part of a whole tensor of the parameter's shape, flat."""
        values = values.reshape(-1)
        if self._stage == 3:
            size = parameter.ds_tensor.numel()
            return values[size * self._world.rank :][: self._own_size(parameter)]
        if self._stage:
            address = parameter._hp_mapping.lp_fragment_address
            return values[address.start : address.start + address.numel]
        return values

    def _refresh_weights(self):
        """Have the weights of the hot loop follow their fp32 copies."""
        if self._stage == 3:
            for parameter in self._names:
                own = self._weight(parameter)
                parameter.ds_tensor.data.view(-1)[: own.numel()].copy_(own)
            persistent = self._ds.optimizer.persistent_parameters
            if persistent:
                persistent[0].partition(persistent)
                persistent[0].all_gather(persistent)
        elif self._stage:
            self._ds.optimizer.update_lp_params()

"""The boundary to DeepSpeed: no other module imports it.

`connect()` joins the process group, `Engine` wraps a model, and nothing of DeepSpeed's own types leaves this file.
"""

import logging
import os
import socket
import sys
import warnings
from dataclasses import dataclass

import torch
import torch.distributed

from gpt.checkpoint import load_weights_only
from gpt.config import Config
from gpt.errors import RunError


def _only_errors(record):
    return record.levelno >= logging.ERROR


logging.getLogger("DeepSpeed").addFilter(_only_errors)  # it speaks from its import on; connect(verbose=True) lets it
warnings.filterwarnings("ignore", category=FutureWarning)
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import deepspeed
import deepspeed.ops
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_grad
from deepspeed.utils.tensor_fragment import fragment_address

_PICKLED = (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)  # types in DeepSpeed's optimizer files


@dataclass(frozen=True)
class World:
    """This process's place among the others, and its device."""

    rank: int
    size: int
    device: torch.device

    def barrier(self):
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, tensor):
        """Sum of `tensor` over all ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, value) -> list:
        """Every rank's plain `value`, in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def tensor(self, values):
        """Numbers as a float64 tensor on this process's device."""
        return torch.tensor(values, dtype=torch.float64, device=self.device)


def has_fp16() -> bool:
    """Whether this machine's accelerator computes in fp16."""
    return deepspeed.accelerator.get_accelerator().is_fp16_supported()


def _single_process_environment():
    """What a launcher would have set, for a process that was started without one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "RANK" not in os.environ:
        os.environ.update(single)


def connect(verbose: bool = False) -> World:
    """Join the process group that the launcher announces, or make one of this single process."""
    _single_process_environment()
    if verbose:
        logging.getLogger("DeepSpeed").removeFilter(_only_errors)
        deepspeed.utils.set_log_level_from_string("info")
    accelerator = deepspeed.accelerator.get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if on_cpu:
        # The first init_distributed on a CPU would compile an operator that only inference uses: minutes, and a compiler.
        deepspeed.ops.__compatible_ops__ = {}
        _share_cores()
    else:
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(verbose=verbose)
    device = "cpu" if on_cpu else accelerator.device_name(int(os.environ["LOCAL_RANK"]))
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device(device))


def _share_cores():
    """Share this host's cores among its ranks, unless OMP_NUM_THREADS says otherwise."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // ranks_here))


def disconnect():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Schedule(torch.optim.lr_scheduler.LRScheduler):
    """A CosineSchedule in the shape that DeepSpeed steps: step s of the optimiser runs at `schedule.lr(s)`."""

    def __init__(self, optimizer, schedule):
        self._schedule = schedule
        super().__init__(optimizer)

    def get_lr(self):
        return [self._schedule.lr(self.last_epoch + 1)] * len(self.optimizer.param_groups)

    def state_dict(self):
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state):
        self.last_epoch = state["last_epoch"]


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step was, as far as it was asked for."""

    applied: bool  # False: fp16 overflow, nothing was changed but the loss scale
    loss: float | None  # mean over the global batch, nats per token
    norms: dict | None  # {"weight" | "gradient" | "update": {parameter group: 2-norm}}


class Engine:
    """A model under DeepSpeed: optimiser steps over global batches, norms, checkpoints."""

    def __init__(self, model: torch.nn.Module, config: Config, world: World):
        schedule = config.schedule
        optimizer = {**config.engine["optimizer"]}
        if schedule is not None:  # the rate that the optimiser is made with; the schedule sets it before every step
            optimizer["params"] = {**optimizer["params"], "lr": schedule.lr(1)}
        self._ds, *_ = deepspeed.initialize(
            model=model,
            model_parameters=list(model.parameters()),
            config={**config.engine, "optimizer": optimizer, "steps_per_print": sys.maxsize},
            lr_scheduler=None if schedule is None else lambda inner: _Schedule(inner, schedule),
        )
        self._ds._copy_recovery_script = lambda folder: None  # a second zero_to_fp32.py, which loads pickles as code
        self._files = self._ds.checkpoint_engine = _CarefulFiles(self._ds._config)
        self.world, self.module = world, self._ds.module
        self._stage = config.engine["zero_optimization"]["stage"]
        self._names = {parameter: name for name, parameter in self.module.named_parameters()}
        differences = [f"{name} is {found}, the config says {asked}" for name, asked, found in self._read_back(config)
                       if asked != found]  # fmt: skip
        if differences:
            raise RunError("DeepSpeed would run something else than the config says, so nothing was trained: "
                           + "; ".join(differences))  # fmt: skip

    def _read_back(self, config):
        """(name, value asked for, value that the engine has) of what makes the curve."""
        ds, asked = self._ds, config.engine
        kind, params = asked["optimizer"]["type"], asked["optimizer"]["params"]
        group = ds.optimizer.param_groups[0]
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.precision]
        yield "train_batch_size", config.batch.global_size, ds.train_batch_size()
        yield "train_micro_batch_size_per_gpu", config.batch.micro_size, ds.train_micro_batch_size_per_gpu()
        yield "gradient_accumulation_steps", config.batch.accumulation, ds.gradient_accumulation_steps()
        yield "ranks", config.batch.world_size, ds.world_size
        yield "gradient_clipping", asked["gradient_clipping"], ds.gradient_clipping()
        yield "zero_optimization.stage", asked["zero_optimization"]["stage"], ds.zero_optimization_stage()
        yield "precision", dtype, next(self.module.parameters()).dtype
        if params.get("torch_adam", True):  # DeepSpeed's "Adam" is AdamW unless told otherwise
            decoupled = kind == "AdamW" or (kind == "Adam" and params.get("adam_w_mode", True))
            yield "optimizer.type", "AdamW" if decoupled else kind, type(ds.basic_optimizer).__name__
        for name in params.keys() & group.keys() - {"lr"}:
            yield f"optimizer.params.{name}", _plain(params[name]), _plain(group[name])
        if config.precision == "fp16":
            fixed = asked["fp16"]["loss_scale"]
            yield "loss scale", fixed or 2.0 ** asked["fp16"]["initial_scale_power"], self.loss_scale
        if config.schedule is None:
            scheduler = asked.get("scheduler", {}).get("type")
            yield "scheduler.type", scheduler, type(ds.lr_scheduler).__name__ if ds.lr_scheduler else None
            return
        yield "learning rate of step 1", config.schedule.lr(1), group["lr"]
        for step in (2, max(1, config.schedule.warmup_steps), config.schedule.decay_steps):
            ds.lr_scheduler.last_epoch = step - 1
            self._set_lr()
            yield f"learning rate of step {step}", config.schedule.lr(step), group["lr"]
        ds.lr_scheduler.last_epoch = 0
        self._set_lr()

    def _set_lr(self):
        """Give the optimiser the learning rate that its schedule is at."""
        for group, lr in zip(self._ds.optimizer.param_groups, self._ds.lr_scheduler.get_lr()):
            group["lr"] = lr

    @property
    def lr(self) -> float:
        """Learning rate of the next optimiser step."""
        return self._ds.get_lr()[0]

    @property
    def grad_norm(self) -> float | None:
        """2-norm of the whole gradient of the last step, before clipping; None under ZeRO stage 0."""
        norm = self._ds.get_global_grad_norm()
        return None if norm is None else float(norm)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless in fp16."""
        return float(self._ds.optimizer.loss_scale) if self._ds.fp16_enabled() else 1.0

    def step(self, batch, want_loss: bool = True, want_norms: bool = False) -> StepResult:
        """One optimiser step on this rank's part of a global batch.

        batch: int64 (accumulation, micro batch, seq_len + 1). All ranks call it together, with the same wishes.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        before = []
        for index, micro_batch in enumerate(torch.from_numpy(batch).to(self.world.device)):
            loss = self._ds(micro_batch[:, :-1], micro_batch[:, 1:])
            total += loss.detach()
            self._ds.backward(loss)
            if want_norms and index == len(batch) - 1:
                before = self._fragments()
            self._update()
        applied = self._ds.was_step_applied()
        norms = self._norms(before) if want_norms and applied else None
        loss = self.world.sum(total).item() / (len(batch) * self.world.size) if want_loss else None
        return StepResult(applied, loss, norms)

    def _update(self):
        try:
            self._ds.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise RunError("the fp16 gradient overflows at the smallest loss scale: the weights or the learning rate "
                           "have run away; go on from an earlier checkpoint with a lower max_lr, or set "
                           "gradient_clipping or bf16") from error

    def _weight(self, parameter):
        """This rank's own stretch of a parameter, fp32 and flat, or None where other ranks hold all of it.

        ZeRO 1 and 2 keep a stretch of the flattened parameters per rank, ZeRO 3 a stretch of every parameter; at stage
        0 all ranks hold the same, and rank 0 speaks for all.
        """
        if self._stage == 3:
            return safe_get_local_fp32_param(parameter).flatten()[: self._own_size(parameter)]
        if self._stage == 0:
            return parameter.detach().flatten().float() if self.world.rank == 0 else None
        return None if parameter._hp_mapping is None else parameter._hp_mapping.hp_fragment

    def _gradient(self, parameter):
        """Gradient of `_weight(parameter)`, loss scale taken out; only between backward and the update."""
        if self._stage == 3:
            gradient = safe_get_local_grad(parameter).flatten()[: self._own_size(parameter)]
        elif self._stage == 0:
            gradient = parameter.grad.flatten()
        else:
            mapping = parameter._hp_mapping
            gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
            if gradient.numel() != mapping.hp_fragment.numel():  # the whole gradient
                gradient = self._own_stretch(parameter, gradient)
        return gradient.float() / self.loss_scale

    def _own_size(self, parameter):
        size = parameter.ds_tensor.numel()
        return max(0, min(size, parameter.ds_numel - size * self.world.rank))  # the rest of the stretch is padding

    def _fragments(self):
        """(parameter, its weight before the update, its gradient) for all that this rank holds."""
        held = [(parameter, self._weight(parameter)) for parameter in self._names]
        return [(p, weight.clone(), self._gradient(p)) for p, weight in held if weight is not None]

    def _norms(self, before):
        """2-norms of weight, gradient and update per parameter group: a module's own weights and biases."""
        groups = list(dict.fromkeys(name.rpartition(".")[0] for name in self._names.values()))
        squares = torch.zeros(3, len(groups), dtype=torch.float64, device=self.world.device)
        for parameter, weight, gradient in before:
            index = groups.index(self._names[parameter].rpartition(".")[0])
            for row, values in enumerate((weight, gradient, self._weight(parameter) - weight)):
                squares[row, index] += values.double().square().sum()
        norms = self.world.sum(squares).sqrt().tolist()
        return {kind: dict(zip(groups, row)) for kind, row in zip(("weight", "gradient", "update"), norms)}

    def probe(self, tokens) -> float:
        """Loss of the present weights on tokens, int64 (rows, seq_len + 1); all ranks together on the same tokens."""
        tokens = torch.from_numpy(tokens).to(self.world.device)
        with torch.no_grad():
            return self.module(tokens[:, :-1], tokens[:, 1:]).item()

    def save(self, folder, tag: str, state: dict) -> str | None:
        """Write this rank's part of a checkpoint into folder/tag; `state` is plain values. All ranks together.

        Returns what went wrong on this rank, or None. Whatever it is, the other ranks are not left waiting.
        """
        self._files.failure = None
        self._ds.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
        return self._files.failure

    def load(self, folder, tag: str):
        """Load the checkpoint folder/tag of the same world size and ZeRO stage."""
        path, _ = self._ds.load_checkpoint(str(folder), tag=tag)
        assert path is not None, f"DeepSpeed found nothing in {folder}/{tag}"

    def adopt(self, full, loss_scale: float):
        """Take over whole tensors (gpt.consolidate.FullState) of a run on other ranks or at another ZeRO stage."""
        inner = self._ds.optimizer if self._stage == 0 else self._ds.optimizer.optimizer
        for parameter, name in self._names.items():
            flat, start, size = self._home(parameter)
            if flat is None:
                continue
            own = self._own_stretch(parameter, full.weights[name])
            flat.data.view(-1).narrow(0, start, size)[: own.numel()].copy_(own)
            state = inner.state[flat]
            for key, values in full.moments.items():
                if key not in state:
                    state[key] = torch.zeros_like(flat, dtype=torch.float32)
                    state["step"] = torch.tensor(full.updates, dtype=torch.float32)
                own = self._own_stretch(parameter, values[name]).to(flat.device)
                state[key].view(-1).narrow(0, start, size)[: own.numel()].copy_(own)
        self._refresh_weights()
        if self._ds.lr_scheduler is not None:
            self._ds.lr_scheduler.load_state_dict(full.scheduler)
            self._set_lr()
        if self._ds.fp16_enabled():
            self._ds.optimizer.loss_scaler.cur_scale = loss_scale

    def _home(self, parameter):
        """(flat tensor that the optimizer updates, where in it this rank's stretch of a parameter begins, its size)."""
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
        return zero.single_partition_of_fp32_groups[mapping.param_group_index], address.start, address.numel

    def _own_stretch(self, parameter, values):
        """This rank's part of a whole tensor of the parameter's shape, flat."""
        values = values.reshape(-1)
        if self._stage == 3:
            size = parameter.ds_tensor.numel()
            return values[size * self.world.rank :][: self._own_size(parameter)]
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


def _plain(value):
    return tuple(value) if isinstance(value, list) else value


class _CarefulFiles(TorchCheckpointEngine):
    """DeepSpeed's files: read without running code from their pickles; a write that fails is noted, not raised, so that
    DeepSpeed's own barriers still bring all ranks together."""

    failure = None

    def save(self, state_dict, path):
        try:
            super().save(state_dict, path)
        except (OSError, RuntimeError) as error:
            self.failure = self.failure or f"{path}: {str(error).splitlines()[0][:120]}"

    def load(self, path, map_location=None):
        return load_weights_only(path, _PICKLED, map_location)

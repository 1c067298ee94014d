"""The boundary to DeepSpeed: no other module imports it.

`connect()` joins the process group, `Engine` wraps a model, and nothing of DeepSpeed's own types
leaves this file.
"""

import logging
import math
import os
import socket
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # which torch reads when it is imported
if "PYTORCH_ALLOC_CONF" not in os.environ:
    # An evaluation's batches have other shapes than training's: segments that grow leave no holes.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.distributed

from gpt.checkpoint.zero_files import load_weights_only
from gpt.cluster.launch import launched
from gpt.cluster.roll_call import JOIN_SECONDS, Deadline, roll_call
from gpt.cluster.watchdog import STARTING_SECONDS
from gpt.cluster.world import World, to_device
from gpt.compute.hardware import DTYPES, keep_freed_memory, share_cores
from gpt.compute.memory import is_offloaded
from gpt.config.run_config import Config
from gpt.engine.gradients import find_by_norm, forget, sum_in_fp32
from gpt.engine.shards import Shards, keeping_settings
from gpt.errors import RunError, UserError, in_brief


def _only_errors(record):
    return record.levelno >= logging.ERROR


# it speaks from its import on; connect(verbose=True) lets it
logging.getLogger("DeepSpeed").addFilter(_only_errors)
warnings.filterwarnings("ignore", category=FutureWarning)

import deepspeed
import deepspeed.ops
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

# types in DeepSpeed's optimizer files
_PICKLED = (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)


def has_fp16() -> bool:
    """Whether this machine's accelerator computes in fp16."""
    return deepspeed.accelerator.get_accelerator().is_fp16_supported()


def local_device() -> torch.device:
    """The device that this rank computes on: the GPU that LOCAL_RANK names, or the CPU where
    DeepSpeed (or DS_ACCELERATOR) takes that."""
    name = deepspeed.accelerator.get_accelerator().device_name()
    return (
        torch.device(name) if name == "cpu" else torch.device(name, int(os.environ["LOCAL_RANK"]))
    )


def connect(verbose: bool = False, launch=None, facts=(), step_timeout: float = 0.0) -> World:
    """Join the process group that the launcher announced, once all ranks have come.

    launch: gpt.cluster.launch.Launch, asked for where it is None. facts: {what: text} that must be
    the same on all ranks. step_timeout: seconds after which a watchdog ends the run; the group's
    own limit is longer, for it names nobody. Raises UserError and RunError as gpt.cluster.roll_call
    does.
    """
    launch = launch or launched()
    if verbose:
        logging.getLogger("DeepSpeed").removeFilter(_only_errors)
        deepspeed.utils.set_log_level_from_string("info")
    accelerator = deepspeed.accelerator.get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    local_rank = int(os.environ["LOCAL_RANK"])
    if not on_cpu and local_rank >= accelerator.device_count():
        raise UserError(
            f"rank {launch.rank} has the local rank {local_rank} on {socket.gethostname()}, where"
            f" it sees {accelerator.device_count()} device(s): start at most so many ranks there"
            " (slots in the hostfile, --num_gpus, --ntasks-per-node), and let each see all devices"
        )
    store, hosts = roll_call(launch, dict(facts))
    if on_cpu:
        # The first init_distributed on a CPU would compile an operator that only inference uses:
        # minutes, and a compiler.
        deepspeed.ops.__compatible_ops__ = {}
        share_cores(hosts.count(hosts[launch.rank]))
        keep_freed_memory()
    else:
        _prepare_gpu(accelerator, local_rank)
    with Deadline(
        JOIN_SECONDS,
        f"all ranks have come, but rank {launch.rank} on {hosts[launch.rank]} could not connect to"
        f" all others within {JOIN_SECONDS:g} s: their hosts must reach each other on every port;"
        " tools/preflight.py looks into it",
    ):
        deepspeed.init_distributed(
            verbose=verbose, timeout=timedelta(seconds=2 * max(step_timeout, STARTING_SECONDS))
        )
    return World(launch.rank, launch.size, local_device(), hosts, store)


def _prepare_gpu(accelerator, local_rank):
    """Take this rank's GPU, and have it sum and tell its memory as the trainer wants it."""
    accelerator.set_device(local_rank)
    # DeepSpeed asks NVML, by numbers that it reads from CUDA_VISIBLE_DEVICES, where UUIDs may
    # stand.
    accelerator.available_memory = lambda index=None: torch.cuda.mem_get_info(index)[0]
    # Weight gradients are sums over thousands of rows, which cuBLAS cuts up: parts of a sum stay
    # fp32.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def disconnect():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Schedule(torch.optim.lr_scheduler.LRScheduler):
    """A CosineSchedule in the shape that DeepSpeed steps: step s of the optimiser runs at
    `schedule.lr(s)`."""

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
    """What one optimiser step was."""

    applied: bool  # False: nothing was changed but, after an fp16 overflow, the loss scale
    refused: bool  # not applied because `accept` was against it, on all ranks
    exhausted: bool  # an fp16 overflow at a loss scale that can sink no further
    # mean over this rank's part of the global batch, nats per token; float64, on the device
    loss: torch.Tensor
    # 2-norm of the whole gradient before clipping; float64, on the device
    grad_norm: torch.Tensor
    norms: dict | None  # {"weight" | "gradient" | "update": {parameter group: 2-norm}}


class _LossScaleExhausted(Exception):
    """DeepSpeed left out an update, and cannot lower the loss scale any more."""


def _place(model, weights, dtype, settings, device):
    """Give a model its parameters one at a time: on the device, whole or, under ZeRO 3, cut up and
    this rank's stretch kept."""
    first = None
    for name, values in weights:
        owner, _, own_name = name.rpartition(".")
        parameter = torch.nn.Parameter(values.to(device, dtype))
        setattr(model.get_submodule(owner), own_name, parameter)
        if settings["zero_optimization"]["stage"] == 3:
            if first is None:  # makes of it a parameter that can do the same to others
                deepspeed.zero.Init(
                    module=torch.nn.ParameterList([parameter]), config_dict_or_path=settings
                )
                first = parameter
            else:
                first.convert_to_zero_parameters(param_list=[parameter])
        del values  # before the next is drawn


def _require_nvme(config):
    """Raise UserError where parts shall be offloaded to NVMe, and what DeepSpeed needs for it
    cannot be compiled."""
    zero = config.deepspeed["zero_optimization"]
    block = next(
        (
            name
            for name in ("offload_optimizer", "offload_param")
            if zero.get(name, {}).get("device") == "nvme"
        ),
        None,
    )
    if block and not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            f"zero_optimization.{block}.device is nvme, which DeepSpeed's async_io operator serves,"
            " and it cannot be compiled here: install a C++ compiler and libaio with its headers"
            " (Debian: g++ libaio-dev), or offload to cpu"
        )


def _gather_by_block(model):
    """Under ZeRO 3, have a whole block's weights gathered together, not those of each layer in it:
    a hook per layer costs the host more time than a small block's forward pass costs a GPU, and
    stands in a compiler's way. Blocks are the members of the model's lists of modules."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = {type(block) for blocks in lists for block in blocks}
    if blocks:
        deepspeed.utils.set_z3_leaf_modules(model, list(blocks))


class Engine:
    """A model under DeepSpeed: optimiser steps over global batches, norms, checkpoints.

    weights: (name, fp32 tensor) of every parameter of a model that is on torch's meta device, in
    their order. Each is brought to its place before the next is asked for, so that under ZeRO 3 no
    rank ever holds the whole model.
    """

    def __init__(self, model: torch.nn.Module, config: Config, world: World, weights=()):
        _require_nvme(config)
        schedule = config.schedule
        optimizer = {**config.deepspeed["optimizer"]}
        # the rate that the optimiser is made with; the schedule sets it before every step
        if schedule is not None:
            optimizer["params"] = {**optimizer["params"], "lr": schedule.lr(1)}
        settings = {
            **config.deepspeed,
            "optimizer": optimizer,
            "steps_per_print": sys.maxsize,
            # It would wait for the device twice per micro-batch; gpt.metrics.meter measures without
            # waiting.
            "timers": {"throughput": {"enabled": False}},
        }
        self._stage = config.zero_stage
        if is_offloaded(config.deepspeed["zero_optimization"], "offload_optimizer"):
            # Its Adam runs on the cores, whatever the model runs on.
            share_cores(world.hosts.count(world.hosts[world.rank]))
        told_later = config.precision == "bf16" and config.fp32_sums and self._stage == 1
        if told_later:
            del settings["data_types"]
        _place(model, weights, DTYPES[config.precision], settings, world.device)
        if self._stage == 3:
            _gather_by_block(model)
        self._ds, *_ = deepspeed.initialize(
            model=model,
            model_parameters=list(model.parameters()),
            config=settings,
            lr_scheduler=None if schedule is None else lambda inner: _Schedule(inner, schedule),
        )
        if told_later:
            sum_in_fp32(self._ds.optimizer)
        # a second zero_to_fp32.py, which loads pickles as code
        self._ds._copy_recovery_script = lambda folder: None
        self._files = self._ds.checkpoint_engine = _CarefulFiles(self._ds._config)
        self.world = world
        self.module = self._ds.module
        if self._stage:
            find_by_norm(self._ds.optimizer, world)
        self._names = {parameter: name for name, parameter in self.module.named_parameters()}
        self._shards = Shards(self._ds, self._names, self._stage, world)
        differences = [
            f"{name} is {found}, the config says {asked}"
            for name, asked, found in self._read_back(config)
            if asked != found
        ]
        if differences:
            raise RunError(
                "DeepSpeed would run something else than the config says, so nothing was trained: "
                + "; ".join(differences)
            )

    def _read_back(self, config):
        """(name, value asked for, value that the engine has) of what makes the curve."""
        ds, asked = self._ds, config.deepspeed
        kind = asked["optimizer"]["type"]
        params = asked["optimizer"]["params"]
        group = ds.optimizer.param_groups[0]
        yield "train_batch_size", config.batch.train_batch_size, ds.train_batch_size()
        yield (
            "train_micro_batch_size_per_gpu",
            config.batch.micro_size,
            ds.train_micro_batch_size_per_gpu(),
        )
        yield (
            "gradient_accumulation_steps",
            config.batch.accumulation,
            ds.gradient_accumulation_steps(),
        )
        yield "ranks", config.batch.world_size, ds.world_size
        yield "gradient_clipping", asked["gradient_clipping"], ds.gradient_clipping()
        yield (
            "zero_optimization.stage",
            asked["zero_optimization"]["stage"],
            ds.zero_optimization_stage(),
        )
        yield "precision", DTYPES[config.precision], next(self.module.parameters()).dtype
        # DeepSpeed's "Adam" is AdamW unless told otherwise.
        decoupled = kind == "AdamW" or (kind == "Adam" and params.get("adam_w_mode", True))
        if kind == "SGD" or "torch_adam" in params:
            yield (
                "optimizer.type",
                "AdamW" if decoupled else kind,
                type(ds.basic_optimizer).__name__,
            )
        else:
            yield "optimizer.params.adam_w_mode", decoupled, bool(ds.basic_optimizer.adam_w_mode)
        for name in params.keys() & group.keys() - {"lr"}:
            yield f"optimizer.params.{name}", _plain(params[name]), _plain(group[name])
        if config.precision == "fp16":
            fixed = asked["fp16"]["loss_scale"]
            yield (
                "loss scale",
                fixed or 2.0 ** asked["fp16"]["initial_scale_power"],
                self.loss_scale,
            )
        if config.schedule is None:
            scheduler = asked.get("scheduler", {}).get("type")
            yield (
                "scheduler.type",
                scheduler,
                type(ds.lr_scheduler).__name__ if ds.lr_scheduler else None,
            )
            return
        yield "learning rate of step 1", config.schedule.lr(1), group["lr"]
        for step in (2, max(1, config.schedule.warmup_steps), config.schedule.decay_steps):
            ds.lr_scheduler.last_epoch = step - 1
            self._set_lr()
            yield f"learning rate of step {step}", config.schedule.lr(step), group["lr"]
        ds.lr_scheduler.last_epoch = 0
        self._set_lr()

    def _set_lr(self):
        """Give the optimiser the learning rate that its schedule is at, if it has one."""
        if self._ds.lr_scheduler is not None:
            for group, lr in zip(self._ds.optimizer.param_groups, self._ds.lr_scheduler.get_lr()):
                group["lr"] = lr

    @property
    def lr(self) -> float:
        """Learning rate of the next optimiser step."""
        return self._ds.get_lr()[0]

    def _grad_norm(self) -> torch.Tensor:
        """Of the last update, where the device has it: a number asked for here would be
        waited for."""
        norm = self._norm if self._stage == 0 else self._ds.get_global_grad_norm()
        if torch.is_tensor(norm):
            return norm.to(self.world.device, torch.float64)
        norm = math.nan if norm is None else norm  # before the first update
        return torch.full((), norm, dtype=torch.float64, device=self.world.device)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless in fp16."""
        return float(self._ds.optimizer.loss_scale) if self._ds.fp16_enabled() else 1.0

    def step(
        self, batch, want_norms: bool = False, accept=None, mark=lambda part: None, watch=None
    ) -> StepResult:
        """One optimiser step on this rank's part of a global batch.

        batch: int64 (accumulation, micro batch, seq_len + 1). All ranks call it together, with the
        same wishes. accept: called on all ranks with the global batch's mean loss before the
        update, False leaves the update out. mark: called after every "forward", "backward" and
        "step" of a micro-batch. watch: entered around each forward.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        before = None
        refused = False
        exhausted = False
        for index, micro_batch in enumerate(to_device(batch, self.world.device), 1):
            last = index == len(batch)
            with watch or nullcontext():
                loss = self._ds(micro_batch[:, :-1], micro_batch[:, 1:])
            total += loss.detach() / len(batch)
            if last and accept is not None:
                refused = not accept(self.world.sum(total.clone()).item() / self.world.size)
                if refused:  # a gradient that the optimizer leaves out by itself
                    loss = loss * math.nan
            mark("forward")
            self._ds.backward(loss)
            mark("backward")
            before = self._shards.before_update(self.loss_scale) if want_norms and last else None
            try:
                applied = self._update(last, refused)
            except _LossScaleExhausted:
                applied, exhausted = False, True
            mark("step")
        norms = self._shards.norms(before) if want_norms and applied else None
        return StepResult(applied, refused, exhausted, total, self._grad_norm(), norms)

    def _update(self, last, refused) -> bool:
        """Have the optimizer step if this was the last micro-batch; returns whether it did."""
        if last and self._stage == 0:  # where DeepSpeed tells no norm
            self._norm = self._shards.gradient_norm()
            if refused or not math.isfinite(self._norm):
                return self._pass_over()
        scaler = self._ds.optimizer.loss_scaler if refused and self._ds.fp16_enabled() else None
        before = dict(vars(scaler)) if scaler else None
        try:
            if scaler:
                scaler.raise_error_at_min_scale = False
            self._ds.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise _LossScaleExhausted from error
        if scaler:  # the batch was refused, so its gradient says nothing about the scale
            vars(scaler).update(before)
        applied = self._ds.was_step_applied()
        if last and not applied and self._stage in (1, 2):
            forget(self._ds.optimizer)
        return applied

    def _pass_over(self):
        """Stage 0, where nothing else keeps a bad gradient from the weights: an optimizer step
        without gradients does nothing, and its schedule is set back."""
        for parameter in self._names:
            parameter.grad = None
        schedule = self._ds.lr_scheduler
        before = schedule.state_dict() if schedule is not None else None
        self._ds.step()
        if schedule is not None:
            schedule.load_state_dict(before)
        self._set_lr()
        return False

    def first_nonfinite(self, batch) -> str | None:
        """Where the first value that is not finite arises in a forward and backward pass on this
        rank's batch: in a module's output, or in the gradient that reaches it; None if all are
        finite. All ranks together.

        For a run that gives up: the gradients of these passes stay behind.
        """
        found = []

        def watch(name):
            def seen(module, inputs, output):
                for value in output if isinstance(output, tuple) else (output,):
                    if torch.is_tensor(value) and not bool(torch.isfinite(value).all()):
                        found.append(f"the output of {name}")
                    elif torch.is_tensor(value) and value.requires_grad:
                        value.register_hook(
                            lambda gradient: (
                                None
                                if bool(torch.isfinite(gradient).all())
                                else found.append(f"the gradient of the output of {name}")
                            )
                        )

            return seen

        hooks = [
            module.register_forward_hook(watch(name))
            for name, module in self.module.named_modules()
            if name
        ]
        for micro_batch in to_device(batch, self.world.device):
            self._ds.backward(self._ds(micro_batch[:, :-1], micro_batch[:, 1:]))
        for hook in hooks:
            hook.remove()
        return found[0] if found else None

    def probe(self, tokens) -> float:
        """Loss of the present weights on tokens, int64 (rows, seq_len + 1); all ranks together on
        the same tokens."""
        tokens = to_device(tokens, self.world.device)
        with torch.no_grad():
            return self.module(tokens[:, :-1], tokens[:, 1:]).item()

    def save(self, folder, tag: str, state: dict) -> str | None:
        """Write this rank's part of a checkpoint into folder/tag; `state` is plain values. All
        ranks together.

        Returns what went wrong on this rank, or None. Whatever it is, the other ranks are not left
        waiting.
        """
        self._files.failure = None
        self._ds.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
        return self._files.failure

    def load(self, folder, tag: str):
        """Load the checkpoint folder/tag of the same world size and ZeRO stage. Settings stay the
        configuration's."""
        with keeping_settings(self._ds):
            path, _ = self._ds.load_checkpoint(str(folder), tag=tag)
        assert path is not None, f"DeepSpeed found nothing in {folder}/{tag}"
        self._set_lr()

    def adopt(self, full, loss_scale: float):
        """Take over whole tensors (gpt.checkpoint.zero_files.FullState) of a run on other ranks or
        at another ZeRO stage, or weights alone, where moments and scheduler are empty."""
        self._shards.adopt(full)
        if self._ds.lr_scheduler is not None and full.scheduler is not None:
            self._ds.lr_scheduler.load_state_dict(full.scheduler)
        self._set_lr()
        if self._ds.fp16_enabled() and self._ds.optimizer.loss_scaler.dynamic:
            self._ds.optimizer.loss_scaler.cur_scale = loss_scale


def _plain(value):
    return tuple(value) if isinstance(value, list) else value


class _CarefulFiles(TorchCheckpointEngine):
    """DeepSpeed's files: read without running code from their pickles; a write that fails is noted,
    not raised, so that DeepSpeed's own barriers still bring all ranks together."""

    failure = None

    def makedirs(self, path, exist_ok=False):
        self._noting_failure(path, lambda: super(_CarefulFiles, self).makedirs(path, exist_ok))

    def save(self, state_dict, path):
        self._noting_failure(path, lambda: super(_CarefulFiles, self).save(state_dict, path))

    def _noting_failure(self, path, work):
        try:
            work()
        except Exception as error:
            self.failure = self.failure or in_brief(error, path)

    def load(self, path, map_location=None):
        return load_weights_only(path, _PICKLED, map_location)

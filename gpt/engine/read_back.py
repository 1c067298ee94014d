"""The settings that make the curve, held against what DeepSpeed has made of them.

Part of the boundary that gpt/engine/boundary.py is: it reads DeepSpeed's objects, but needs nothing
of its modules. `ds` is DeepSpeed's engine throughout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpt.cluster.world import World
from gpt.compute.hardware import DTYPES
from gpt.config.batch import BatchPlan
from gpt.config.optimizer_keys import LION, LR_SCALE, MUON
from gpt.config.run_config import Config
from gpt.config.schedule import OwnSchedule
from gpt.engine import loss_scale
from gpt.engine.loss_scale import keeping_rules
from gpt.engine.schedule import set_lr
from gpt.errors import UserError, in_brief
from gpt.optimizers.groups import Group

# (name of a setting, its value in the configuration, its value in the engine)
Setting = tuple[str, object, object]


def differences(ds: Any, config: Config, groups: list[Group]) -> list[str]:
    """One clause for each setting that the engine would run otherwise than configured. groups: of
    gpt.optimizers.groups."""
    return [
        f"{name} is {actual}, the config says {configured}"
        for name, configured, actual in _settings(ds, config, groups)
        if configured != actual
    ]


def _settings(ds: Any, config: Config, groups: list[Group]) -> Iterator[Setting]:
    stage = config.deepspeed["zero_optimization"]["stage"]
    dtype = next(ds.module.parameters()).dtype
    yield from _batch(ds, config.batch)
    yield "gradient_clipping", config.deepspeed["gradient_clipping"], ds.gradient_clipping()
    yield "zero_optimization.stage", stage, ds.zero_optimization_stage()
    yield "precision", DTYPES[config.precision], dtype
    if config.optimizer_code is None:
        yield from _optimizer(ds, config.deepspeed["optimizer"], groups)
    if config.precision == "fp16":
        yield from _loss_scale(ds, config.deepspeed["fp16"])
    if config.schedule is None:
        yield from _scheduler(ds, config.deepspeed.get("scheduler", {}))
    else:
        yield from _learning_rates(ds, config.schedule)


def _batch(ds: Any, batch: BatchPlan) -> Iterator[Setting]:
    micro_size = ds.train_micro_batch_size_per_gpu()
    accumulation = ds.gradient_accumulation_steps()
    yield "train_batch_size", batch.train_batch_size, ds.train_batch_size()
    yield "train_micro_batch_size_per_gpu", batch.micro_size, micro_size
    yield "gradient_accumulation_steps", batch.accumulation, accumulation
    yield "ranks", batch.world_size, ds.world_size


def _optimizer(ds: Any, optimizer: dict, groups: list[Group]) -> Iterator[Setting]:
    kind = optimizer["type"]
    params = optimizer["params"]
    inner = ds.basic_optimizer
    # DeepSpeed's "Adam" is AdamW unless told otherwise.
    decoupled = kind == "AdamW" or (kind == "Adam" and params.get("adam_w_mode", True))
    if kind == MUON:
        yield "optimizer.type", "MuonWithAuxAdam", type(inner).__name__
    elif kind in ("SGD", LION) or "torch_adam" in params:
        yield "optimizer.type", "AdamW" if decoupled else kind, type(inner).__name__
    else:
        yield "optimizer.params.adam_w_mode", decoupled, bool(inner.adam_w_mode)
    yield "groups of parameters", len(groups), len(ds.optimizer.param_groups)
    for group, actual in zip(groups, ds.optimizer.param_groups):
        settings = {**params, **group.settings}
        for name in settings.keys() & actual.keys() - {"lr"}:
            yield f"optimizer.params.{name}", _hashable(settings[name]), _hashable(actual[name])


def _hashable(value: object):
    return tuple(value) if isinstance(value, list) else value


def _loss_scale(ds: Any, fp16: dict) -> Iterator[Setting]:
    configured = fp16["loss_scale"] or 2.0 ** fp16["initial_scale_power"]
    yield "loss scale", configured, loss_scale.current(ds)


def _scheduler(ds: Any, scheduler: dict) -> Iterator[Setting]:
    actual = type(ds.lr_scheduler).__name__ if ds.lr_scheduler else None
    yield "scheduler.type", scheduler.get("type"), actual


def _learning_rates(ds: Any, schedule: OwnSchedule) -> Iterator[Setting]:
    groups = ds.optimizer.param_groups
    scales = [group.get(LR_SCALE, 1.0) for group in groups]

    def of_step(step: int) -> Setting:
        configured = [schedule.lr(step) * scale for scale in scales]
        return f"learning rate of step {step}", configured, [group["lr"] for group in groups]

    yield of_step(1)
    for step in (2, *schedule.corners):
        ds.lr_scheduler.last_epoch = step - 1
        set_lr(ds)
        yield of_step(step)
    ds.lr_scheduler.last_epoch = 0
    set_lr(ds)


@contextmanager
def reading(folder: Path, world: World) -> Iterator[None]:
    """Around what takes tensors over from a folder's files: a UserError where they do not fit."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.distributed.DistError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError) as e:
        if world.lost(e):
            raise
        raise UserError(
            f"{folder} is not a whole checkpoint of such a run ({in_brief(e)})",
            mend="go on from another one",
        ) from e


@contextmanager
def keeping_settings(ds: Any) -> Iterator[None]:
    """Around a load, in which DeepSpeed takes hyperparameters, clipping and the rules of the loss
    scale from the checkpoint: they stay what the configuration says."""
    optimizer = ds.optimizer
    loaded = {"params", "step"}
    if ds.lr_scheduler is not None:
        loaded.add("lr")
    settings_of_groups = [
        {key: value for key, value in group.items() if key not in loaded}
        for group in optimizer.param_groups
    ]
    clips = "clip_grad" in vars(optimizer)
    clip_grad = optimizer.clip_grad if clips else None
    with keeping_rules(optimizer):
        yield
    for group, settings in zip(optimizer.param_groups, settings_of_groups):
        group.update(settings)
    if clips:
        optimizer.clip_grad = clip_grad

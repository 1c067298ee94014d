"""What a machine or DeepSpeed itself refuses of a configuration, found before a device is taken.

Part of the boundary that gpt/engine/boundary.py is: what it needs of DeepSpeed is passed.
"""

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from gpt.config.batch import BATCH
from gpt.config.optimizer_keys import LION, MUON
from gpt.config.run_config import Config, value_at
from gpt.errors import UserError
from gpt.optimizers.lion import Lion
from gpt.optimizers.trial import require_optimizer

ZERO = "zero_optimization"
# what only GPUs of NVIDIA's have: path -> the value that asks for it
OF_CUDA = {
    f"{ZERO}.offload_optimizer.super_offload": True,
    f"{ZERO}.zero_quantized_weights": True,
    f"{ZERO}.zero_quantized_nontrainable_weights": True,
    "aio.use_gds": True,
}
# DeepSpeed's observers that need a package which it does not bring
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
# DeepSpeed's models of blocks, whose messages name a key within the block
BLOCKS = {"DeepSpeedZeroConfig": ZERO, "DeepSpeedFP16Config": "fp16", "DeepSpeedBF16Config": "bf16"}
# parameters that torch's optimizers have by the same names
OF_TORCH = ("lr", "betas", "eps", "weight_decay", "amsgrad", "momentum", "dampening", "nesterov")
REFUSALS = (ValueError, TypeError, AssertionError, ArithmeticError, LookupError)


def settings_of(config: Config) -> dict[str, Any]:
    """What DeepSpeed gets."""
    settings = dict(config.deepspeed)
    optimizer = settings.get("optimizer")
    if optimizer is not None and config.schedule is not None:
        # the rate that the optimizer is made with; the schedule sets it before every step
        params = {**optimizer["params"], "lr": config.schedule.lr(1)}
        settings["optimizer"] = {**optimizer, "params": params}
    return {
        **settings,
        "steps_per_print": sys.maxsize,
        # It would wait for the device twice per micro-batch; gpt.metrics.meter measures without
        # waiting.
        "timers": {"throughput": {"enabled": False}},
    }


def require_machine(config: Config, device: str, compiles_async_io: Callable[[], bool]) -> None:
    """Raise UserError where a configuration asks for what this machine has not. device: the kind
    that DeepSpeed computes on."""
    zero = config.deepspeed[ZERO]
    for block in ("offload_optimizer", "offload_param"):
        if zero.get(block, {}).get("device") == "nvme" and not compiles_async_io():
            raise UserError(
                f"{ZERO}.{block}.device is nvme, which DeepSpeed's async_io operator"
                " serves, and it cannot be compiled here",
                mend="install a C++ compiler and libaio with its headers (Debian: g++ libaio-dev),"
                " or offload to cpu",
            )
    for path, value in OF_CUDA.items():
        if device != "cuda" and value_at(config.deepspeed, path) == value:
            raise UserError(
                f"{path} needs an NVIDIA GPU, and DeepSpeed computes on {device!r} here",
                mend="leave it out",
            )
    if device != "cuda" and config.options.cuda_graph:
        raise UserError(
            f"cuda_graph needs an NVIDIA GPU, and DeepSpeed computes on {device!r} here",
            mend="leave it out",
        )
    for block, package in PACKAGES.items():
        is_enabled = value_at(config.deepspeed, f"{block}.enabled")
        if is_enabled and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{block}.enabled is true, and the package {package!r} is not installed here",
                mend=f"`pip install {package}`, or leave the block {block!r} out",
            )


def require_deepspeed(
    config: Config, read: Callable[[dict[str, Any]], Any], schedules: ModuleType
) -> None:
    """Raise UserError where DeepSpeed or torch refuse a configuration that none of our own rules
    does. read: DeepSpeed's reader of configurations. schedules: its module of schedulers."""
    settings = settings_of(config)
    # how many ranks there are is not known to it yet
    of_a_rank = {name: value for name, value in settings.items() if name != BATCH}
    try:
        read(of_a_rank)
    except REFUSALS as error:
        raise _refusal(error, _path_of(error)) from error
    try:
        optimizer = _optimizer(settings.get("optimizer"))
    except REFUSALS as error:
        raise _refusal(error, "optimizer.params") from error
    require_optimizer(config)
    scheduler = settings.get("scheduler")
    if scheduler is None:
        return
    try:
        schedule = getattr(schedules, scheduler["type"])(optimizer, **scheduler["params"])
        for _ in range(3):
            schedule.step()
    except REFUSALS as error:
        raise _refusal(error, "scheduler.params") from error


def _optimizer(block: dict[str, Any] | None) -> torch.optim.Optimizer:
    """torch's own optimizer of one number, by a configuration's block; SGD in place of one that is
    not torch's."""
    number = [torch.nn.Parameter(torch.zeros(1))]
    if block is None:
        return torch.optim.SGD(number)
    params = {name: value for name, value in block["params"].items() if name in OF_TORCH}
    if block["type"] == LION:
        return Lion(number, **params)
    if block["type"] == MUON:  # whose AdamW has most of its parameters
        params.pop("momentum")
        return torch.optim.AdamW(number, **params)
    return getattr(torch.optim, block["type"])(number, **params)


def _path_of(error: Exception) -> str:
    """Where the value stands that DeepSpeed refuses, as far as the error tells."""
    details = getattr(error, "errors", None)
    if details is None:
        return ""
    names = [BLOCKS.get(getattr(error, "title", ""), ""), *map(str, details()[0]["loc"])]
    return ".".join(name for name in names if name)


def _refusal(error: Exception, path: str) -> UserError:
    details = getattr(error, "errors", None)
    words = details()[0]["msg"] if details else str(error)
    first_line = words.partition("\n")[0] or type(error).__name__
    return UserError(
        f"DeepSpeed refuses {path or 'the configuration'} ({first_line})",
        mend="change the value, or leave it out",
    )

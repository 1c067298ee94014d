"""The loss scale of fp16, and who may change it: training, and the checkpoint that it goes on from.

DeepSpeed's scaler halves a dynamic scale after a gradient that overflowed, and doubles it after a
stretch of steps without one. Everything else that would move it is kept from it here: a batch that
is refused looks like an overflow, and a checkpoint brings the rules of the run that wrote it.

Part of the boundary that gpt/engine/boundary.py is: it changes DeepSpeed's objects, but needs
nothing of its modules.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# what training moves of a dynamic scale; all else in a scaler are its rules
MOVED = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScaleExhausted(Exception):
    """DeepSpeed left out an update, and cannot lower the loss scale any more."""


def current(ds: Any) -> float:
    """What the loss is multiplied by before the backward pass; 1 unless in fp16. ds: DeepSpeed's
    engine, here and below."""
    return float(ds.optimizer.loss_scale) if ds.fp16_enabled() else 1.0


def take_over(ds: Any, scale: float) -> None:
    """Have a dynamic scale go on from that of another run; a fixed one stays as configured."""
    if ds.fp16_enabled() and ds.optimizer.loss_scaler.dynamic:
        ds.optimizer.loss_scaler.cur_scale = scale


def refused(loss: torch.Tensor) -> torch.Tensor:
    """The loss of a batch that shall change nothing: its gradient is NaN, which the optimizer
    leaves out by itself on all ranks."""
    return loss * math.nan


def step(ds: Any) -> None:
    """DeepSpeed's step. Raises LossScaleExhausted."""
    try:
        ds.step()
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        raise LossScaleExhausted from error


@contextmanager
def unmoved(ds: Any) -> Iterator[None]:
    """Around the step of a refused batch: its gradient says nothing about the scale, which is then
    what it was, and is not too low either."""
    if not ds.fp16_enabled():
        yield
        return
    scaler = ds.optimizer.loss_scaler
    before = dict(vars(scaler))
    scaler.raise_error_at_min_scale = False
    yield
    vars(scaler).update(before)


@contextmanager
def keeping_rules(optimizer: Any) -> Iterator[None]:
    """Around a load, in which DeepSpeed takes the checkpoint's whole scaler: the rules stay the
    configuration's, and what training has moved is loaded. optimizer: DeepSpeed's."""
    attributes = vars(optimizer)
    names = [name for name in ("loss_scaler", "dynamic_loss_scale") if name in attributes]
    kept = {name: attributes[name] for name in names}
    yield
    loaded = attributes.get("loss_scaler")
    attributes.update(kept)
    if loaded is not None and loaded.dynamic and kept["loss_scaler"].dynamic:
        for name in MOVED:
            value = getattr(loaded, name)
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"the {name} of its loss scale is no number")
            setattr(kept["loss_scaler"], name, value)

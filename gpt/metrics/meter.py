"""What a run has cost so far: time and its parts, tokens, FLOPs, memory."""

import time
from collections import deque
from contextlib import contextmanager

import torch

from gpt.compute import hardware

PARTS = ("data", "forward", "backward", "step", "eval", "checkpoint", "other")


class Clock:
    """Time spent on optimiser steps, with pauses for evaluations and checkpoints left out. It
    stands until `go_on`.

    seconds: what earlier processes of the run have spent.
    """

    def __init__(self, seconds: float):
        self._running_since = None
        self._spent = seconds

    def pause(self):
        self._spent = self.seconds()
        self._running_since = None

    def go_on(self):
        self._running_since = time.perf_counter()

    def seconds(self) -> float:
        return self._spent + (
            time.perf_counter() - self._running_since if self._running_since is not None else 0.0
        )


class TimeSplit:
    """Wall seconds by part. What passes between two calls of `mark` belongs to the part that the
    later one names.

    On CUDA a mark is an event on the current stream: it has its time when the device has done all
    that was asked of it before, so a part lasts until its work is done. Nothing here waits for
    that: what the device has not come to yet is counted with the next call. Elsewhere it is the
    host's time.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._pending = deque()
        self._last = self._now()

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, part: str):
        self._pending.append((part, self._now()))

    def settle(self):
        """Add up the marks that the device has come to."""
        while self._pending and (not self._cuda or self._pending[0][1].query()):
            part, now = self._pending.popleft()
            self._seconds[part] += (
                self._last.elapsed_time(now) / 1000 if self._cuda else now - self._last
            )
            self._last = now

    def take(self) -> dict:
        """{part: seconds} since the last call."""
        self.mark("other")
        self.settle()
        taken = self._seconds
        self._seconds = dict.fromkeys(PARTS, 0.0)
        return taken


class Meter:
    """Measures one process's part of a run on `world`; `seconds` of training were spent before. It
    stands until `start`."""

    def __init__(self, config, world, seconds: float):
        self._config = config
        self._world = world
        self.tokens_per_step = config.batch.train_batch_size * config.model.seq_len
        self.flops_per_token = config.model.matmul_flops_per_token()
        self.device = hardware.device_name(world.device)
        self.peak_flops = hardware.peak_flops(self.device, config.precision)
        self._clock = Clock(seconds)
        self._split = TimeSplit(world.device)
        self.mark = self._split.mark
        self.settle = self._split.settle

    def start(self, step: int):
        """Training goes on after `step`."""
        self._split.take()
        self._clock.go_on()
        self.begin_stretch(step)

    @property
    def seconds(self) -> float:
        """Measured seconds of training so far, evaluations and checkpoints left out."""
        return self._clock.seconds()

    @contextmanager
    def paused(self, part: str):
        """Something other than training, whose time belongs to `part`."""
        self._clock.pause()
        self.mark("other")
        yield
        self.mark(part)
        self.settle()
        self._clock.go_on()

    def begin_stretch(self, step: int):
        """Measure the speed from here on."""
        self._stretch = step, self.seconds

    def tokens_per_second(self, step: int) -> float:
        """Speed over all ranks since the present stretch began."""
        first, since = self._stretch
        return (step - first) * self.tokens_per_step / max(self.seconds - since, 1e-9)

    def axes(self, step: int) -> dict:
        """How far the run is, in every unit that a curve may be drawn over."""
        tokens = step * self.tokens_per_step
        reference = self._config.options.tokens_per_second
        return {
            "train_tokens": tokens,
            "flops": tokens * self.flops_per_token,
            "hours": self.seconds / 3600,
            "reference_hours": tokens / reference / 3600 if reference else None,
        }

    def costs(self, speed: float) -> dict:
        """What the stretch until now took of the machine, at `speed` tokens per second; seconds
        since the last call."""
        peak = self.peak_flops and self.peak_flops * self._world.size
        return {
            "tokens_per_second": speed,
            "mfu": speed * self.flops_per_token / peak if peak else None,
            "memory": hardware.peak_memory(self._world.device),
            "seconds": self._split.take(),
        }

"""What a run has cost so far: time and its parts, tokens, FLOPs, memory."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gpt.cluster.world import World
from gpt.compute import hardware
from gpt.compute.costs import costs_of
from gpt.config.identity import sequences_until
from gpt.config.run_config import Config
from gpt.metrics.events import AXES
from gpt.metrics.running_time import RunningTime

# of a step's wall time; "other" is what belongs to no other
PARTS = ("data", "forward", "backward", "step", "eval", "checkpoint", "other")


class Clock:
    """Time spent on optimiser steps, with pauses for evaluations and checkpoints left out. It
    stands until `go_on`.

    seconds: what earlier processes of the run have spent. now: tells the time, in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float]):
        self._now = now
        self._running_since: float | None = None
        self._spent = seconds

    def pause(self) -> None:
        self._spent = self.seconds()
        self._running_since = None

    def go_on(self) -> None:
        self._running_since = self._now()

    def seconds(self) -> float:
        if self._running_since is None:
            return self._spent
        return self._spent + (self._now() - self._running_since)


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
        self._pending: deque = deque()  # (part, its mark)
        self._last = self._now()

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, part: str) -> None:
        self._pending.append((part, self._now()))

    def settle(self) -> None:
        """Add up the marks that the device has come to."""
        while self._pending:
            part, mark = self._pending[0]
            if self._cuda and not mark.query():
                return
            self._pending.popleft()
            self._seconds[part] += self._between(self._last, mark)
            self._last = mark

    def _between(self, earlier: Any, later: Any) -> float:
        """Seconds from one mark to the next."""
        if self._cuda:
            return earlier.elapsed_time(later) / 1000
        return later - earlier

    def take(self) -> dict[str, float]:
        """{part: seconds} since the last call."""
        self.mark("other")
        self.settle()
        taken = self._seconds
        self._seconds = dict.fromkeys(PARTS, 0.0)
        return taken


class Meter:
    """Measures one process's part of a run on `world`. It stands until `start`.

    seconds: of training that were spent before. changes: what was changed on resuming, as in
    config.yaml. running_time: the clock that training is measured by.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        seconds: float,
        changes: Sequence[Mapping],
        running_time: RunningTime,
    ):
        self._running_time = running_time
        self._left_out_of_parts = running_time.suspended
        self._told = running_time.suspended
        self._changes = changes
        self._config = config
        self._world = world
        self.tokens_per_step = config.batch.train_batch_size * config.model.seq_len
        self.flops_per_token = costs_of(config).flops_per_token
        self.device = hardware.device_name(world.device)
        self.peak_flops = hardware.peak_flops(self.device, config.precision)
        self._clock = Clock(seconds, running_time.now)
        self._split = TimeSplit(world.device)
        self.mark = self._split.mark
        self.settle = self._split.settle
        self._stretch = 0, seconds  # the step and the time that it began with

    def start(self, step: int) -> None:
        """Training goes on after `step`."""
        self._parts()
        self._clock.go_on()
        self.begin_stretch(step)

    @property
    def seconds(self) -> float:
        """Measured seconds of training so far, evaluations and checkpoints left out."""
        return self._clock.seconds()

    @contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """Something other than training, whose time belongs to `part`."""
        self._clock.pause()
        self.mark("other")
        yield
        self.mark(part)
        self.settle()
        self._clock.go_on()

    def begin_stretch(self, step: int) -> None:
        """Measure the speed from here on."""
        self._stretch = step, self.seconds

    def tokens_per_second(self, step: int) -> float:
        """Speed over all ranks since the present stretch began."""
        first_step, since = self._stretch
        tokens = (step - first_step) * self.tokens_per_step
        return tokens / max(self.seconds - since, 1e-9)

    def tokens_until(self, step: int) -> int:
        """Training tokens of the steps up to `step`, each at the batch that it had."""
        batch_size = self._config.batch.train_batch_size
        sequences = sequences_until(step, batch_size, self._changes)
        return sequences * self._config.model.seq_len

    def axes(self, step: int) -> dict:
        """How far the run is, in every unit that a curve may be drawn over."""
        tokens = self.tokens_until(step)
        reference = self._config.options.tokens_per_second
        return {
            AXES["tokens"].key: tokens,
            AXES["flops"].key: tokens * self.flops_per_token,
            AXES["hours"].key: self.seconds / 3600,
            AXES["reference_hours"].key: tokens / reference / 3600 if reference else None,
        }

    def costs(self, speed: float) -> dict:
        """What the stretch until now took of the machine, at `speed` tokens per second; seconds
        since the last call."""
        utilisation = None
        if self.peak_flops:
            peak = self.peak_flops * self._world.size
            utilisation = speed * self.flops_per_token / peak
        return {
            "tokens_per_second": speed,
            "mfu": utilisation,
            "memory": hardware.peak_memory(self._world.device),
            "seconds": self._parts(),
        }

    def _parts(self) -> dict[str, float]:
        """{part: seconds} since the last call. What the process was suspended for was counted with
        one part, the longest therefore."""
        parts = self._split.take()
        suspended = self._running_time.suspended
        longest = max(parts, key=lambda part: parts[part])
        parts[longest] = max(0.0, parts[longest] - (suspended - self._left_out_of_parts))
        self._left_out_of_parts = suspended
        return parts

    def new_suspension(self) -> float:
        """Seconds for which the process was suspended since the last call."""
        suspended = self._running_time.suspended
        new = suspended - self._told
        self._told = suspended
        return new

"""A CPU that answers DeepSpeed's questions as a CUDA device does, so that tests run the code of a
GPU without one.

It takes DeepSpeed's branches for devices that work beside their host: streams, events, pinned
copies, waits before memory is used again; products go through F.linear. It shows no race between
streams, no kernel and no time.
"""

import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from gpt.engine import boundary
from gpt.kernels import linear

# of a tensor: the host waits for its value
READING = ("item", "tolist", "cpu", "__bool__", "__float__", "__int__")


class Synchronisations:
    """How often the host would have waited for the device since `clear()`.

    kinds: {"device" | "stream" | "event" | "Tensor.item" …: times}. places: {(kind,
    "file.py:line"): times}, the line of the project or of DeepSpeed that asked. Whether a tensor
    lies on the host cannot be seen: reading one counts, too.
    """

    def __init__(self):
        self.kinds = Counter()
        self.places = Counter()

    @property
    def total(self) -> int:
        return self.kinds.total()

    def clear(self):
        self.kinds.clear()
        self.places.clear()

    def count(self, kind):
        self.kinds[kind] += 1
        frame = sys._getframe(1)
        while frame and not any(
            part in frame.f_code.co_filename for part in ("/deepspeed/", "/gpt/")
        ):
            frame = frame.f_back
        if frame:
            self.places[
                kind, f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
            ] += 1


class Stream:
    """A queue of work on the device; all of it is done at once."""

    synchronisations = None  # of the fake in use

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, other):
        assert isinstance(other, Stream), other

    def wait_event(self, event):
        assert isinstance(event, Event), event

    def record_event(self, event=None):
        return event or Event()

    def query(self):
        return True

    def synchronize(self):
        self.synchronisations.count("stream")


class Event:
    """A mark in a stream; it is always reached."""

    synchronisations = None

    def __init__(self, *args, **kwargs):
        pass

    def record(self, stream=None):
        assert stream is None or isinstance(stream, Stream), stream

    def wait(self, stream=None):
        assert stream is None or isinstance(stream, Stream), stream

    def query(self):
        return True

    def elapsed_time(self, other):
        return 0.0

    def synchronize(self):
        self.synchronisations.count("event")


@contextmanager
def fake_cuda():
    """Inside, DeepSpeed's CPU accelerator is as a CUDA device; gives the Synchronisations. Engines
    are made inside."""
    found, default = Synchronisations(), Stream()
    streams = [default]

    @contextmanager
    def entered(stream):
        streams.append(default if stream is None else stream)
        try:
            yield
        finally:
            streams.pop()

    answers = {
        "is_fp16_supported": lambda self: True,
        "is_synchronized_device": lambda self: False,
        "use_host_timers": lambda self: False,
        "resolves_data_dependency": lambda self: False,
        "handles_memory_backpressure": lambda self: False,
        "synchronize": lambda self, index=None: found.count("device"),
        "Stream": property(lambda self: Stream),
        "Event": property(lambda self: Event),
        "stream": lambda self, stream: entered(stream),
        "current_stream": lambda self, index=None: streams[-1],
        "default_stream": lambda self, index=None: default,
        "on_accelerator": lambda self, tensor: tensor.device.type == "cpu",
        "pin_memory": lambda self, tensor, *args, **kwargs: tensor.clone(),
    }
    with pytest.MonkeyPatch.context() as patch:
        accelerator = type(boundary.deepspeed.accelerator.get_accelerator())
        for name, answer in answers.items():
            patch.setattr(accelerator, name, answer)
        patch.setattr(Stream, "synchronisations", found)
        patch.setattr(Event, "synchronisations", found)
        patch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
        patch.setattr(torch.Tensor, "pin_memory", lambda self, *args, **kwargs: self.clone())
        patch.setattr(linear, "_WIDE", False)
        for name in READING:
            patch.setattr(
                torch.Tensor, name, _counted(getattr(torch.Tensor, name), f"Tensor.{name}", found)
            )
        yield found


def _counted(method, kind, found):
    def counted(self, *args, **kwargs):
        found.count(kind)
        return method(self, *args, **kwargs)

    return counted

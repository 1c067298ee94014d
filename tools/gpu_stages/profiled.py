"""One step under torch.profiler: what ran on the device, how long, how often the host waited."""

from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "the step"  # a range in the trace
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "hipStreamSynchronize",
)


class Profile(NamedTuple):
    launches: int  # kernels and copies; on a CPU operators
    busy_ms: float  # in which at least one of them ran
    waits: int  # of the host for the device
    heaviest: list  # (name, how often, ms in all), the heaviest first
    trace: profile


def profiled(lab, step) -> Profile:
    """The step must have run before. The profiler makes host times longer, the device's not."""
    lab.wait()
    with profile(
        activities=[ProfilerActivity.CPU, *([] if lab.dry else [ProfilerActivity.CUDA])]
    ) as trace:
        with record_function(STEP):
            step()
        lab.wait()
    events = list(trace.events())
    ran = [event for event in events if _on_device(event, lab.dry)]
    kinds = {}
    for event in ran:
        count, ms = kinds.get(event.name, (0, 0.0))
        kinds[event.name] = (
            count + 1,
            ms + (event.self_cpu_time_total if lab.dry else event.time_range.elapsed_us()) / 1e3,
        )
    heaviest = sorted(
        ((name, count, ms) for name, (count, ms) in kinds.items()), key=lambda kind: -kind[2]
    )
    host = next(
        event.time_range
        for event in events
        if event.name == STEP and not _on_device(event, lab.dry)
    )
    waits = sum(
        event.name in WAITS and host.start <= event.time_range.start < host.end for event in events
    )
    return Profile(len(ran), _covered(ran) / 1e3, waits, heaviest, trace)


def _on_device(event, dry):
    """Kernels and copies, without the ranges that the profiler shows beside them."""
    if dry:
        return event.name.startswith("aten::")
    on_cuda = event.device_type == torch.autograd.DeviceType.CUDA
    return (
        on_cuda
        and not getattr(event, "is_user_annotation", False)
        and event.name != STEP
        and not event.name.startswith("Optimizer.")
    )


def _covered(events):
    """Microseconds in which at least one of the events ran."""
    covered, reached = 0.0, 0.0
    for begin, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered

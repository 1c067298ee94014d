"""Whether this machine rounds as the one did that a run was trained on."""

import re
from collections.abc import Mapping
from typing import Any

from gpt.compute import hardware
from gpt.metrics import events
from gpt.metrics.run import Run

# packages whose versions decide how numbers are rounded
ROUNDING = ("torch", "numpy", "deepspeed", "triton", "cuda")
CPU = re.compile(r"cpu \((?P<machine>[^,)]*), (?P<threads>\d{1,4}) threads?\)")


def threads_of(run: Run) -> int | None:
    """The threads that a run's processes computed with, on a CPU; None where it was no CPU."""
    starts = run.events.get(events.START, [])
    match = CPU.fullmatch(str(starts[0].get("device"))) if starts else None
    return int(match["threads"]) if match else None


def differences(run: Run) -> list[str]:
    """In what this machine differs from those that a run was trained on, so that numbers in fp32
    may be rounded otherwise: none of one CPU of the same kind."""
    starts = run.events.get(events.START, [])
    words: dict[str, None] = {}
    for start in starts:
        for difference in _differences(start):
            words[difference] = None
    return list(words) if starts else ["nothing is told of its machine"]


def _differences(start: Mapping[str, Any]) -> list[str]:
    device = str(start.get("device"))
    if not CPU.fullmatch(device):
        return [f"trained on {device}"]
    words = []
    if start.get("ranks") != 1:
        words.append(f"{start.get('ranks')} ranks")
    if start.get("processor") != hardware.processor():
        words.append(f"processor {start.get('processor')}, here {hardware.processor()}")
    versions = start.get("versions") or {}
    here = hardware.versions()
    for name in ROUNDING:
        if versions.get(name) != here.get(name):
            words.append(f"{name} {versions.get(name)}, here {here.get(name)}")
    return words

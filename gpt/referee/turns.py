"""The engines of both sides taking turns on one device, in one process group and in a process of
its own: `python -m gpt.referee.turns`.

Random tokens, whole optimiser steps, on the clock until their loss is known; what is compiled,
allocated and chosen at first is not.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from gpt.errors import RunError, UserError, command
from gpt.referee.machine import Load, cpu_clock, gpu_facts
from gpt.training.measuring import TimedEngine, answer, config_here

TURN_SECONDS = 0.5
LEAST_STEPS = 2  # of a turn
WARMUP_STEPS = 3

Step = Callable[[], float]  # takes one, and returns its seconds


def in_turns(first: str, second: str, rounds: int) -> list[str]:
    """Each of the two in every round, the first one first in every other: ABBA ABBA …"""
    order: list[str] = []
    for number in range(rounds):
        order += [second, first] if number % 2 else [first, second]
    return order


def warm_up(steps: Mapping[str, Step]) -> dict[str, int]:
    """The steps of a turn of each side: as many whole ones as take about TURN_SECONDS, at least
    LEAST_STEPS."""
    counts = {}
    for side, step in steps.items():
        seconds = min([step() for _ in range(WARMUP_STEPS)])
        counts[side] = max(LEAST_STEPS, round(TURN_SECONDS / seconds))
    return counts


def take_turns(
    steps: Mapping[str, Step], counts: Mapping[str, int], order: Iterable[str]
) -> list[tuple[str, list[float]]]:
    """(side, seconds of each of its steps) of every turn."""
    return [(side, [steps[side]() for _ in range(counts[side])]) for side in order]


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """The turns of one process.

    task: {"sides": {side: tree of its configuration}, "order": [side of each turn]}. Returns
    {"status": "ok", "sides": {side: facts}, "turns": [[side, seconds of each step]], "machine":
    facts}.
    """
    from gpt.compute import hardware
    from gpt.compute.costs import costs_of
    from gpt.engine import boundary

    world = boundary.connect()
    engines: dict[str, TimedEngine] = {}
    sides: dict[str, dict[str, Any]] = {}
    for side, tree in task["sides"].items():
        try:
            config = config_here(tree, side)
            engines[side] = TimedEngine(config, world)
            costs = costs_of(config)
        except (UserError, RunError) as error:
            raise UserError(f"{side}: {error}") from error
        sides[side] = {
            "precision": config.precision,
            "kernels": engines[side].kernels,
            "parameters": costs.parameters,
            "flops_per_token": costs.flops_per_token,
        }
    steps = {side: engine.step for side, engine in engines.items()}
    counts = warm_up(steps)
    load = Load()
    turns = take_turns(steps, counts, task["order"])
    machine = {
        "device": hardware.device_name(world.device),
        "versions": hardware.versions(),
        "load_during": load.of_others(),
        "cpu_clock": cpu_clock(),
        "gpu": gpu_facts(_uuid(world.device)) if world.device.type == "cuda" else None,
    }
    boundary.disconnect()
    return {"status": "ok", "sides": sides, "turns": turns, "machine": machine}


def _uuid(device: Any) -> str:
    """As NVIDIA's tool names a GPU."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


if __name__ == "__main__":
    command(partial(answer, measure))

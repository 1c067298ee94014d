"""How many tokens per second a configuration trains at on this device.

Each micro batch is measured in a process of its own, `python -m gpt.training.throughput`, whose
death is a result as well: whole optimiser steps of gpt.engine.boundary.Engine on one device, from
random tokens to updated weights, on the clock until their loss is known.
"""

import hashlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt.compute import classes
from gpt.compute.costs import costs_of
from gpt.config.batch import ACCUMULATION, BATCH, MICRO, divisors
from gpt.config.draft import Draft
from gpt.config.resolve import complete, override, resolve
from gpt.config.run_config import Config
from gpt.errors import UserError, command
from gpt.training.measuring import OUT_OF_MEMORY, TimedEngine, answer, config_here, in_child
from gpt.training.run_data import look_up_vocabulary

# steps of a tenth of a second that are disturbed once a second need some seconds
MINIMUM_SECONDS = 3.0
# tokens/s that no device reaches, at which a class is never too short
FASTEST = 1e12


@dataclass(frozen=True)
class Plan:
    """What is measured: a run at several micro batches."""

    name: str
    tree: dict  # the run's JSON
    config: Config
    configs: dict[int, Config]  # of one rank, by micro batch, smallest first


def plan(tree: Any, name: str, sweep: bool, micro_batches: list[int] | None) -> Plan:
    """Check a run's JSON at every micro batch. Raises UserError with its mistakes.

    sweep: at all that divide the batch; else at micro_batches, or the run's own.
    """
    if (sweep or micro_batches) and isinstance(tree, dict):
        tree = {key: value for key, value in tree.items() if key != ACCUMULATION}
    draft = complete(Draft(tree, name))
    look_up_vocabulary(draft)
    config = draft.settle()
    batch = config.batch
    gpt = {**tree["gpt"], "vocab_size": config.model.vocab_size}
    tree = {**tree, BATCH: batch.train_batch_size, "gpt": gpt}
    if sweep:
        sizes = divisors(batch.train_batch_size)
    else:
        sizes = sorted(set(micro_batches or [batch.micro_size]))
    for size in sizes:
        if batch.train_batch_size % size:
            possible = ", ".join(map(str, divisors(batch.train_batch_size)))
            raise UserError(
                f"--micro_batch {size} does not divide train_batch_size {batch.train_batch_size}",
                mend=f"it can be {possible}",
            )
    configs = {size: resolve(_at_micro_batch(tree, size), name) for size in sizes}
    return Plan(name, tree, config, configs)


def _at_micro_batch(tree: dict, size: int) -> dict:
    return {**tree, MICRO: size, ACCUMULATION: max(1, tree[BATCH] // size)}


def changed(tree: Any, name: str, overrides: dict[str, Any]) -> Any:
    """A run's JSON with the values of the command line, {dotted path: value}, in it. Raises
    UserError for options that it has no place for."""
    draft = Draft(tree, name)
    if isinstance(tree, dict):  # where it is not, the check of the whole tree says so
        override(draft, overrides)
    draft.refuse_mistakes()
    return draft.tree


def measure_all(
    plan: Plan, steps: int, warmup: int, memory_limit: float | None
) -> Iterator[dict[str, Any]]:
    """The result of every micro batch, each when it is known, until memory ends.

    memory_limit: bytes of host memory that a measurement may take; None: most of what is free.
    """
    for size, config in plan.configs.items():
        task = {"tree": config.tree(), "name": plan.name, "steps": steps, "warmup": warmup}
        result = in_child("gpt.training.throughput", task, memory_limit)
        accumulation = plan.config.batch.train_batch_size // size
        yield {"micro_batch": size, "accumulation": accumulation, **result}
        if result["status"] == OUT_OF_MEMORY:
            break


def report(plan: Plan, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What was measured, and the best of it, as plain values. Raises UserError where nothing could
    be measured."""
    costs = costs_of(plan.config)
    content = plan.config.tree()
    del content[MICRO], content[ACCUMULATION]
    machine: dict[str, Any] = {}
    rows = []
    for result in results:
        row = dict(result)
        machine |= row.pop("machine", {})
        rows.append(row)
    measured = [row for row in rows if row["status"] == "ok"]
    if not measured:
        raise UserError(
            f"{plan.name}: no micro batch could be measured ({rows[-1]['status']})",
            mend="give a smaller --micro_batch, or a larger --memory_limit",
        )
    best = max(measured, key=lambda row: row["tokens_per_second"])
    return {
        "config": plan.name,
        "config_hash": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "train_batch_size": plan.config.batch.train_batch_size,
        "seq_len": plan.config.model.seq_len,
        "parameters": costs.parameters,
        "flops_per_token": costs.flops_per_token,
        "model": model_in_words(plan.config),
        "model_digest": plan.config.model_digest,
        "results": rows,
        **machine,
        "best_micro_batch": best["micro_batch"],
        "tokens_per_second": best["tokens_per_second"],
    }


def model_in_words(config: Config) -> str:
    """The GPT, or a model file by its name and hash."""
    return "the GPT" if config.model_code is None else str(config.model_code)


# ---- What the measured throughput means for the compute classes


def rounded(speed: float) -> float:
    """A throughput as a class's JSON states it."""
    return round(speed) if speed >= 100 else round(speed, 2)


def classes_here(report: dict[str, Any], hours: list[float], own_batch: bool) -> dict[str, dict]:
    """{class: its hours, batch and steps} at the measured throughput; the shipped classes' batches
    unless own_batch."""
    speed = rounded(report["tokens_per_second"])
    facts = {}
    for value in hours:
        batch = report["train_batch_size"] if own_batch else classes.batch_of(value)
        steps = classes.steps_of(value, speed, batch * report["seq_len"])
        facts[classes.name_of(value)] = {"hours": value, "train_batch_size": batch, "steps": steps}
    return facts


def require_classes(plan: Plan, hours: list[float], own_batch: bool) -> None:
    """Raise UserError where no throughput makes classes of the run: before minutes of measuring."""
    config = plan.config
    report: dict[str, Any] = {
        "tokens_per_second": FASTEST,
        "flops_per_token": costs_of(config).flops_per_token,
        "model_digest": config.model_digest,
        "precision": config.precision,
        "train_batch_size": config.batch.train_batch_size,
        "seq_len": config.model.seq_len,
        "best_micro_batch": min(plan.configs),
    }
    class_trees(plan.tree, {**report, "classes": classes_here(report, hours, own_batch)})


def class_trees(tree: dict, report: dict[str, Any]) -> dict[float, dict]:
    """{hours: the JSON of a class at the measured throughput}, each checked as train.py will check
    it."""
    trees = {}
    rate = classes.Rate(
        rounded(report["tokens_per_second"]),
        report["flops_per_token"],
        report["precision"],
        report["model_digest"],
    )
    for name, facts in report["classes"].items():
        class_tree = classes.class_tree(
            {**tree, BATCH: facts["train_batch_size"]},
            facts["hours"],
            rate,
            report["best_micro_batch"],
            report["seq_len"],
        )
        resolve(class_tree, name)
        trees[facts["hours"]] = class_tree
    return trees


# ---- The child


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Whole optimiser steps of the engine that train.py trains with: speeds in tokens/s, memory in
    bytes."""
    from gpt.compute import hardware
    from gpt.engine import boundary

    config = config_here(task["tree"], task["name"])
    world = boundary.connect()
    engine = TimedEngine(config, world)
    seconds = _step_seconds(engine, task["warmup"], task["steps"])
    device = hardware.device_name(world.device)
    peak = hardware.peak_flops(device, config.precision)
    speeds = _speeds(seconds, config.batch.train_batch_size * config.model.seq_len)
    flops_per_second = speeds["tokens_per_second"] * costs_of(config).flops_per_token
    result = {
        "status": "ok",
        **speeds,
        "step_seconds": seconds,
        "peak_memory": hardware.peak_memory(world.device),
        "mfu": flops_per_second / peak if peak else None,
        "machine": {
            "device": device,
            "precision": config.precision,
            "kernels": engine.kernels,
            "peak_flops": peak,
            "versions": hardware.versions(),
        },
    }
    boundary.disconnect()
    return result


def _step_seconds(engine: TimedEngine, warmup: int, steps: int) -> list[float]:
    """Seconds of whole steps after `warmup` of them: at least so many, and MINIMUM_SECONDS."""
    for _ in range(warmup):
        engine.step()
    seconds: list[float] = []
    while len(seconds) < steps or sum(seconds) < MINIMUM_SECONDS:
        seconds.append(engine.step())
    return seconds


def _speeds(seconds: list[float], tokens_per_step: int) -> dict:
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {
        # Over all steps, as training counts: what disturbs one in ten steps costs there too.
        "tokens_per_second": tokens_per_step * len(seconds) / sum(seconds),
        "lower_quartile": tokens_per_step / quarters[2],
        "median": tokens_per_step / quarters[1],
        "upper_quartile": tokens_per_step / quarters[0],
    }


if __name__ == "__main__":
    command(partial(answer, measure))

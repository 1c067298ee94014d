"""How many tokens per second a configuration trains at on this device.

Each micro batch is measured in a process of its own, `python -m gpt.training.throughput`, whose
death is a result as well: whole optimiser steps of gpt.engine.boundary.Engine on one device, from
random tokens to updated weights, on the clock until their loss is known.
"""

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from gpt.compute import classes
from gpt.compute.costs import costs_of
from gpt.config.batch import ACCUMULATION, BATCH, MICRO, divisors
from gpt.config.draft import Draft
from gpt.config.resolve import complete, override, resolve
from gpt.config.run_config import Config
from gpt.errors import RunError, UserError, command, in_words
from gpt.training.run_data import look_up_vocabulary

if TYPE_CHECKING:  # which import torch
    import numpy as np

    from gpt.engine.boundary import Engine

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
# steps of a tenth of a second that are disturbed once a second need some seconds
MINIMUM_SECONDS = 3.0
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "MemoryError")
MOST_OVERFLOWS = 100  # steps that fp16 may leave out
# tokens/s that no device reaches, at which a class is never too short
FASTEST = 1e12
FREE_SHARE = 0.95  # of the free host memory that a measurement may take
LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


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
        result = _in_child(task, memory_limit or FREE_SHARE * psutil.virtual_memory().available)
        accumulation = plan.config.batch.train_batch_size // size
        yield {"micro_batch": size, "accumulation": accumulation, **result}
        if result["status"] == "out of memory":
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
        "model": _model_in_words(plan.config),
        "model_digest": plan.config.model_digest,
        "results": rows,
        **machine,
        "best_micro_batch": best["micro_batch"],
        "tokens_per_second": best["tokens_per_second"],
    }


def _model_in_words(config: Config) -> str:
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


def _in_child(task: dict, memory_limit: float) -> dict:
    """Measure in a process of its own. memory_limit: bytes of host memory."""
    with subprocess.Popen(
        [sys.executable, "-m", "gpt.training.throughput"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as child:
        text: str | None = json.dumps(task)
        output = None
        while output is None:
            try:
                output, errors = child.communicate(text, timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                text = None
                # before the system looks for something to kill
                if _resident(child.pid) > memory_limit:
                    child.kill()
    if child.returncode == 0:
        return json.loads(output.splitlines()[-1])
    if child.returncode == -signal.SIGKILL or any(words in errors for words in NO_MEMORY):
        return {"status": "out of memory"}
    lines = [line for line in errors.splitlines() if line.strip()]
    return {"status": f"failed: {lines[-1] if lines else f'exit code {child.returncode}'}"}


def _environment() -> dict:
    """A child is no rank of whatever launcher this was started under, and imports this project,
    whatever the folder is that it is started in."""
    environment = {
        name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES
    }
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _resident(pid: int) -> int:
    """Bytes of host memory that a process occupies."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def child() -> None:
    """Read a task from stdin; write its result as the last line of stdout. A mistake that only the
    device tells is a result, too."""
    task = json.loads(sys.stdin.read())
    try:
        result = measure(task)
    except Exception as caught:
        error = in_words(caught)
        if not isinstance(error, (UserError, RunError)):
            raise
        result = {"status": f"failed: {error}"}
    print("\n" + json.dumps(result))


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Whole optimiser steps of the engine that train.py trains with: speeds in tokens/s, memory in
    bytes."""
    import torch

    from gpt.architecture.architecture import build
    from gpt.compute import hardware
    from gpt.engine import boundary
    from gpt.kernels.choice import choose

    config = resolve(task["tree"], task["name"])
    if config.precision == "fp16" and not boundary.has_fp16():
        config = config.without_fp16("no GPU that computes in fp16")
    world = boundary.connect()
    dtype = hardware.DTYPES[config.precision]
    kernels, _ = choose(config.options.kernels, world.device, config.model, dtype)
    model = build(config, kernels)
    engine = boundary.Engine(model, config, world, model.initial_weights(config.options.seed))
    size = (config.batch.accumulation, config.batch.micro_size, config.model.seq_len + 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.model.vocab_size, size, generator=generator).numpy()
    seconds = _step_seconds(engine, tokens, task["warmup"], task["steps"])
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
            "kernels": kernels,
            "peak_flops": peak,
            "versions": hardware.versions(),
        },
    }
    boundary.disconnect()
    return result


def _step_seconds(engine: "Engine", tokens: "np.ndarray", warmup: int, steps: int) -> list:
    """Seconds of whole steps after `warmup` of them: at least so many, and MINIMUM_SECONDS."""
    seconds: list[float] = []
    overflows = 0
    while len(seconds) < warmup + steps or sum(seconds[warmup:]) < MINIMUM_SECONDS:
        began = time.perf_counter()
        result = engine.step(tokens)
        result.loss.item()  # as in training, where the ranks agree on it after every step
        if result.applied:
            seconds.append(time.perf_counter() - began)
            continue
        overflows += 1  # of fp16, which is no whole step
        if overflows > MOST_OVERFLOWS:
            raise RunError("the gradient overflows again and again")
    return seconds[warmup:]


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
    command(child)

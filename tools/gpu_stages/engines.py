"""What does a run do? Optimiser steps under DeepSpeed at ZeRO 1: right, how fast, and why."""

import math
import statistics
import time

import torch

from gpt.architecture.architecture import build
from gpt.compute import classes, hardware
from gpt.compute.stage_tables import memory_at
from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.metrics.meter import TimeSplit
from gpt.model import GPT
from tools.benchmarks import paper
from tools.gpu_stages.lab import TINY
from tools.gpu_stages.profiled import profiled

ACCUMULATION = 4
HEAVIEST = 15
TRACE_BYTES = 12 << 20
NEAR = {
    "fp32": 1e-3,
    "bf16": 0.03,
    "fp16": 0.005,
}  # nats between the engine's first loss and plain torch's in fp32


def small_bf16(lab):
    _measure(lab, "small", "bf16")


def small_fp16(lab):
    _measure(lab, "small", "fp16")


def medium_bf16(lab):
    _measure(lab, "medium", "bf16")


def _measure(lab, preset, precision):
    world = boundary.connect()
    # A CPU does without fp16. The check still stands under the precision that it is for.
    config = _config(
        lab, preset, precision if precision == "bf16" or boundary.has_fp16() else "fp32"
    )
    model = build(config, lab.kernels)
    made = boundary.Engine(model, config, world, model.initial_weights(0))
    batch = lab.tokens(
        ACCUMULATION,
        config.batch.micro_size,
        config.model.seq_len + 1,
        vocab_size=config.model.vocab_size,
    )
    batch = batch.cpu().numpy()
    lab.forget_peak()
    results = [made.step(batch) for _ in range(3)]
    split = TimeSplit(world.device)
    seconds = []
    for _ in range(3 if lab.dry else 12):
        began = time.perf_counter()
        results.append(made.step(batch, mark=split.mark))
        results[-1].loss.item()
        seconds.append(time.perf_counter() - began)
    parts = split.take()
    peak = None if lab.dry else hardware.peak_memory(world.device)
    _check(lab, config, preset, precision, batch, results)
    seen = profiled(lab, lambda: made.step(batch))
    taken = statistics.median(seconds)
    tokens = ACCUMULATION * config.batch.micro_size * config.model.seq_len
    lab.row(
        "engine",
        preset=preset,
        precision=precision,
        micro_batch=config.batch.micro_size,
        ms=1e3 * taken,
        tokens_per_second=tokens / taken,
        mfu=lab.mfu(tokens / taken, config.model, precision),
        tokens_on_paper=_on_paper(lab, config, precision),
        peak_bytes=peak,
        estimated_bytes=memory_at(config, 1, False).total,
        launches=seen.launches,
        waits=None if lab.dry else seen.waits,
        idle=None if lab.dry else max(0.0, 1 - seen.busy_ms / 1e3 / taken),
        loss_scale=made.loss_scale,
        left_out=sum(not result.applied for result in results),
        parts_ms={part: 1e3 * spent / len(seconds) for part, spent in parts.items() if spent},
    )
    for name, count, ms in seen.heaviest[:HEAVIEST]:
        lab.row("heaviest", preset=preset, precision=precision, name=name[:110], count=count, ms=ms)
    _keep_trace(lab, seen.trace)
    boundary.disconnect()


def _on_paper(lab, config, precision):
    if precision != "bf16":  # the one that the model is of
        return None
    rows = config.batch.micro_size
    return lab.tokens_on_paper(config.model, rows, ACCUMULATION, paper.ZERO_1)


def graph(lab):
    """Are steps by `--cuda_graph` those without it, and what do they save?"""
    world = boundary.connect()
    with lab.attempt("graph", must=True, model="small"):
        engines = {}
        for is_graphed in (False, True):
            # a CPU has no graphs, and refuses them
            config = _config(lab, "small", "bf16", cuda_graph=is_graphed and not lab.dry)
            model = build(config, lab.kernels)
            engines[is_graphed] = boundary.Engine(model, config, world, model.initial_weights(0))
        rows, length = config.batch.micro_size, config.model.seq_len + 1
        tokens = lab.tokens(ACCUMULATION, rows, length, vocab_size=config.model.vocab_size)
        batch = tokens.cpu().numpy()
        losses = {
            kind: [made.step(batch).loss.item() for _ in range(3)] for kind, made in engines.items()
        }
        milliseconds = {kind: [] for kind in engines}
        for _ in range(2 if lab.dry else 10):
            for kind, made in engines.items():
                seconds = lab.wall_seconds(lambda: made.step(batch), 1)
                milliseconds[kind].append(1e3 * seconds)
        eager, graphed = (statistics.median(milliseconds[kind]) for kind in (False, True))
        notice = "; ".join(engines[True].notices)
        lab.row(
            "graph",
            model="small",
            micro_batch=rows,
            eager_ms=eager,
            graph_ms=graphed,
            gain=1 - graphed / eager,
            notice=notice,
        )
        if lab.dry:
            lab.not_run("steps by a CUDA graph", "it needs a GPU")
        else:
            apart = max(abs(one - other) for one, other in zip(losses[False], losses[True]))
            faults = [notice] if notice else []
            faults += [] if apart < NEAR["bf16"] else [f"losses are {apart:.4f} nats apart"]
            lab.check("steps by a CUDA graph", "", faults, f"losses {apart:.4f} nats apart")
    boundary.disconnect()


def _config(lab, preset, precision, **options):
    rows = lab.rows(preset)
    tree = classes.shipped_tree(preset, ACCUMULATION * rows)
    tree.pop("train_micro_batch_size_per_gpu", None)
    tree["gradient_accumulation_steps"] = ACCUMULATION
    tree["fp16"]["enabled"], tree["bf16"] = precision == "fp16", {"enabled": precision == "bf16"}
    tree["scheduler"]["params"]["warmup_steps"] = 5  # so that the loss of so few steps sinks
    # So that the estimate is of steps as these are.
    tree["gpt"] |= {"kernels": lab.kernels, "log_grads_every": 0, **options}
    if lab.dry:
        tree["gpt"] |= vars(TINY)
    return resolve(tree, "gpu_check")


def _check(lab, config, preset, precision, batch, results):
    losses = [result.loss.item() for result in results]
    exact = GPT(config.model, 0).to(lab.device)
    with torch.no_grad():
        micro_batches = torch.from_numpy(batch).to(lab.device)
        first = statistics.fmean(
            exact(micro[:, :-1], micro[:, 1:]).item() for micro in micro_batches
        )
    apart = abs(losses[0] - first)
    faults = [] if all(map(math.isfinite, losses)) else [f"losses {losses}"]
    faults += (
        []
        if apart < NEAR[precision]
        else [f"the first loss is {losses[0]:.4f}, by plain torch in fp32 {first:.4f}"]
    )
    faults += (
        []
        if losses[-1] < losses[0] - 0.02
        else [f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"]
    )
    faults += [] if results[-1].applied else ["the last update was left out"]
    lab.check(
        f"engine, {preset}",
        precision,
        faults,
        f"{apart:.4f} nats from plain torch; {losses[0]:.3f} to {losses[-1]:.3f} "
        f"in {len(losses)} steps on one batch, {config.precision}",
    )


def _keep_trace(lab, trace):
    """The step for chrome://tracing, unless it is large."""
    path = lab.out / f"{lab.stage}.json.gz"
    trace.export_chrome_trace(str(path))
    if path.stat().st_size > TRACE_BYTES:
        path.unlink()

"""A few optimiser steps of an Engine, for tests: `python engine_run.py FILE.json OUT DATA [fp16]`,
under any launcher.

Rank 0 writes OUT/result.pt: losses, gradient norms, group norms, and the engine's own fp32 weights.
"""

import json
import sys
from pathlib import Path

import torch

from gpt.checkpoint import folders
from gpt.checkpoint.manifest import Manifest
from gpt.config.resolve import resolve
from gpt.config.saved import CONFIG, write_config
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.engine import boundary
from gpt.engine.schedule import Schedule
from gpt.errors import command
from gpt.model import GPT
from gpt.training.start import config_to_save


def main(config_file, out, data, *flags):
    world = boundary.connect()
    out = Path(out)
    config = resolve(json.loads(Path(config_file).read_text()), "test", world.size)
    if "fp16" in flags:  # as if this CPU were fast in it
        type(boundary.deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda self: True
    dataset = Dataset(data)
    streams = Streams(dataset.split("train"), config.batch.train_batch_size, config.model.seq_len)
    rows = streams.rows_of(world.rank, world.size)
    if "plant" in flags:  # what an engine that does otherwise would look like
        initialize = boundary.deepspeed.initialize
        planted = {
            "gradient_clipping": 1.0,
            "gradient_accumulation_steps": 1,
            "train_batch_size": 4,
        }
        boundary.deepspeed.initialize = lambda config, **rest: initialize(
            config={**config, **planted}, **rest
        )
    if "late" in flags:  # a schedule that is one step behind
        Schedule.get_lr = lambda self: (
            [self._schedule.lr(self.last_epoch)] * len(self.optimizer.param_groups)
        )
    run = boundary.Engine(GPT(config.model, config.options.seed), config, world)
    result = {
        "loss": [],
        "grad_norm": [],
        "norms": [],
        "scale": [],
        "skipped": 0,
        "lr": [],
        "clipping": run._ds.gradient_clipping(),
    }
    step = 0
    while step < config.options.max_train_steps:
        batch = streams.batch(step, rows).reshape(
            config.batch.accumulation, config.batch.micro_size, -1
        )
        lr = run.lr
        found = run.step(batch, want_norms=True)
        if not found.applied:
            result["skipped"] += 1
            continue
        step += 1
        for name, value in (
            ("loss", world.sum(found.loss).item() / world.size),
            ("grad_norm", found.grad_norm.item()),
            ("norms", found.norms),
            ("scale", run.loss_scale),
            ("lr", lr),
        ):
            result[name].append(value)
    staged = folders.staging_tag(step)
    run.save(out, staged, {"step": step})
    full = boundary.deepspeed.utils.safe_get_full_fp32_param
    stage0 = config.zero_stage == 0
    result["weights"] = {
        n: (p.detach() if stage0 else full(p)).clone() for n, p in run.module.named_parameters()
    }
    if world.rank == 0:
        resolved = config_to_save(config, dataset, "torch")
        write_config(out / staged / CONFIG, resolved)
        (out / staged / "tokenizer.model").write_bytes(dataset.vocab.model)
        torch.save(result, out / "result.pt")
    world.barrier()
    if world.rank == 0:
        files = {
            name: facts
            for rank in range(world.size)
            for name, facts in folders.own_files(out / staged, rank).items()
        }
        folders.commit(out, Manifest(step=step, precision=config.precision, files=files))
    boundary.disconnect()


if __name__ == "__main__":
    command(lambda: main(*sys.argv[1:]), is_rank=True)

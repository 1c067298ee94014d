"""Engines of tiny models, on ranks where DeepSpeed takes the CPU for a GPU."""

import json

import torch
from conftest import tiny_run
from fake_cuda import fake_cuda
from forked import fork_ranks

from gpt.architecture.architecture import build
from gpt.config.resolve import resolve
from gpt.engine import boundary


def make(world, stage, precision="fp32", accumulation=2, ranks_batch=4, zero=(), others=(), **gpt):
    """An Engine of a tiny model. others: further keys of DeepSpeed's."""
    halves = {} if precision == "fp32" else {precision: {"enabled": True}}
    tree = tiny_run(
        zero_optimization={"stage": stage, **dict(zero)},
        train_batch_size=ranks_batch * world.size,
        gradient_accumulation_steps=accumulation,
        gpt=gpt,
        **{**halves, **dict(others)},
    )
    config = resolve(tree, "test", world.size)
    model = build(config, "torch")
    return boundary.Engine(model, config, world, model.initial_weights(0)), config


def batch(config, seed=0):
    shape = (config.batch.accumulation, config.batch.micro_size, config.model.seq_len + 1)
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(config.model.vocab_size, shape, generator=drawn).numpy()


def on_ranks(size, work, capfd):
    """`work(world)` on so many ranks, where DeepSpeed takes the CPU for a GPU; what rank 0
    returns."""

    def rank():
        world = boundary.connect()
        with fake_cuda() as waits:
            found = work(world, waits)
        if world.rank == 0:
            print("FOUND", json.dumps(found), flush=True)
        boundary.disconnect()

    ends = fork_ranks(size, rank)
    said = capfd.readouterr()
    assert [code for code, _ in ends] == [0] * size, said.err
    line = next(line for line in said.out.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))

"""What two ranks send each other in optimiser steps: `traffic_run.py FILE.json [FILE.json …]`, one
run after another.

Prints a line of JSON for each: bytes that a step passes through a ring's links, (n - 1)/n of a
tensor's size for an all-gather or a reduce-scatter, twice that for an all-reduce; in units of what
all weights take. Of rank 0.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed
from forked import fork_ranks

from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.model import GPT

RANKS = 2
SENT = []  # bytes


def counted(name, passes, whole):
    """Have torch.distributed.`name` note its bytes; whole: the tensor, or the list of tensors, of
    all ranks' parts."""
    original = getattr(torch.distributed, name)

    def noting(*args, **kwargs):
        tensors = kwargs[whole[0]] if whole[0] in kwargs else args[whole[1]]
        for tensor in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
            SENT.append(passes * (RANKS - 1) / RANKS * tensor.nbytes)
        return original(*args, **kwargs)

    for module in (torch.distributed, torch.distributed.distributed_c10d):
        setattr(module, name, noting)


def count_everything():
    for name, passes, whole in (
        ("all_reduce", 2, ("tensor", 0)),
        ("all_gather", 1, ("tensor_list", 0)),
        ("reduce", 1, ("tensor", 0)),
        ("all_gather_into_tensor", 1, ("output_tensor", 0)),
        ("reduce_scatter", 1, ("input_list", 1)),
        ("reduce_scatter_tensor", 1, ("input", 1)),
        ("broadcast", 1, ("tensor", 0)),
    ):
        counted(name, passes, whole)


def measure(config_file):
    count_everything()
    world = boundary.connect()
    config = resolve(json.loads(Path(config_file).read_text()), "test", world.size)
    run = boundary.Engine(GPT(config.model), config, world)
    tokens = torch.zeros(
        config.batch.accumulation,
        config.batch.micro_size,
        config.model.seq_len + 1,
        dtype=torch.int64,
    )
    for _ in range(2):  # under ZeRO 3 the first step only records the order of the weights
        run.step(tokens.numpy())
    SENT.clear()
    run.step(tokens.numpy())
    if world.rank == 0:
        print(
            json.dumps(sum(SENT) / (4 * config.model.parameters() * (RANKS - 1) / RANKS)),
            flush=True,
        )
    world.barrier()
    boundary.disconnect()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for file in sys.argv[1:]:
        ends = fork_ranks(RANKS, lambda: measure(file))
        assert all(code == 0 for code, _ in ends), ends

"""Bytes of all tensors that an engine's process holds between two micro batches: `memory_run.py FILE.json`."""

import gc
import json
import sys
from pathlib import Path

import torch

from gpt import engine
from gpt.config import resolve
from gpt.model import GPT


def held():
    """Bytes of all tensors that Python can reach, each storage counted once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def main(config_file):
    world = engine.connect()
    config = resolve(json.loads(Path(config_file).read_text()), "test", world.size)
    run = engine.Engine(GPT(config.model), config, world)
    tokens = torch.zeros(config.batch.accumulation, config.batch.micro_size, config.model.seq_len + 1, dtype=torch.int64)
    run.step(tokens.numpy())
    inner = run._ds
    inner.backward(inner(tokens[0, :, :-1], tokens[0, :, 1:]))  # gradients of a first micro batch are waiting now
    if world.rank == 0:
        print(f"held {held()}")
    engine.disconnect()


if __name__ == "__main__":
    main(sys.argv[1])

"""What an engine's process holds: `memory_run.py RANKS FILE.json [RANKS FILE.json …]`, one run after another.

Prints a line of JSON for each: bytes of all tensors between two micro batches, and, at ZeRO stage 3, by how many bytes the
process grew at most while the weights were drawn and placed. Both of rank 0.
"""

import dataclasses
import gc
import json
import re
import sys
from pathlib import Path

import torch
from forked import fork_ranks

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


def resident(which="VmRSS"):
    return int(re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def place(shape, config, world):
    """A model whose weights are placed; under ZeRO 3 every rank has the stretch of them that it would cut out of the whole."""
    with torch.device("meta"):
        model = GPT(shape, None)
    engine._place(model, model.initial_weights(3), torch.float32, config.engine, world.device)
    if shape.n_layers == 1:
        for (name, whole), part in zip(GPT(shape, 3).named_parameters(), model.parameters(), strict=True):
            own = whole.detach().flatten()[part.ds_tensor.numel() * world.rank :][: part.ds_tensor.numel()]
            assert torch.equal(part.ds_tensor[: own.numel()], own), name
    return model


def measure(config_file):
    world, grew = engine.connect(), None
    config = resolve(json.loads(Path(config_file).read_text()), "test", world.size)
    if config.engine["zero_optimization"]["stage"] == 3:
        place(dataclasses.replace(config.model, n_layers=1), config, world)  # the first broadcast needs buffers
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        kept = place(config.model, config, world)
        grew = resident("VmHWM") - before
        del kept
    run = engine.Engine(GPT(config.model), config, world)
    tokens = torch.zeros(config.batch.accumulation, config.batch.micro_size, config.model.seq_len + 1, dtype=torch.int64)
    run.step(tokens.numpy())
    inner = run._ds
    inner.backward(inner(tokens[0, :, :-1], tokens[0, :, 1:]))  # gradients of a first micro batch are waiting now
    if world.rank == 0:
        print(json.dumps({"held": held(), "grew": grew}), flush=True)
    world.barrier()
    engine.disconnect()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for ranks, file in zip(sys.argv[1::2], sys.argv[2::2]):
        ends = fork_ranks(int(ranks), lambda: measure(file))
        assert all(code == 0 for code, _ in ends), ends

"""What an engine allocates on a device: `memory_run.py RANKS FILE.json [RANKS FILE.json …]`, one
run after another.

Prints a line of JSON for each, of rank 0: bytes of all tensors between two micro-batches, the most
in a step and in one with norms, and, at ZeRO stage 3, the most while the weights were drawn and
placed. Offloaded tensors count, too.
"""

import json
import sys
from pathlib import Path

import torch
from fake_cuda import fake_cuda
from forked import fork_ranks
from live_storages import LiveStorages

from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.engine.placement import place
from gpt.model import GPT


def check_placement(config, world):
    """A model whose weights are placed; every rank has the stretch of them that it would cut out of
    the whole."""
    with torch.device("meta"):
        model = GPT(config.model, None)
    with LiveStorages() as live:
        place(
            model,
            model.initial_weights(3),
            torch.float32,
            world.device,
            config.deepspeed,
            boundary.deepspeed.zero.Init,
        )
    for (name, whole), part in zip(
        GPT(config.model, 3).named_parameters(), model.parameters(), strict=True
    ):
        own = whole.detach().flatten()[part.ds_tensor.numel() * world.rank :][
            : part.ds_tensor.numel()
        ]
        assert torch.equal(part.ds_tensor[: own.numel()], own), name
    return live.peak


def measure(config_file):
    world = boundary.connect()
    config = resolve(json.loads(Path(config_file).read_text()), "test", world.size)
    found = {"placed": check_placement(config, world) if config.zero_stage == 3 else None}
    shape = config.batch.accumulation, config.batch.micro_size, config.model.seq_len + 1
    tokens = torch.randint(
        config.model.vocab_size, shape, generator=torch.Generator().manual_seed(0)
    ).numpy()
    with fake_cuda(), LiveStorages() as live:
        with torch.device("meta"):
            model = GPT(config.model, None)
        run = boundary.Engine(model, config, world, model.initial_weights(0))
        run.step(tokens)  # from here on the optimizer has its moments
        for name, norms in (("peak", False), ("with norms", True)):
            between = []
            live.restart()
            assert run.step(
                tokens, want_norms=norms, mark=lambda part: between.append(live.bytes)
            ).applied
            found[name] = live.peak
        found["between"] = between[2]  # after the first micro-batch
    if world.rank == 0:
        print(json.dumps(found), flush=True)
    world.barrier()
    boundary.disconnect()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for ranks, file in zip(sys.argv[1::2], sys.argv[2::2]):
        ends = fork_ranks(int(ranks), lambda: measure(file))
        assert all(code == 0 for code, _ in ends), ends

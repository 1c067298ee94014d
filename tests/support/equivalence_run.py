"""Engines of many configurations, one after another in the same processes:
`python equivalence_run.py FILE.json OUT DATA [as_on_cuda]`.

FILE.json: {name: [numbers of ranks, a run's JSON]}. Every run takes all its steps on each of its
numbers of ranks. DeepSpeed is imported once, and the ranks are forked from there. OUT gets
RANKS.json: {name: figures}. as_on_cuda: DeepSpeed takes the branches that it takes on a GPU.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from fake_cuda import fake_cuda
from forked import fork_ranks

from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.engine import boundary
from gpt.evaluation import Evaluator, Tally, summary
from gpt.model import GPT


def run(config, dataset, world):
    """What a run's steps and evaluations find, in one engine."""
    options = config.options
    streams = Streams(dataset.split("train"), config.batch.train_batch_size, config.model.seq_len)
    evaluator = Evaluator(
        dataset.split("test"),
        dataset.vocab,
        config.model.seq_len,
        options.last_n,
        options.eval_batch_size,
        options.max_eval_steps,
        world.rank,
        world.size,
        config.batch.micro_size,
    )
    with torch.device("meta"):
        model = GPT(config.model, None, options.activation_checkpointing)
    made = boundary.Engine(model, config, world, model.initial_weights(options.seed))

    def evaluate():
        tally = evaluator.run(made.module, world.device)
        return summary(Tally.from_values(world.sum(world.tensor(tally.values())).tolist()))

    found = {"loss": [], "grad_norm": [], "norms": [], "skipped": 0, "eval": [evaluate()]}
    rows = streams.rows_of(world.rank, world.size)
    while len(found["loss"]) < options.max_train_steps:
        batch = streams.batch(len(found["loss"]), rows).reshape(
            config.batch.accumulation, config.batch.micro_size, -1
        )
        result = made.step(batch, want_norms=True)
        if not result.applied:
            found["skipped"] += 1
            continue
        found["loss"].append(world.sum(result.loss).item() / world.size)
        found["grad_norm"].append(result.grad_norm.item())
        found["norms"].append(result.norms)
    found["eval"].append(evaluate())
    made._ds.destroy()
    return found


def main(file, out, data, *flags):
    torch.set_num_threads(1)
    asked = json.loads(Path(file).read_text())
    for size in sorted({size for sizes, _ in asked.values() for size in sizes}):
        runs = {name: tree for name, (sizes, tree) in asked.items() if size in sizes}
        device = fake_cuda if "as_on_cuda" in flags else nullcontext
        ends = fork_ranks(size, lambda: all_runs(runs, Path(out), Dataset(data), device))
        assert [code for code, _ in ends] == [0] * size, ends


def all_runs(runs, out, dataset, device):
    world = boundary.connect()
    # As if this CPU were fast in it.
    type(boundary.deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda self: True
    with device():
        found = {
            name: run(resolve(tree, name, world.size), dataset, world)
            for name, tree in runs.items()
        }
    if world.rank == 0:
        (out / f"{world.size}.json").write_text(json.dumps(found))
    boundary.disconnect()


if __name__ == "__main__":
    main(*sys.argv[1:])

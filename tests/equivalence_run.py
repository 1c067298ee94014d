"""Engines of many configurations, one after another in the same processes: `python equivalence_run.py FILE.json OUT DATA`.

FILE.json: {name: [numbers of ranks, a run's JSON]}. Every run takes all its steps on each of its numbers of ranks. DeepSpeed
is imported once, and the ranks are forked from there. OUT gets RANKS.json: {name: figures}.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch

from gpt import engine
from gpt.config import resolve
from gpt.corpus import Dataset, Streams
from gpt.evaluation import Evaluator, Tally, summary
from gpt.model import GPT


def run(config, dataset, world):
    """What a run's steps and evaluations find, in one engine."""
    options = config.options
    streams = Streams(dataset.split("train"), config.batch.global_size, options.seq_len)
    evaluator = Evaluator(dataset.split("test"), dataset.vocab, options.seq_len, options.last_n, options.eval_batch_size,
                          options.max_eval_steps, world.rank, world.size)  # fmt: skip
    with torch.device("meta"):
        model = GPT(config.model, None, options.activation_checkpointing)
    made = engine.Engine(model, config, world, model.initial_weights(options.seed))

    def evaluate():
        tally = evaluator.run(made.module, world.device)
        return summary(Tally.from_values(world.sum(world.tensor(tally.values())).tolist()))

    found = {"loss": [], "grad_norm": [], "norms": [], "skipped": 0, "eval": [evaluate()]}
    rows = range(world.rank, config.batch.global_size, world.size)
    while len(found["loss"]) < options.max_train_steps:
        batch = streams.batch(len(found["loss"]), rows).reshape(config.batch.accumulation, config.batch.micro_size, -1)
        result = made.step(batch, want_norms=True)
        if not result.applied:
            found["skipped"] += 1
            continue
        found["loss"].append(world.sum(result.loss).item() / world.size)
        found["grad_norm"].append(made.grad_norm)
        found["norms"].append(result.norms)
    found["eval"].append(evaluate())
    made._ds.destroy()
    return found


def rank_of(size, rank, port, runs, out, data):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    world, dataset, found = engine.connect(), Dataset(data), {}
    # As if this CPU were fast in it.
    type(engine.deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda self: True
    for name, tree in runs.items():
        found[name] = run(resolve(tree, name, world.size), dataset, world)
    if rank == 0:
        (Path(out) / f"{size}.json").write_text(json.dumps(found))
    engine.disconnect()


def main(file, out, data):
    torch.set_num_threads(1)
    asked = json.loads(Path(file).read_text())
    for size in sorted({size for sizes, _ in asked.values() for size in sizes}):
        runs = {name: tree for name, (sizes, tree) in asked.items() if size in sizes}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for rank in range(size):
            children.append(os.fork())
            if children[-1] == 0:
                code = 1
                try:
                    rank_of(size, rank, port, runs, out, data)
                    code = 0
                finally:
                    sys.excepthook(*sys.exc_info()) if code else None
                    os._exit(code)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * size, codes


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Train a GPT as a JSON file says.

    deepspeed gpt/train.py --ds_config ds_configs/quickstart.json [--name value …]
    python gpt/train.py …                       one process
    torchrun --nproc_per_node 2 gpt/train.py …

Exit code 0: done; 2: a mistake in the input; 1: the run cannot go on.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of gpt/, whose module names must shadow nobody's

from gpt.errors import UserError, run

SAMPLE = "data/sample"


def main():
    from gpt.config import load, parse_command_line

    args = parse_command_line(sys.argv[1:])
    world_size, rank = launched_world()
    config = load(args.ds_config, world_size, args.overrides)
    if rank == 0 and config.options.data_root == SAMPLE and not Path(SAMPLE).exists():
        from gpt.prepare import prepare_sample

        prepare_sample(SAMPLE)

    from gpt import engine

    if config.precision == "fp16" and not engine.has_fp16():
        config = config.without_fp16("fp16 is asked for, but this machine has no GPU that computes in it: "
                                     "training in fp32")  # fmt: skip
    waits_for_sample = config.options.data_root == SAMPLE and not Path(SAMPLE).exists()
    trainer = None if waits_for_sample else make_trainer(config, rank, world_size, args.resume)
    world = engine.connect(args.verbose)  # the sample is there now: rank 0 has made it
    trainer = trainer or make_trainer(config, rank, world_size, args.resume)
    trainer.train(engine.Engine, world)
    engine.disconnect()


def make_trainer(config, rank, world_size, resume):
    from gpt.corpus import Dataset
    from gpt.trainer import Trainer

    dataset = Dataset(config.options.data_root)
    if dataset.vocab.size != config.model.vocab_size:
        raise UserError(f"gpt.vocab_size is {config.model.vocab_size}, but the tokenizer of {dataset.root} has "
                        f"{dataset.vocab.size} ids: set --vocab_size {dataset.vocab.size}, or choose another dataset")
    return Trainer(config, dataset, rank, world_size, resume)


def launched_world():
    """(number of ranks, this rank) as the launcher (deepspeed, torchrun) announces them; (1, 0) where none does."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    run(main)

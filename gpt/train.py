"""Train a GPT as a JSON file says.

    deepspeed gpt/train.py --ds_config ds_configs/quickstart.json [--name value …]
    python gpt/train.py …                       one process
    torchrun --nproc_per_node 2 gpt/train.py …

Exit code 0: done; 2: a mistake in the input; 1: the run cannot go on.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of gpt/, whose module names must shadow nobody's

from gpt.errors import UserError, run

SAMPLE = "data/sample"


def main():
    from gpt.config import load, parse_command_line
    from gpt.corpus import Dataset

    args = parse_command_line(sys.argv[1:])
    world_size, rank = launched_world()
    config = load(args.ds_config, world_size, args.overrides)
    if config.options.data_root == SAMPLE and not Path(SAMPLE).exists():
        if rank == 0:  # the others wait for it in connect()
            from gpt.prepare import prepare_sample

            prepare_sample(SAMPLE)
        dataset = None
    else:
        dataset = open_dataset(config)

    from gpt import engine
    from gpt.trainer import Trainer

    world = engine.connect(args.verbose)
    if config.precision == "fp16" and not world.has_fp16:
        config = config.without_fp16(f"fp16 asked for, but this {world.device.type} has no fast fp16: training in fp32")
    trainer = Trainer(config, dataset or open_dataset(config), engine.Engine, world, args.resume)
    trainer.train()
    engine.disconnect()


def launched_world():
    """(number of ranks, this rank) as the launcher (deepspeed, torchrun) announces them; (1, 0) where none does."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def open_dataset(config):
    """The run's dataset, checked for what the run will ask of it."""
    from gpt.corpus import Dataset

    dataset = Dataset(config.options.data_root)
    if dataset.vocab.size != config.model.vocab_size:
        raise UserError(f"gpt.vocab_size is {config.model.vocab_size}, but the tokenizer of {dataset.root} has "
                        f"{dataset.vocab.size} ids: set --vocab_size {dataset.vocab.size}, or choose another dataset")
    return dataset


if __name__ == "__main__":
    run(main)

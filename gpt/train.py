"""Train a GPT as a JSON file says.

    deepspeed gpt/train.py --ds_config ds_configs/quickstart.json [--name value …]
    python gpt/train.py …                       one process
    torchrun --nproc_per_node 2 gpt/train.py …

Exit code 0: done; 2: a mistake in the input; 1: the run cannot go on.
"""

import sys
from pathlib import Path

# instead of gpt/, whose module names must shadow nobody's
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import AgreedUserError, UserError, run

SAMPLE = "data/sample"


def main():
    from gpt.command_line import parse_command_line
    from gpt.config import load
    from gpt.launch import launched

    args = parse_command_line(sys.argv[1:])
    launch = launched()
    world_size, rank = launch.size, launch.rank
    only_told = args.dry_run or args.explain
    data = Data(may_be_absent=only_told)
    config = load(args.ds_config, args.world_size or world_size, args.overrides, data.mistakes)
    if only_told:
        if rank == 0:
            tell(args, config, data.dataset)
        return
    launch.require_all_tasks()
    if rank == 0 and config.options.data_root == SAMPLE and not Path(SAMPLE).exists():
        from gpt.prepare import prepare_sample

        prepare_sample(SAMPLE)

    from gpt import engine
    from gpt.trainer import Trainer

    if config.precision == "fp16" and not engine.has_fp16():
        config = config.without_fp16(
            "fp16 is asked for, but this machine has no GPU that computes in it: training in fp32"
        )
    waits_for_sample = config.options.data_root == SAMPLE and not Path(SAMPLE).exists()
    kernels, mistake = kernels_of(config, engine.local_device())
    trainer = None
    if not waits_for_sample and not mistake:
        trainer = Trainer(
            config, data.open(config), rank, world_size, args.resume, args.allow_change
        )
    facts = {
        "dataset": data.dataset and data.dataset.fingerprint[:12],
        "configuration": config.fingerprint,
        "kernels": "{} ({})".format(*kernels or ("none", mistake)),
    }
    world = engine.connect(args.verbose, launch, facts, config.options.step_timeout)
    if mistake:
        raise AgreedUserError(mistake)
    # the sample is there now: rank 0 has made it
    trainer = trainer or Trainer(
        config, data.open(config), rank, world_size, args.resume, args.allow_change
    )
    trainer.train(engine.Engine, world, kernels)
    engine.disconnect()


def kernels_of(config, device):
    """((which kernels to run, why), None), or (None, the user's mistake). A mistake that this
    rank's device alone may have: the ranks learn of it from each other before one raises it."""
    from gpt.hardware import DTYPES
    from gpt.kernels import choose, require_compiler

    try:
        if config.options.compile != "none":
            require_compiler(device.type)
        return choose(config.options.kernels, device, config.model, DTYPES[config.precision]), None
    except UserError as error:
        return None, str(error)


class Data:
    """The run's dataset, looked at while its configuration is checked, so that all mistakes come in
    one report."""

    def __init__(self, may_be_absent: bool):
        self.dataset = None
        self._may_be_absent = may_be_absent

    def mistakes(self, options: dict, batch_size) -> list:
        """What is wrong with the dataset for these options of the "gpt" block; None stands for a
        mistaken value."""
        from gpt.corpus import Dataset, require_documents

        root = options["data_root"]
        absent = root is None or not Path(root).exists()
        if absent and (root in (None, SAMPLE) or self._may_be_absent):
            return []
        try:
            self.dataset = Dataset(root)
        except UserError as error:
            return [str(error)]
        found, size = [], self.dataset.vocab.size
        if options["vocab_size"] not in (None, size):
            found.append(
                f"gpt.vocab_size is {options['vocab_size']}, but the tokenizer of {root} has {size}"
                f" ids: set --vocab_size {size}, or choose another dataset"
            )
        try:
            for name in filter(None, ("train", options["eval_data_split"])):
                documents = len(self.dataset.split(name).doc_tokens)
                if name == "train" and batch_size is not None:
                    require_documents(name, documents, batch_size)
        except UserError as error:
            found.append(str(error))
        return found

    def open(self, config):
        """The dataset, which by now must be there and fit. Raises UserError."""
        options = {
            "data_root": config.options.data_root,
            "vocab_size": config.model.vocab_size,
            "eval_data_split": config.options.eval_data_split,
        }
        found = [] if self.dataset is not None else self.mistakes(options, config.batch.global_size)
        if found:
            raise UserError("; ".join(found))
        return self.dataset


def tell(args, config, dataset):
    from gpt import dry_run

    if args.explain:
        print(dry_run.explain(config))
    if args.dry_run:
        if config.options.init_from:
            from gpt import warm_start

            warm_start.origin(
                config.options.init_from,
                config.model,
                dataset.vocab.fingerprint if dataset else None,
            )
        print(dry_run.report(config, dataset, args.interconnect))


if __name__ == "__main__":
    run(main)

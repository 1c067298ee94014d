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

from gpt.data.run_data import SAMPLE, Data
from gpt.errors import AgreedUserError, UserError, command


def main():
    from gpt.cluster.launch import launched
    from gpt.config.command_line import parse_command_line
    from gpt.config.resolve import load

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
        from gpt.prepare.sample import prepare_sample

        prepare_sample(SAMPLE)

    from gpt.engine import boundary
    from gpt.training.trainer import Trainer

    if config.precision == "fp16" and not boundary.has_fp16():
        config = config.without_fp16(
            "fp16 is asked for, but this machine has no GPU that computes in it: training in fp32"
        )
    waits_for_sample = config.options.data_root == SAMPLE and not Path(SAMPLE).exists()
    kernels, mistake = kernels_of(config, boundary.local_device())
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
    world = boundary.connect(args.verbose, launch, facts, config.options.step_timeout)
    if mistake:
        raise AgreedUserError(mistake)
    # the sample is there now: rank 0 has made it
    trainer = trainer or Trainer(
        config, data.open(config), rank, world_size, args.resume, args.allow_change
    )
    trainer.train(boundary.Engine, world, kernels)
    boundary.disconnect()


def kernels_of(config, device):
    """((which kernels to run, why), None), or (None, the user's mistake). A mistake that this
    rank's device alone may have: the ranks learn of it from each other before one raises it."""
    from gpt.compute.hardware import DTYPES
    from gpt.kernels.choice import choose, require_compiler

    try:
        if config.options.compile != "none":
            require_compiler(device.type)
        return choose(config.options.kernels, device, config.model, DTYPES[config.precision]), None
    except UserError as error:
        return None, str(error)


def tell(args, config, dataset):
    from gpt.compute import dry_run

    if args.explain:
        print(dry_run.explain(config))
    if args.dry_run:
        if config.options.init_from:
            from gpt.checkpoint import warm_start

            warm_start.origin(
                config.options.init_from,
                config.model,
                dataset.vocab.fingerprint if dataset else None,
            )
        print(dry_run.report(config, dataset, args.interconnect))


if __name__ == "__main__":
    command(main)

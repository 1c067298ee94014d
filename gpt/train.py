"""Train a GPT as a JSON file says.

    deepspeed gpt/train.py --ds_config ds_configs/quickstart.json [--name value …]
    python gpt/train.py …                       one process
    torchrun --nproc_per_node 2 gpt/train.py …

Exit code 0: done; 2: a mistake in the input; 1: the run cannot go on.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# instead of gpt/, whose module names must shadow nobody's
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import AgreedUserError, UserError, command

if TYPE_CHECKING:
    import torch

    from gpt.cluster.launch import Launch
    from gpt.config.run_config import Config
    from gpt.data.datasets import Dataset
    from gpt.training.run_data import RunData
    from gpt.training.trainer import Trainer


def main() -> None:
    from gpt.cluster.launch import launched
    from gpt.config.command_line import parse_command_line
    from gpt.config.resolve import read
    from gpt.data.datasets import TAKEN_UNHASHED
    from gpt.training.run_data import RunData

    args = parse_command_line(sys.argv[1:])
    only_tell = args.dry_run or args.explain
    launch = launched()
    draft = read(args.ds_config, args.world_size or launch.size, args.overrides)
    # each host may have a copy of its own, whose first rank looks at it
    is_first_of_host = os.environ.get("LOCAL_RANK", "0") == "0"
    hash_scored = is_first_of_host and not only_tell and not args.skip_data_hash
    data = RunData(draft, may_be_absent=only_tell, hash_scored=hash_scored)
    draft.add(data.mistakes())
    if args.skip_data_hash:
        draft.notices.append(TAKEN_UNHASHED)
    config = draft.settle()
    if only_tell:
        if launch.rank == 0:
            tell(args, config, data.dataset)
        return
    launch.require_all_tasks()
    if launch.rank == 0 and data.awaits_sample:
        from gpt.prepare.sample import prepare_sample

        prepare_sample(config.options.data_root)
    train(args, launch, config, data)


def tell(args: argparse.Namespace, config: "Config", dataset: "Dataset | None") -> None:
    """Print what was asked for instead of a run: where every value comes from, what it will
    cost."""
    from gpt.compute import dry_run
    from gpt.training.run_folder import require_own

    if args.explain:
        print(dry_run.explain(config))
    if args.dry_run:
        if config.options.init_from:
            from gpt.architecture.architecture import Architecture
            from gpt.checkpoint import warm_start

            tokenizer = dataset.vocab.fingerprint if dataset else None
            warm_start.origin(config.options.init_from, Architecture.of(config), tokenizer)
        if config.options.branch_from:
            from gpt.training.branch import on_paper

            config = on_paper(config, dataset, args.allow_change)
        require_own(config.run_dir, has_code=bool(config.own_code))
        if config.own_code:
            from gpt.optimizers.trial import require_optimizer

            require_optimizer(config)
        print(dry_run.report(config, dataset, args.interconnect))


def train(args: argparse.Namespace, launch: "Launch", config: "Config", data: "RunData") -> None:
    """Train as one of the launcher's ranks."""
    from gpt.engine import boundary
    from gpt.files import write_output
    from gpt.training.trainer import Trainer

    if args.stopped_file and launch.rank == 0:
        remove_stopped_file(args.stopped_file)

    def make_trainer() -> "Trainer":
        assert kernels is not None, "without them there is a mistake, which is told"
        return Trainer(
            config,
            data.open(),
            launch.rank,
            launch.size,
            kernels,
            args.resume,
            args.allow_change,
        )

    if config.precision == "fp16" and not boundary.has_fp16():
        config = config.without_fp16(
            "fp16 is asked for, but this machine has no GPU that computes in it: training in fp32"
        )
    awaits_sample = data.awaits_sample
    kernels, mistake = kernels_of(config, boundary.local_device())
    trainer = None
    if not awaits_sample and not mistake:
        trainer = make_trainer()
    facts = {
        "dataset": data.dataset.fingerprint[:12] if data.dataset else None,
        "configuration": config.fingerprint,
        "kernels": "{} ({})".format(*(kernels or ("none", mistake))),
    }
    try:
        world = boundary.connect(args.verbose, launch, facts, config.options.step_timeout)
        if mistake or kernels is None:
            raise AgreedUserError(str(mistake))
        if trainer is None:
            # the sample is there now: rank 0 has built it
            trainer = make_trainer()
        trainer.train(boundary.Engine, world)
        if (
            args.stopped_file
            and launch.rank == 0
            and not trainer.course.is_finished(config.options)
        ):
            write_output("--stopped_file", args.stopped_file, f"{trainer.course.step}\n")
    finally:
        if trainer is not None and trainer.lock is not None:
            trainer.lock.remove_unused()
    boundary.disconnect()


def remove_stopped_file(path: str) -> None:
    """Remove what an earlier start has left, so that the file tells of this one alone. Raises
    UserError where it is something else, or cannot be made."""
    from gpt.files import require_place_for
    from gpt.reading import read_bytes

    require_place_for("--stopped_file", path)
    try:
        content = read_bytes(path, most=32).strip()
    except FileNotFoundError:
        return
    except OSError:
        content = b"not a small file"
    if content and not content.isdigit():  # mktemp makes an empty one
        raise UserError(
            f"--stopped_file {path} is a file of something else", mend="name one that is not there"
        )
    Path(path).unlink()


def kernels_of(
    config: "Config", device: "torch.device"
) -> tuple[tuple[str, str] | None, str | None]:
    """((which kernels to run, why), None), or (None, the user's mistake). A mistake that this
    rank's machine alone may have: the ranks learn of it from each other before one raises it."""
    from gpt.compute.hardware import DTYPES
    from gpt.engine import boundary
    from gpt.kernels.choice import choose, require_compiler

    options = config.options
    try:
        boundary.require_acceptable(config)
        if options.compile != "none":
            require_compiler(device.type)
        return choose(options.kernels, device, config.model, DTYPES[config.precision]), None
    except UserError as error:
        return None, str(error)


if __name__ == "__main__":
    command(main, is_rank=True)

"""The command line of train.py: its own flags, and an option for every value of a run that people
vary."""

import argparse
import math

from gpt.config import deepspeed_keys
from gpt.config.keys import REQUIRED, nearest
from gpt.config.options import GPT_KEYS
from gpt.config.shape import load_presets
from gpt.errors import Parser, UserError

# Command-line options that belong to DeepSpeed's keys. They carry the seed project's names.
DEEPSPEED_OPTIONS = {
    "train_batch_size": "train_batch_size",
    "train_micro_batch_size_per_gpu": "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "grad_clip_norm": "gradient_clipping",
    "max_lr": "scheduler.params.max_lr",
    "min_lr": "scheduler.params.min_lr",
    "warmup_steps": "scheduler.params.warmup_steps",
    "decay_steps": "scheduler.params.decay_steps",
}


def _key_of(path):
    *blocks, last = path.split(".")
    keys = deepspeed_keys.TOP_KEYS
    for name in blocks:
        keys = keys[name][deepspeed_keys.COSINE] if name == "params" else keys[name]
    return keys[last]


def _boolean(text):
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


_boolean.__name__ = "true or false"  # as argparse's message calls it


def _parser() -> Parser:
    parser = Parser(
        "Train a GPT as a JSON file says; options override the file.",
        prog="train.py",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--ds_config",
        required=True,
        metavar="FILE.json",
        help="the run's config, see ds_configs/, or a run's config.yaml, to run it again",
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|must|never|TAG",
        help=(
            "auto: go on from run_dir's latest checkpoint, if any (default); must: refuse to start "
            "afresh; never: refuse to go on; global_step1000: go on from that one"
        ),
    )
    parser.add_argument(
        "--allow_change",
        action="append",
        default=[],
        metavar="KEY",
        help=(
            "let a setting differ from the "
            "checkpoint's, such as scheduler.params.max_lr; once for each"
        ),
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        default=False,
        help="print what the run will cost, and end",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        default=False,
        help="print every value and where it comes from, and end",
    )
    parser.add_argument(
        "--world_size",
        type=int,
        default=None,
        metavar="N",
        help="ranks to assume in --dry_run and --explain",
    )
    parser.add_argument(
        "--interconnect",
        type=float,
        default=None,
        metavar="GB/s",
        help=(
            "bandwidth of the slowest link "
            "between the GPUs, for --dry_run to estimate the time on them"
        ),
    )
    parser.add_argument(
        "--verbose", action="store_true", default=False, help="show DeepSpeed's own messages"
    )
    # appended by the launcher
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = {**DEEPSPEED_OPTIONS, **{name: f"gpt.{name}" for name in GPT_KEYS}}
    for name, path in options.items():
        key = _key_of(path)
        default = "" if key.default in (None, REQUIRED, "") else f" (default {key.default})"
        kind = _boolean if key.kind is bool else key.kind
        choices = load_presets() if name == "preset" else key.choices or ()
        default = (f": {', '.join(choices)}" if choices else "") + default
        parser.add_argument(
            f"--{name}",
            dest=path,
            type=kind,
            metavar=key.kind.__name__.upper(),
            help=(key.doc + default).replace("%", "%%"),
        )
    return parser


def parse_command_line(argv) -> argparse.Namespace:
    """Namespace of train.py's own flags, and `overrides`: {dotted path: value} of the run's options
    that were given."""
    parser = _parser()
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [flag for action in parser._actions for flag in action.option_strings]
        first = unknown[0].split("=")[0]
        if not first.startswith("--"):
            raise UserError(
                f"command line: {unknown[0]!r} stands where an option --name was expected"
            )
        raise UserError(
            f"command line: unknown option {first}{nearest(first, names)} (--help lists the"
            " options)"
        )
    own = {
        "ds_config",
        "resume",
        "allow_change",
        "dry_run",
        "explain",
        "world_size",
        "interconnect",
        "verbose",
        "local_rank",
    }
    if known.resume not in ("auto", "must", "never") and not known.resume.startswith("global_step"):
        raise UserError(
            f"command line: --resume {known.resume}: give auto, must, never or a checkpoint's name"
            " such as global_step1000"
        )
    overrides = {path: value for path, value in vars(known).items() if path not in own}
    if known.world_size is not None and (
        known.world_size < 1 or not (known.dry_run or known.explain)
    ):
        raise UserError(
            "command line: --world_size takes a positive number, beside --dry_run or --explain; a"
            " run's own number of ranks is the launcher's (--num_gpus, --hostfile)"
        )
    if known.interconnect is not None and not (0 < known.interconnect < math.inf and known.dry_run):
        raise UserError(
            "command line: --interconnect takes a positive number of GB/s, beside --dry_run"
        )
    return argparse.Namespace(**{name: getattr(known, name) for name in own}, overrides=overrides)

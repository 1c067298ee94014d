"""The command line of train.py: its own flags, and an option for every value of a run that people
vary."""

import argparse
import math
from typing import Any

from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.keys import REQUIRED, Key, nearest
from gpt.config.optimizer_keys import COSINE
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
# option -> dotted path of the value that it overrides
OVERRIDES = {**DEEPSPEED_OPTIONS, **{name: f"gpt.{name}" for name in GPT_KEYS}}
# flags of train.py that are no values of a run
OWN_FLAGS = (
    "ds_config",
    "resume",
    "allow_change",
    "dry_run",
    "explain",
    "world_size",
    "interconnect",
    "verbose",
    "local_rank",
)


def parse_command_line(argv: list[str]) -> argparse.Namespace:
    """Namespace of train.py's own flags, and `overrides`: {dotted path: value} of the run's options
    among `argv`. Raises UserError."""
    known, unknown = _parser().parse_known_args(argv)
    if unknown:
        raise _unknown_option(unknown[0])
    _check_own_flags(known)
    own = {name: getattr(known, name) for name in OWN_FLAGS}
    overrides = {path: value for path, value in vars(known).items() if path not in own}
    return argparse.Namespace(**own, overrides=overrides)


def _unknown_option(argument: str) -> UserError:
    if not argument.startswith("--"):
        return UserError(f"command line: {argument!r} stands where an option --name was expected")
    option = argument.split("=")[0]
    options = ["-h", *(f"--{name}" for name in ("help", *OWN_FLAGS, *OVERRIDES))]
    return UserError(
        f"command line: unknown option {option}{nearest(option, options)} (--help lists the"
        " options)"
    )


def _check_own_flags(args: argparse.Namespace) -> None:
    tag = args.resume.startswith("global_step")
    if not tag and args.resume not in ("auto", "must", "never"):
        raise UserError(
            f"command line: --resume {args.resume}",
            mend="give auto, must, never or a checkpoint's name such as global_step1000",
        )
    if args.world_size is not None:
        trains = not (args.dry_run or args.explain)
        if trains or args.world_size < 1:
            raise UserError(
                "command line: --world_size takes a positive number, beside --dry_run or --explain;"
                " a run's own number of ranks is the launcher's (--num_gpus, --hostfile)"
            )
    if args.interconnect is not None:
        if not (args.dry_run and 0 < args.interconnect < math.inf):
            raise UserError(
                "command line: --interconnect takes a positive number of GB/s, beside --dry_run"
            )


def _parser() -> Parser:
    parser = Parser(
        "Train a GPT as a JSON file says; options override the file.",
        prog="train.py",
        argument_default=argparse.SUPPRESS,
    )
    _add_own_flags(parser)
    for name, path in OVERRIDES.items():
        _add_override(parser, name, path)
    return parser


def _add_own_flags(parser: Parser) -> None:
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
            "let a setting differ from the checkpoint's, such as scheduler.params.max_lr; once for"
            " each"
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
            "bandwidth of the slowest link between the GPUs, for --dry_run to estimate the time on"
            " them"
        ),
    )
    parser.add_argument(
        "--verbose", action="store_true", default=False, help="show DeepSpeed's own messages"
    )
    # appended by the launcher
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def _add_override(parser: Parser, name: str, path: str) -> None:
    """Add the option --NAME, which sets the value at a dotted path."""
    key = _key_of(path)
    meaning = key.doc
    choices = load_presets() if name == "preset" else key.choices
    if choices:
        meaning += f": {', '.join(choices)}"
    if key.default not in (None, REQUIRED, ""):
        meaning += f" (default {key.default})"
    parser.add_argument(
        f"--{name}",
        dest=path,
        type=_boolean if key.kind is bool else key.kind,
        metavar=key.kind.__name__.upper(),
        help=meaning.replace("%", "%%"),
    )


def _key_of(path: str) -> Key:
    *blocks, last = path.split(".")
    keys: Any = TOP_KEYS
    for name in blocks:
        keys = keys[name][COSINE] if name == "params" else keys[name]
    return keys[last]


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"invalid true or false value: {text!r}")
    return text.lower() == "true"

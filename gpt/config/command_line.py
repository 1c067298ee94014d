"""The command line of train.py: its own flags, and an option for every value of a run that people
vary."""

import argparse
import math
from collections.abc import Iterable

from gpt.config.dotted_options import take_values
from gpt.config.keys import ARGUMENTS, COUNTS, REQUIRED, Key
from gpt.config.option_names import OVERRIDES, key_at
from gpt.config.shape import load_presets
from gpt.config.synonyms import hint_for_option
from gpt.errors import Parser, UserError
from gpt.wording import nearest

# flags of train.py that are no values of a run
OWN_FLAGS = (
    "ds_config",
    "resume",
    "allow_change",
    "dry_run",
    "explain",
    "world_size",
    "interconnect",
    "stopped_file",
    "verbose",
    "local_rank",
)


def parse_command_line(argv: list[str], tool_options: Iterable[str] = ()) -> argparse.Namespace:
    """Namespace of train.py's own flags, and `overrides`: {dotted path: value} of the run's options
    among `argv`.

    tool_options: names of the options of the tool that takes those of train.py beside its own.
    Raises UserError.
    """
    rest, overrides = take_values(argv)
    own, unknown = _parser().parse_known_args(rest)
    if unknown:
        raise _unknown_option(unknown[0], tool_options)
    _check_own_flags(own)
    return argparse.Namespace(**vars(own), overrides=overrides)


def _unknown_option(argument: str, tool_options: Iterable[str]) -> UserError:
    option = argument.partition("=")[0]
    name = option.removeprefix("--")
    if name in (option, ""):
        return UserError(f"command line: {argument!r} stands where an option --name was expected")
    hint = hint_for_option(name)
    if hint is None:
        hint = nearest(name, ["help", *tool_options, *OWN_FLAGS, *OVERRIDES], prefix="--")
    return UserError(f"command line: unknown option {option}{hint} (--help lists the options)")


def _check_own_flags(args: argparse.Namespace) -> None:
    if args.ds_config is None:
        raise UserError(
            "command line: --ds_config is missing",
            mend="give a run's JSON, such as --ds_config ds_configs/quickstart.json (--help lists"
            " the options)",
        )
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
        "Train a GPT as a JSON file says; options override the file.\n\nEvery key of the JSON is an"
        " option by its path too, such as --optimizer.params.betas 0.9 0.95\nor --fp16.enabled"
        " false: ds_configs/README.md lists them.",
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
        default=None,
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
    _add_flags_on_paper(parser)
    parser.add_argument(
        "--skip_data_hash",
        action="store_true",
        default=False,
        help=(
            "evaluate on the held-out split without holding its tokens against their sha256 first,"
            " which takes a second for each GB"
        ),
    )
    parser.add_argument(
        "--stopped_file",
        metavar="FILE",
        default=None,
        help=(
            "write the step to FILE once the run has been stopped and saved before its end, for a"
            " script that starts the same command again"
        ),
    )
    parser.add_argument(
        "--verbose", action="store_true", default=False, help="show DeepSpeed's own messages"
    )
    # appended by the launcher
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def _add_flags_on_paper(parser: Parser) -> None:
    """Those by which nothing is trained."""
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


# kind of a value -> what --help calls it, where it is no type's name
METAVARS = {ARGUMENTS: "BLOCK", COUNTS: "INT …"}


def _add_override(parser: Parser, name: str, path: str) -> None:
    """List the option --NAME, which sets the value at a dotted path, in --help."""
    key = key_at(path)
    assert isinstance(key, Key)
    meaning = key.doc
    choices = load_presets() if name == "preset" else key.choices
    if choices:
        meaning += f": {', '.join(choices)}"
    if key.default not in (None, REQUIRED, ""):
        meaning += f" (default {key.default})"
    parser.add_argument(
        f"--{name}",
        metavar=METAVARS.get(key.kind) or key.kind.__name__.upper(),
        help=meaning.replace("%", "%%"),
    )

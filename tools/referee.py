"""Is a model, an optimiser or a schedule better than a baseline at equal compute, and how sure is
that: a verdict, and a folder by which anyone can check it.

    python tools/referee.py new entries/rope --from 6h --model_file modern --model_options.rope 1e4
    python tools/referee.py check entries/rope
    python tools/referee.py measure entries/rope
    python tools/referee.py run entries/rope
    python tools/referee.py judge entries/rope
    python tools/referee.py pack entries/rope --out packs/rope
    python tools/referee.py verify packs/rope --replay 50
    python tools/referee.py board packs/rope packs/swiglu --markdown board.md

`referee.py COMMAND --help` tells each. docs/referee.md holds the rules.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.config.own_code import add_trust_option
from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.files import require_place_for, write_output
from gpt.referee.entry import DIRECTIONS, OVER


def main():
    parser = Parser(__doc__, prog="referee.py")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_new,
        add_check,
        add_measure,
        add_run,
        add_judge,
        add_pack,
        add_verify,
        add_board,
    ):
        add(commands)
    args, train_args = parser.parse_known_args()
    if train_args and args.command != "new":
        raise UserError(f"command line: {args.command} does not know {train_args[0]}")
    return args.call(args, train_args)


def add_command(commands, name, purpose):
    return commands.add_parser(name, help=purpose, description=purpose)


def add_new(commands):
    """The rest of the command line are options of train.py, which the contender gets."""
    parser = add_command(commands, "new", "make an entry's folder")
    parser.add_argument("entry", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="CLASS",
        help="JSON of the baseline's run, or the name of one in ds_configs/",
    )
    parser.add_argument("--name", help="of the contender; default the folder's")
    parser.add_argument("--author", default="", help="who answers for it")
    parser.add_argument("--class", dest="class_name", help="of compute; default the JSON's name")
    parser.add_argument("--over", choices=OVER, default=OVER[0], help="what equal compute is")
    parser.add_argument("--direction", choices=DIRECTIONS, default=DIRECTIONS[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="F",
        help="of max_lr that are tried for both sides; default: none are",
    )
    parser.add_argument("--tuning_seed", type=int, default=1000, metavar="N")
    parser.add_argument("--model_file", metavar="FILE.py", help="copied into the entry's folder")
    parser.add_argument("--optimizer_file", metavar="FILE.py", help="likewise")
    parser.set_defaults(call=new)


def new(args, train_args):
    from gpt.referee import new

    entry = new.create(args, train_args)
    print(f"{entry.path}: the entry {entry.name}; next: referee.py check {entry.path}")


def add_check(commands):
    parser = add_command(commands, "check", "is it a fair comparison; what differs")
    parser.add_argument("entry", type=Path, metavar="FOLDER")
    parser.add_argument("--skip_runs", action="store_true", help="no short runs on two ranks")
    parser.add_argument(
        "--own_gradient",
        action="store_true",
        help="a model file's gradient is not the derivative of its loss on purpose",
    )
    parser.set_defaults(call=check)


def check(args, train_args):
    from gpt.referee import check

    return check.report(args.entry, not args.skip_runs, args.own_gradient)


def add_measure(commands):
    parser = add_command(commands, "measure", "throughput of both sides on this device")
    parser.add_argument("entry", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="turns of each side")
    parser.set_defaults(call=measure)


def measure(args, train_args):
    from gpt.referee import measure

    print(measure.measure_entry(args.entry, args.rounds))


def add_run(commands):
    parser = add_command(commands, "run", "train, evaluate and keep what is declared")
    parser.add_argument("entry", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="of the declared ones; default all"
    )
    parser.add_argument("--launcher", metavar="COMMAND", help="what starts gpt/train.py")
    parser.set_defaults(call=run)


def run(args, train_args):
    from gpt.referee import runs

    runs.train(args.entry, args.seeds, args.launcher)


def add_judge(commands):
    parser = add_command(commands, "judge", "the verdict")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="PATH", help="an entry, or a contender's runs"
    )
    parser.add_argument("--baseline", type=Path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--ladder", type=Path, nargs="+", metavar="RUN", help="the baseline's at other compute"
    )
    parser.add_argument("--over", choices=OVER, help="what equal compute is, of runs")
    parser.add_argument("--json", metavar="FILE", help="write the judgement here as well")
    parser.set_defaults(call=judge)


def judge(args, train_args):
    from gpt.referee import judgement, judgement_text

    if args.json:
        require_place_for("--json", args.json)
    result = judgement.of_paths(args.runs, args.baseline, args.ladder, args.over)
    print(judgement_text.in_words(result))
    if args.json:
        write_output("--json", args.json, judgement.as_json(result))


def add_pack(commands):
    parser = add_command(commands, "pack", "one folder that anyone can check")
    parser.add_argument("entry", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--without_weights", action="store_true", help="their hashes alone")
    parser.set_defaults(call=pack)


def pack(args, train_args):
    from gpt.packs import pack

    print(pack.write(args.entry, args.out, with_weights=not args.without_weights))


def add_verify(commands):
    parser = add_command(commands, "verify", "is a pack what it says")
    parser.add_argument("pack", type=Path, metavar="FOLDER")
    parser.add_argument("--data_root", type=Path, metavar="FOLDER", help="default the runs' own")
    parser.add_argument("--replay", type=int, default=0, metavar="N", help="steps of each run")
    add_trust_option(parser)
    parser.set_defaults(call=verify)


def verify(args, train_args):
    from gpt.packs import verify

    return verify.report(args.pack, args.data_root, args.replay, args.trust_model_file)


def add_board(commands):
    parser = add_command(commands, "board", "a table of packs")
    parser.add_argument("packs", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--markdown", metavar="FILE", help="write the table here as well")
    parser.add_argument("--html", metavar="FILE", help="write it as one page here")
    parser.set_defaults(call=board)


def board(args, train_args):
    from gpt.packs import board
    from gpt.packs.board_page import as_html
    from gpt.packs.board_text import as_markdown

    for name in ("markdown", "html"):
        if getattr(args, name):
            require_place_for(f"--{name}", getattr(args, name))
    table = board.of_packs(args.packs)
    print(as_markdown(table, Path()), end="")
    if args.markdown:
        folder = Path(args.markdown).parent
        write_output("--markdown", args.markdown, as_markdown(table, folder))
    if args.html:
        write_output("--html", args.html, as_html(table, Path(args.html).parent))


if __name__ == "__main__":
    command(main)

"""Train a ladder of configurations one after another; finished runs are skipped, unfinished ones go
on.

    python tools/sweep.py --classes 6h 12h 24h --out runs/small
    python tools/sweep.py --classes ladder/*.json --seeds 0 1 2 --out runs/ladder
    python tools/sweep.py --classes 24h 48h --out runs/gpt --data_root data/books \\
        --launcher "deepspeed --num_gpus 8"
    python tools/sweep.py --classes 6h 12h --trunk --scheduler.type LinearCooldownLR --out runs/wsd

A class is a run's JSON, or the name of one in ds_configs/. Options of train.py hold for all runs.
Every run is kept in OUT/CLASS, or OUT/CLASS-seedN; OUT/sweep.json tells how far each is. SIGTERM,
SIGINT, SIGHUP, SIGUSR1 or SIGUSR2 has the present run saved, and the sweep ends; after that, or
after a kill, the same command goes on. With --trunk the steps that the classes have in common,
those at the constant rate, are trained once, in OUT/trunks, and each class branches off where its
cooldown begins. Exit code 1: some runs could not be finished.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, RunError, UserError, command, explain_imports

explain_imports()

from gpt.config.command_line import parse_command_line
from gpt.training import ladder, sweep


def main():
    args, train_args = parse()
    overrides = options_of_runs(train_args, vars(args))
    launcher = sweep.launcher_command(args.launcher)
    out = Path(args.out)
    plan = ladder.plan_on_trunks if args.trunk else sweep.plan
    runs = plan(args.classes, args.seeds, out, overrides)
    if args.trunk:
        print(ladder.savings(runs), flush=True)
    stop = sweep.Stop()
    sweep.train_all(runs, out, launcher, train_args, stop)
    print(sweep.table(runs))
    diverged = [run.name for run in runs if run.status == sweep.DIVERGED]
    done = (sweep.FINISHED, sweep.DIVERGED, sweep.SPARED)
    unfinished = [run.name for run in runs if run.status not in done]
    if stop.reason:
        print(f"stopped by {stop.reason}: the same command goes on")
        return
    problems = []
    if unfinished:
        problems.append(
            f"not finished: {', '.join(unfinished)}; what stood in the way is told above, and the"
            " same command tries again"
        )
    if diverged:
        problems.append(
            f"diverged: {', '.join(diverged)}; they are not trained again: lower max_lr, or set"
            " gradient_clipping, in another --out"
        )
    if problems:
        raise RunError("; ".join(problems))


def parse():
    """(own options, what stands beside them: options of train.py that every run gets)."""
    parser = Parser(__doc__, prog="sweep.py")
    parser.add_argument(
        "--classes",
        nargs="+",
        required=True,
        metavar="CLASS",
        help="JSON files of runs, or names in ds_configs/",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the runs are kept")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="train every class once with each; default: its own",
    )
    parser.add_argument(
        "--trunk",
        action="store_true",
        help="train what the classes have in common once: for LinearCooldownLR",
    )
    parser.add_argument(
        "--launcher",
        metavar="COMMAND",
        help='what starts gpt/train.py, such as "deepspeed --num_gpus 8"; default: one process',
    )
    return parser.parse_known_args()


def options_of_runs(train_args, own_names) -> dict:
    """{dotted path: value} of the options of train.py. Raises UserError for those that are not for
    a sweep.

    own_names: of the sweep's own options, one of which may be meant by an unknown one.
    """
    if any(word.partition("=")[0] == "--ds_config" for word in train_args):
        raise UserError("command line: --ds_config is not for a sweep", mend="give --classes")
    parsed = parse_command_line(["--ds_config", "", *train_args], tool_options=own_names)
    options = {
        "--run_dir": "gpt.run_dir" in parsed.overrides,
        "--seed": "gpt.seed" in parsed.overrides,
        "--branch_from": "gpt.branch_from" in parsed.overrides,
        "--gpt": "gpt" in parsed.overrides,
        "--resume": parsed.resume != "auto",
        "--allow_change": parsed.allow_change,
        "--dry_run": parsed.dry_run,
        "--explain": parsed.explain,
        "--world_size": parsed.world_size,
    }
    for option, is_there in options.items():
        if is_there:
            raise UserError(
                f"command line: {option} is not for a sweep",
                mend="--out and --seeds name the runs; `gpt/train.py --ds_config CLASS --dry_run`"
                " tells what one will cost",
            )
    return parsed.overrides


if __name__ == "__main__":
    command(main)

"""Compare methods at equal compute, each tuned by as many trials, over several seeds.

    python tools/study.py --ds_config ds_configs/quickstart.json --methods methods.json \\
        --factors 0.5 1 2 --seeds 1 2 3 --flops 3e12 --out runs/study --markdown table.md

methods.json holds {name: options of train.py}, such as {"baseline": "", "rope": "--model_file
modern --model_options.rope 10000"}. Every run gets the steps that --flops buy at its model's FLOPs
per token. First each method is trained at each of --factors times its own max_lr, under
--tuning_seed; then at the best of them under each of --seeds. The table holds every method against
the first one; intervals are of 95%, over seeds. Whatever ends it, the same command goes on.
"""

import math
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, RunError, UserError, command, explain_imports

explain_imports()

from gpt.files import require_place_for, write_output
from gpt.training import study, sweep


def main() -> None:
    args = parse()
    out = Path(args.out)
    stop = sweep.Stop()
    methods = study.read_methods(args.methods)
    trials = study.plan(args.ds_config, methods, args.factors, args.flops)
    tuning = [
        [study.run_of(args.ds_config, trial, args.tuning_seed, out / "tuning") for trial in row]
        for row in trials
    ]
    train([run for row in tuning for run in row], out / "tuning", stop)
    chosen = [
        study.best(row, [study.final_loss(run) for run in runs])
        for row, runs in zip(trials, tuning)
    ]
    final = [
        [study.run_of(args.ds_config, trial, seed, out / "runs") for seed in args.seeds]
        for trial in chosen
        if trial is not None
    ]
    train([run for row in final for run in row], out / "runs", stop)
    outcomes = []
    remaining = iter(final)
    for row, trial, trial_runs in zip(trials, chosen, tuning):
        runs = trial_runs if trial is None else next(remaining)
        outcomes.append(study.outcome(row, trial, runs))
    print(study.as_text(outcomes))
    if args.markdown:
        write_output("--markdown", args.markdown, study.as_markdown(outcomes))


def parse():
    parser = Parser(__doc__, prog="study.py")
    parser.add_argument("--ds_config", type=Path, required=True, help="JSON of every run")
    parser.add_argument("--methods", type=Path, required=True, help="JSON of names and options")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0],
        help="of each method's max_lr that are tried (default 0.5 1 2)",
    )
    parser.add_argument("--tuning_seed", type=int, default=0, help="seed of the trials (default 0)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", required=True, help="of the runs that are reported"
    )
    parser.add_argument("--flops", type=float, required=True, help="that each run may take")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the runs are kept")
    parser.add_argument("--markdown", metavar="FILE", help="write the table here as well")
    args = parser.parse_args()
    for factor in [*args.factors, args.flops]:
        if not 0 < factor < math.inf:
            raise UserError(f"command line: {factor:g}", mend="give positive numbers")
    if args.tuning_seed in args.seeds:
        raise UserError(
            f"command line: the seed {args.tuning_seed} is in --seeds, and the rates are chosen by"
            " it",
            mend="leave it out: its losses were chosen for being low",
        )
    # as folders are called by them
    for name, values in (("factors", [f"{f:g}" for f in args.factors]), ("seeds", args.seeds)):
        if len(set(values)) < len(values):
            raise UserError(f"command line: --{name} has a value twice", mend="give each once")
    if args.markdown:
        require_place_for("--markdown", args.markdown)
    return args


def train(runs: list[sweep.SweptRun], out: Path, stop: sweep.Stop) -> None:
    """Train what is not finished. Raises RunError where a run cannot be."""
    out.mkdir(parents=True, exist_ok=True)
    sweep.train_all(runs, out, [sys.executable], [], stop)
    unfinished = [run.name for run in runs if not study.is_over(run)]
    if unfinished:
        reason = f"stopped by {stop.reason}" if stop.reason else "what stood in the way is above"
        raise RunError(
            f"not finished: {', '.join(unfinished)} ({reason}); the same command goes on"
        )


if __name__ == "__main__":
    command(main)

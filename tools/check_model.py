"""Look whether a model file keeps to what its runs rely on, on the CPU: a line for each check, and
what to do for each that fails.

    python tools/check_model.py my_model.py
    python tools/check_model.py my_model.py --model_options.base 500 --n_layers 6 --seq_len 256
    python tools/check_model.py my_model.py --skip_runs        what needs one process

It looks at what happens when the file is imported, built and run: side effects, shapes, whether a
position sees later tokens or a row other rows, whether the same comes out again, the loss at the
start, bf16, every gradient, accumulation, activation checkpointing. Then the trainer itself makes
short runs of it on two ranks, at ZeRO 1, 2 and 3, on the sample text: their losses, a resumed run,
consolidated weights. The shape is the preset nano's with a context of 64, unless options of
train.py name another; the vocabulary is the sample's 2048 ids.

In that shape it takes half a minute on two idle cores, without the runs some ten seconds; on busy
ones several times that. A terminal shows the name of the check that is under way.

Exit code 0: all is right; 2: something is not.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.config.dotted_options import take_values
from gpt.config.draft import Draft
from gpt.config.resolve import complete
from gpt.config.shape import PRESET_KEYS

VOCAB_SIZE = 2048  # the sample's
SEQ_LEN = 64
# options of train.py that a model has something of, with all below them
OPTIONS = ("preset", *PRESET_KEYS, "seq_len", "seed", "model_options")


def main():
    parser = Parser(__doc__, prog="check_model.py")
    parser.add_argument("model_file", metavar="FILE.py", help="or the name of one in gpt/variants")
    parser.add_argument(
        "--skip_runs", action="store_true", help="leave out the runs on two ranks, for a first look"
    )
    parser.add_argument(
        "--own_gradient",
        action="store_true",
        help="the gradient is not the derivative of the loss on purpose, as by a straight-through"
        " estimator",
    )
    rest, overrides = take_values(sys.argv[1:])
    args = parser.parse_args(rest)
    config = settle(args.model_file, overrides)

    import torch

    from gpt.architecture.architecture import Architecture
    from gpt.contract import checks
    from gpt.contract.subject import Subject

    torch.set_num_threads(1)  # in nano's shape more of them wait longer than they compute
    subject = Subject(Architecture.of(config), config.options.seed)
    chosen = [
        check for check in checks.CHECKS if not (args.own_gradient and check.name == "derivative")
    ]
    results = checks.run(subject, chosen, tell, begin)
    with_runs = not args.skip_runs and all(result.is_right for result in results)
    if with_runs:
        from gpt.training import contract_runs

        begin("two ranks")
        results += contract_runs.look_on_sample(subject, tell)
    return conclude(results, len(results) < len(chosen), with_runs)


def settle(model_file, overrides):
    """The configuration of a run of the file in the shape that the options name."""
    for path in overrides:
        name = path.removeprefix("gpt.").partition(".")[0]
        if name not in OPTIONS:
            raise UserError(
                f"command line: --{path} is nothing that a model is checked with",
                mend=f"of train.py's options give {', '.join(f'--{name}' for name in OPTIONS)}",
            )
    tree = {
        "train_batch_size": 4,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
        "gpt": {
            "vocab_size": VOCAB_SIZE,
            "seq_len": SEQ_LEN,
            "model_file": model_file,
            "max_train_steps": 4,
        },
    }
    if "gpt.preset" not in overrides:
        overrides = {"gpt.preset": "nano", **overrides}
    return complete(Draft(tree, "check_model", 1), overrides).settle()


def begin(name):
    """Name the check that is under way, where a terminal can put its result in that place."""
    if sys.stdout.isatty():
        print(f"...   {name}", end="\r", flush=True)


def tell(result):
    print(f"{'ok  ' if result.is_right else 'FAIL'}  {result.name:15}{result.seen}", flush=True)


def conclude(results, is_cut_short, with_runs):
    """Print what all came to; returns the exit code."""
    failed = [result for result in results if not result.is_right]
    if not failed:
        without = "" if with_runs else ", the runs on two ranks left out"
        print(f"all {len(results)} checks passed{without}")
        return 0
    rest = ""
    if is_cut_short:
        rest = ", and the others need it"
    elif not with_runs:
        rest = "; the runs on two ranks come after them"
    print(f"{len(failed)} of {len(results)} checks failed{rest}")
    return 2


if __name__ == "__main__":
    command(main)

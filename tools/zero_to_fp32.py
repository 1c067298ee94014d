"""DeepSpeed checkpoint of any ZeRO stage -> model.safetensors (fp32) + config.yaml +
tokenizer.model, verified; the model's own code, where it is no GPT, goes with them.

    python tools/zero_to_fp32.py runs/24h/checkpoints runs/24h/export [--tag global_step1000]
    python tools/zero_to_fp32.py runs/24h/checkpoints runs/24h/mean --average 5
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.config.own_code import add_trust_option
from gpt.errors import Parser, UserError, command


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint_dir", help="a run's checkpoints folder, or one checkpoint in it"
    )
    parser.add_argument("output_dir", help="the folder to make")
    parser.add_argument("--tag", help="which checkpoint; default the one that `latest` names")
    parser.add_argument(
        "--average",
        type=int,
        metavar="N",
        help="the mean of the weights of the last N checkpoints, up to that one",
    )
    add_trust_option(parser)
    args = parser.parse_args()
    if args.average is not None and args.average < 2:
        raise UserError(f"--average {args.average}", mend="give a number from 2 on")

    from gpt.checkpoint.manifest import WEIGHTS
    from gpt.checkpoint.weights import consolidate, consolidate_mean

    folders = args.checkpoint_dir, args.output_dir
    trusted = args.trust_model_file
    if args.average:
        result = consolidate_mean(*folders, args.average, args.tag, trusted)
    else:
        result = consolidate(*folders, args.tag, trusted)
    weights = Path(args.output_dir) / WEIGHTS
    print(
        f"{weights}: {result.parameters:,} fp32 parameters {steps_of(result)}, from ZeRO stage"
        f" {result.stage}; {what_was_checked(result)}"
    )
    if result.doubt:
        print(f"notice: {result.doubt}", file=sys.stderr)


def steps_of(result):
    if len(result.steps) == 1:
        return f"after step {result.steps[0]}"
    return f"that are the mean of those after the steps {', '.join(map(str, result.steps))}"


def what_was_checked(result):
    if result.probe_loss is None:
        return (
            "names, shapes and values checked; no probe batch is kept with the checkpoint, so that"
            " they give training's loss is not"
        )
    if len(result.steps) > 1:
        return (
            "names, shapes and values verified; the loss of averaged weights on the last probe"
            f" batch is {result.probe_loss:.6f}"
        )
    return (
        f"names, shapes, values and the loss on the probe batch ({result.probe_loss:.6f}) verified"
    )


if __name__ == "__main__":
    command(main)

"""DeepSpeed checkpoint of any ZeRO stage -> model.safetensors (fp32) + config.yaml +
tokenizer.model, verified.

    python tools/zero_to_fp32.py runs/24h/checkpoints runs/24h/export [--tag global_step1000]
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, command


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint_dir", help="a run's checkpoints folder, or one checkpoint in it"
    )
    parser.add_argument("output_dir", help="the folder to make")
    parser.add_argument("--tag", help="which checkpoint; default the one that `latest` names")
    args = parser.parse_args()

    from gpt.checkpoint.weights import WEIGHTS, consolidate

    result = consolidate(args.checkpoint_dir, args.output_dir, args.tag)
    weights = Path(args.output_dir) / WEIGHTS
    on_probe = ""
    if result.probe_loss is not None:
        on_probe = f", and the loss on the probe batch ({result.probe_loss:.6f})"
    print(
        f"{weights}: {result.parameters:,} fp32 parameters after step {result.step}, from ZeRO"
        f" stage {result.stage}; names, shapes and values verified{on_probe}"
    )
    if result.doubt:
        print(f"notice: {result.doubt}", file=sys.stderr)


if __name__ == "__main__":
    command(main)

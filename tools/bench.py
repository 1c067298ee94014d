"""How fast the hot loop is here, beside other ways to write it and beside what this device can do.

    python tools/bench.py                               everything, with shapes that suit the device
    python tools/bench.py step --preset mini --json out.json
    python tools/bench.py kernels --png roofline.png
    python tools/bench.py --paper --preset small        how fast it should be on GPUs, by arithmetic

step      training steps (forward, backward, fused Adam; no DeepSpeed) of a preset, in turn with the
          same steps of the same model written in the most obvious way, and as nanoGPT has it
          (tools/benchmarks/plain_gpt.py): fused attention, all logits at once, in bf16 by autocast
          with weights in fp32, the whole under torch.compile; of transformers' GPT2 (if it is
          installed; for a preset whose heads do not fill h_dim, both with heads that do); of ours
          under torch.compile; and, on a CPU in bf16, of ours in fp32
kernels   each operation of the hot loop, beside eager and compiled torch, against the roofline
eval      the evaluator, beside what its matrix products cost at the device's matmul rate (its bar:
          90% of that), and beside a loop that feeds one window at a time through the full output
          layer

--paper   nothing of these, and no device: a model of a training step on an RTX 3090, an A100 and an
          H100, from its kernels and bytes as they are counted, and rates that are assumed

All that is compared runs in one process in turn, and ratios are medians over single rounds, so that
a noisy machine slows all. The device's own matmul rate and memory bandwidth are measured there and
then. FLOPs by gpt/config/shape.py.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command
from gpt.files import require_place_for, write_output

PARTS = ("step", "kernels", "eval")
DEFAULT_ROUNDS = 10


def main():
    from gpt.config.shape import load_presets

    args = parse()
    presets = load_presets()
    check(args, presets)
    if args.paper:
        on_paper(args, presets)
    else:
        measure(args, presets)


def parse():
    parser = Parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="default: all of them")
    parser.add_argument(
        "--preset", help="model shape (default small on a GPU and on paper, mini on a CPU)"
    )
    parser.add_argument(
        "--micro_batch",
        type=int,
        help="sequences per forward pass (default 32 on a GPU and on paper, 4 on a CPU)",
    )
    parser.add_argument(
        "--accumulation", type=int, default=2, help="forward passes per step (default 2)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="of all models (default bf16 on a GPU that has it, else fp32)",
    )
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"rounds that are timed, after two that are not (default {DEFAULT_ROUNDS})",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile too on a CPU, where it compiles for minutes",
    )
    parser.add_argument(
        "--paper", action="store_true", help="compute what GPUs should attain; measure nothing"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results here as well")
    parser.add_argument(
        "--png", metavar="FILE", help="draw the kernels' roofline; needs matplotlib"
    )
    return parser.parse_args()


def check(args, presets):
    """Raise UserError for values that make no sense."""
    for part in args.parts:
        if part not in PARTS:
            raise UserError(
                f"{part!r} is no part of the bench",
                mend=f"give some of {', '.join(PARTS)}, or none for all",
            )
    measured = (args.parts, args.png, args.compile, args.precision, args.rounds is not None)
    if args.paper and any(measured):
        raise UserError(
            "--paper measures nothing, and is of bf16",
            mend="leave out the parts, --rounds, --png, --compile and --precision",
        )
    if args.preset is not None and args.preset not in presets:
        raise UserError(f"--preset {args.preset}", mend=f"choose one of {', '.join(presets)}")
    for option, name in (("--json", args.json), ("--png", args.png)):
        if name is not None:
            require_place_for(option, name)
    least = {"micro_batch": 1, "accumulation": 1, "seq_len": 2, "vocab_size": 1, "rounds": 1}
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise UserError(f"--{name} {value}", mend="give a positive number")


def on_paper(args, presets):
    from gpt.config.shape import ModelConfig
    from tools.benchmarks import paper

    preset = args.preset or "small"
    shape = ModelConfig(**presets[preset], vocab_size=args.vocab_size, seq_len=args.seq_len)
    facts = paper.report(preset, shape, args.micro_batch or 32, args.accumulation)
    print(paper.text(facts))
    write(args, facts)


def write(args, result):
    if args.json:
        result = {"command": ["tools/bench.py", *sys.argv[1:]], **result}
        write_output("--json", args.json, json.dumps(result, indent=1) + "\n")


def measure(args, presets):
    from gpt.config.shape import ModelConfig
    from tools.benchmarks import evaluator, kernels, step
    from tools.benchmarks.device import Device, Work

    device = Device(args.precision)
    work = Work(
        micro_batch=args.micro_batch or (32 if device.on_gpu else 4),
        accumulation=args.accumulation,
        rounds=args.rounds or DEFAULT_ROUNDS,
        compile=args.compile or device.on_gpu,
    )
    preset = args.preset or ("small" if device.on_gpu else "mini")
    shape = ModelConfig(**presets[preset], vocab_size=args.vocab_size, seq_len=args.seq_len)
    print(
        f"{device.name}, {device.dtype}, {preset}: {work.micro_batch} x {args.seq_len} tokens a"
        " micro-batch",
        flush=True,
    )
    result = {
        "preset": preset,
        "micro_batch": work.micro_batch,
        "seq_len": args.seq_len,
        "vocab_size": args.vocab_size,
        "rounds": work.rounds,
        **device.facts(),
    }
    parts = args.parts or PARTS
    if "step" in parts:
        result["step"] = step.measure(device, shape, work)
    if "kernels" in parts:
        result["kernels"] = kernels.measure(device, shape, work)
        if args.png:
            kernels.draw(result, args.png)
    if "eval" in parts:
        result["eval"] = evaluator.measure(device, shape, work)
    write(args, result)


if __name__ == "__main__":
    command(main)

"""Evaluate consolidated weights on a held-out split: needs no DeepSpeed, no ZeRO files, no training
run.

    python gpt/eval.py --checkpoint_file runs/24h/export/model.safetensors [--json out.json]
    python gpt/eval.py --checkpoint_file … --eval_data_split all [--markdown out.md]
"""

import json
import sys
from pathlib import Path

# instead of gpt/, whose module names must shadow nobody's
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.checkpoint.weights import file_of_weights
from gpt.errors import Parser, UserError, command
from gpt.files import require_place_for


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument(
        "--checkpoint_file",
        required=True,
        type=file_of_weights,
        help="model.safetensors, made by tools/zero_to_fp32.py",
    )
    parser.add_argument(
        "--config_file", help="the run's config.yaml; default the one beside the weights"
    )
    parser.add_argument(
        "--data_root", help="dataset folder; default the one that the model was trained on"
    )
    parser.add_argument(
        "--eval_data_split",
        default="test",
        metavar="SPLIT[,SPLIT…]|all",
        help="splits to evaluate (default test); all: every one but train",
    )
    parser.add_argument(
        "--seq_len", type=int, help="tokens of context; default the model's, and at most that"
    )
    parser.add_argument(
        "--last_n",
        type=int,
        help="targets scored in each window but the first; default the run's own",
    )
    parser.add_argument(
        "--batch_size", type=int, help="windows at a time (default: 8,192 tokens' worth)"
    )
    parser.add_argument("--device", help="default cuda where there is one, else cpu")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the result here as well; of several splits, a list of them",
    )
    parser.add_argument(
        "--markdown", metavar="FILE", help="write a table here, a row for each split"
    )
    args = parser.parse_args()
    for name in ("seq_len", "last_n", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give a positive number")
    return args


def main():
    args = parse_args()
    weights = args.checkpoint_file
    for name in ("json", "markdown"):
        file = getattr(args, name)
        if file:
            require_place_for(f"--{name}", file)

    from gpt.checkpoint.checkpoint import Checkpoint
    from gpt.checkpoint.manifest import MANIFEST
    from gpt.config.saved import CONFIG, read_config
    from gpt.data.datasets import Dataset
    from gpt.metrics.events import finite

    config_file = Path(args.config_file) if args.config_file else weights.with_name(CONFIG)
    config = read_config(config_file)
    trained_on = config["dataset"] if isinstance(config.get("dataset"), dict) else {}
    if not (args.data_root or trained_on.get("root")):
        raise UserError(
            f"{config_file} does not tell which dataset the model was trained on: give --data_root"
        )
    if weights.with_name(MANIFEST).is_file():
        Checkpoint.open(weights.parent).verify()
    dataset = Dataset(args.data_root or trained_on["root"])
    if trained_on.get("tokenizer") not in (None, dataset.vocab.fingerprint):
        raise UserError(
            f"{dataset.root} was made with another tokenizer than the model was trained with:"
            f" prepare the text with `--tokenizer {weights.with_name('tokenizer.model')}`"
        )
    names = chosen(args.eval_data_split, dataset)
    results = evaluate(args, names, weights, config, config_file, dataset)
    alone = args.eval_data_split == names[0]
    show(results[0]) if alone else show_table(results)
    if args.json:
        content = results[0] if alone else results
        Path(args.json).write_text(
            json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    if args.markdown:
        Path(args.markdown).write_text(markdown(results), encoding="utf-8")


def chosen(asked: str, dataset) -> list:
    """Names of the splits asked for. Raises UserError where there is none."""
    names = [name.strip() for name in asked.split(",")]
    if asked == "all":
        names = [name for name in dataset.split_names if name != "train"]
        if not names:
            raise UserError(
                f"{dataset.root} has no split but train, which `all` leaves out: give"
                " --eval_data_split train"
            )
    for name in names:
        dataset.split(name)
    return list(dict.fromkeys(names))


def evaluate(args, names, weights, config, config_file, dataset) -> list:
    """The content of `--json` for each split, by one and the same model."""
    from tqdm import tqdm

    from gpt.checkpoint.weights import load_model
    from gpt.compute.hardware import keep_freed_memory, usable_device
    from gpt.evaluation import Evaluator, summary

    device = usable_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    model = load_model(weights, config, config_file).to(device)
    seq_len = args.seq_len or model.config.seq_len
    if seq_len > model.config.seq_len:
        raise UserError(
            f"--seq_len {seq_len} is longer than the {model.config.seq_len} positions that the"
            f" model was trained with: give at most {model.config.seq_len}"
        )
    if dataset.vocab.size != model.config.vocab_size:
        raise UserError(
            f"the tokenizer of {dataset.root} has {dataset.vocab.size} ids, but the model was"
            f" trained with {model.config.vocab_size}: give the --data_root that it was trained on"
        )
    if (args.last_n or 0) > seq_len:
        raise UserError(
            f"--last_n {args.last_n} is more than the {seq_len} targets of a window: give at most"
            f" {seq_len}"
        )
    last_n = args.last_n or min((config["run"].get("gpt") or {}).get("last_n") or 128, seq_len)
    results = []
    for name in names:
        evaluator = Evaluator(
            dataset.split(name),
            dataset.vocab,
            seq_len,
            last_n,
            args.batch_size or max(1, 8192 // seq_len),
        )
        with tqdm(
            total=evaluator.calls,
            unit="batch",
            desc=name,
            disable=not sys.stderr.isatty(),
            leave=False,
        ) as bar:
            tally = evaluator.run(model, device, lambda: bar.update() or True)
        results.append(
            {
                "split": name,
                "checkpoint": str(weights),
                "dataset": str(dataset.root),
                "seq_len": seq_len,
                "last_n": last_n,
                **summary(tally),
            }
        )
    return results


def show(result):
    theirs = result["languini"]
    print(
        f"{result['checkpoint']} on the split {result['split']!r} of {result['dataset']} "
        f"(seq_len {result['seq_len']}, last_n {result['last_n']})"
    )
    print(f"{'':26s}{'exact':>14s}{'languini':>14s}")
    for name, key, form in (
        ("normalised perplexity", "normalised_ppl", ".4f"),
        ("bits per byte", "bits_per_byte", ".4f"),
        ("loss (nats per token)", "loss", ".4f"),
        ("perplexity per token", "ppl", ".2f"),
        ("top-1 accuracy", "top1", ".4f"),
        ("top-10 accuracy", "top10", ".4f"),
        ("tokens scored", "tokens", ",d"),
        ("bytes", "bytes", ",d"),
    ):
        other = format(theirs[key], form) if key in theirs else ""
        print(f"{name:26s}{result[key]:>14{form}}{other:>14s}")


def table(results):
    """(names of the columns, rows of texts), a row for each split."""
    columns = (
        ("normalised ppl", "normalised_ppl", ".4f"),
        ("bits per byte", "bits_per_byte", ".4f"),
        ("loss", "loss", ".4f"),
        ("ppl", "ppl", ".2f"),
        ("top-1", "top1", ".4f"),
        ("top-10", "top10", ".4f"),
        ("tokens", "tokens", ",d"),
        ("bytes", "bytes", ",d"),
    )
    rows = [
        [
            result["split"],
            *(format(result[key], form) for _, key, form in columns),
            format(result["languini"]["normalised_ppl"], ".4f"),
        ]
        for result in results
    ]
    return ["split", *(name for name, _, _ in columns), "languini"], rows


def about(result):
    return (
        f"{result['checkpoint']} on {result['dataset']} (seq_len {result['seq_len']}, last_n"
        f" {result['last_n']}; languini: normalised ppl as the seed project counts it)"
    )


def show_table(results):
    head, rows = table(results)
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    print(about(results[0]))
    for row in [head, *rows]:
        print(
            "  ".join(
                [
                    f"{row[0]:{widths[0]}s}",
                    *(f"{cell:>{width}s}" for cell, width in zip(row[1:], widths[1:])),
                ]
            )
        )


def markdown(results) -> str:
    head, rows = table(results)
    lines = [
        f"| {' | '.join(row)} |" for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    ]
    return "\n".join([about(results[0]), "", *lines]) + "\n"


if __name__ == "__main__":
    command(main)

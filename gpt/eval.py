"""Evaluate consolidated weights on a held-out split: needs no DeepSpeed, no ZeRO files, no training
run.

    python gpt/eval.py --checkpoint_file runs/24h/export/model.safetensors [--json out.json]
    python gpt/eval.py --checkpoint_file … --eval_data_split all [--markdown out.md]
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

# instead of gpt/, whose module names must shadow nobody's
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.checkpoint.weights import file_of_weights
from gpt.files import require_place_for

if TYPE_CHECKING:  # what it loads is not needed for a mistake on the command line
    from gpt.data.datasets import Dataset
    from gpt.model import GPT

# tokens of a batch, if --batch_size does not say how many windows
BATCH_TOKENS = 8192

# (name, name of the column, key of gpt.evaluation.summary, format)
QUANTITIES = (
    ("normalised perplexity", "normalised ppl", "normalised_ppl", ".4f"),
    ("bits per byte", "bits per byte", "bits_per_byte", ".4f"),
    ("loss (nats per token)", "loss", "loss", ".4f"),
    ("perplexity per token", "ppl", "ppl", ".2f"),
    ("top-1 accuracy", "top-1", "top1", ".4f"),
    ("top-10 accuracy", "top-10", "top10", ".4f"),
    ("tokens scored", "tokens", "tokens", ",d"),
    ("bytes", "bytes", "bytes", ",d"),
)


def parse_args() -> argparse.Namespace:
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
            raise UserError(f"--{name} {value}", mend="give a positive number")
    return args


def main() -> None:
    args = parse_args()
    weights = args.checkpoint_file
    for name in ("json", "markdown"):
        file = getattr(args, name)
        if file:
            require_place_for(f"--{name}", file)

    from gpt.checkpoint.checkpoint import Checkpoint
    from gpt.checkpoint.manifest import MANIFEST
    from gpt.config.saved import CONFIG, read_config

    config_file = Path(args.config_file) if args.config_file else weights.with_name(CONFIG)
    config = read_config(config_file)
    root = args.data_root or trained_on(config).get("root")
    if not root:
        raise UserError(
            f"{config_file} does not tell which dataset the model was trained on",
            mend="give --data_root",
        )
    if weights.with_name(MANIFEST).is_file():
        Checkpoint.open(weights.parent).verify()
    dataset = open_dataset(root, config, weights)
    names = splits_named(args.eval_data_split, dataset)
    results = evaluate(args, names, weights, config, config_file, dataset)
    single = args.eval_data_split == names[0]
    if single:
        show(results[0])
    else:
        show_table(results)
    if args.json:
        write_json(Path(args.json), results[0] if single else results)
    if args.markdown:
        Path(args.markdown).write_text(markdown(results), encoding="utf-8")


def trained_on(config: dict) -> dict:
    """What a config.yaml says of the dataset, nothing if it is of a model from elsewhere."""
    block = config.get("dataset")
    return block if isinstance(block, dict) else {}


def open_dataset(root: str, config: dict, weights: Path) -> "Dataset":
    from gpt.data.datasets import Dataset
    from gpt.data.manifests import TOKENIZER

    dataset = Dataset(root)
    tokenizer = trained_on(config).get("tokenizer")
    if tokenizer not in (None, dataset.vocab.fingerprint):
        raise UserError(
            f"{dataset.root} was made with another tokenizer than the model was trained with",
            mend=f"prepare the text with `--tokenizer {weights.with_name(TOKENIZER)}`",
        )
    return dataset


def splits_named(text: str, dataset: "Dataset") -> list[str]:
    """Names of the splits that --eval_data_split names. Raises UserError where there is none."""
    names = [name.strip() for name in text.split(",")]
    if text == "all":
        names = [name for name in dataset.split_names if name != "train"]
        if not names:
            raise UserError(
                f"{dataset.root} has no split but train, which `all` leaves out",
                mend="give --eval_data_split train",
            )
    for name in names:
        dataset.split(name)
    return list(dict.fromkeys(names))


def evaluate(
    args: argparse.Namespace,
    names: list[str],
    weights: Path,
    config: dict,
    config_file: Path,
    dataset: "Dataset",
) -> list[dict]:
    """The content of `--json` for each split, by one and the same model."""
    from tqdm import tqdm

    from gpt.checkpoint.weights import load_model
    from gpt.compute.hardware import keep_freed_memory, usable_device
    from gpt.evaluation import Evaluator, summary

    device = usable_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    model = load_model(weights, config, config_file).to(device)
    seq_len, last_n = window_of(args, config, model, dataset)
    batch_size = args.batch_size or max(1, BATCH_TOKENS // seq_len)
    results = []
    for name in names:
        evaluator = Evaluator(dataset.split(name), dataset.vocab, seq_len, last_n, batch_size)
        hidden = not sys.stderr.isatty()
        with tqdm(
            total=evaluator.calls, unit="batch", desc=name, disable=hidden, leave=False
        ) as bar:
            tally = evaluator.run(model, device, lambda: bar.update() or True)
        assert tally is not None
        result = {
            "split": name,
            "checkpoint": str(weights),
            "dataset": str(dataset.root),
            "seq_len": seq_len,
            "last_n": last_n,
        }
        results.append(result | summary(tally))
    return results


def window_of(
    args: argparse.Namespace, config: dict, model: "GPT", dataset: "Dataset"
) -> tuple[int, int]:
    """(seq_len, last_n). Raises UserError where the model cannot score the dataset in such
    windows."""
    longest = model.config.seq_len
    seq_len = args.seq_len or longest
    if seq_len > longest:
        raise UserError(
            f"--seq_len {seq_len} is longer than the {longest} positions that the model was trained"
            " with",
            mend=f"give at most {longest}",
        )
    if dataset.vocab.size != model.config.vocab_size:
        raise UserError(
            f"the tokenizer of {dataset.root} has {dataset.vocab.size} ids, but the model was"
            f" trained with {model.config.vocab_size}",
            mend="give the --data_root that it was trained on",
        )
    if args.last_n is not None:
        if args.last_n > seq_len:
            raise UserError(
                f"--last_n {args.last_n} is more than the {seq_len} targets of a window",
                mend=f"give at most {seq_len}",
            )
        return seq_len, args.last_n
    from gpt.config.options import LAST_N

    options = config["run"].get("gpt") or {}
    return seq_len, min(options.get("last_n") or LAST_N, seq_len)


def write_json(file: Path, content: dict | list[dict]) -> None:
    from gpt.metrics.events import finite

    text = json.dumps(finite(content), indent=1, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def show(result: dict) -> None:
    languini = result["languini"]
    print(
        f"{result['checkpoint']} on the split {result['split']!r} of {result['dataset']} "
        f"(seq_len {result['seq_len']}, last_n {result['last_n']})"
    )
    print(f"{'':26s}{'exact':>14s}{'languini':>14s}")
    for name, _, key, form in QUANTITIES:
        exact = format(result[key], form)
        as_languini = format(languini[key], form) if key in languini else ""
        print(f"{name:26s}{exact:>14s}{as_languini:>14s}")


def table(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(names of the columns, rows of texts), a row for each split."""
    head = ["split", *(column for _, column, _, _ in QUANTITIES), "languini"]
    rows = []
    for result in results:
        exact = [format(result[key], form) for _, _, key, form in QUANTITIES]
        languini = format(result["languini"]["normalised_ppl"], ".4f")
        rows.append([result["split"], *exact, languini])
    return head, rows


def caption(result: dict) -> str:
    return (
        f"{result['checkpoint']} on {result['dataset']} (seq_len {result['seq_len']}, last_n"
        f" {result['last_n']}; languini: normalised ppl as the seed project counts it)"
    )


def show_table(results: list[dict]) -> None:
    head, rows = table(results)
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows)]
    print(caption(results[0]))
    for split, *cells in [head, *rows]:
        padded = [f"{cell:>{width}s}" for cell, width in zip(cells, widths[1:])]
        print("  ".join([f"{split:{widths[0]}s}", *padded]))


def markdown(results: list[dict]) -> str:
    head, rows = table(results)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    lines = [_markdown_row(row) for row in [head, rule, *rows]]
    return "\n".join([caption(results[0]), "", *lines]) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    command(main)

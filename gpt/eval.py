"""Evaluate consolidated weights on held-out text: needs no DeepSpeed, no ZeRO files, no training
run.

    python gpt/eval.py --checkpoint_file runs/24h/export/model.safetensors [--json out.json]
    python gpt/eval.py --checkpoint_file … --eval_data_split all [--markdown out.md]
    python gpt/eval.py --checkpoint_file … --text letter.txt another.txt
    python gpt/eval.py --checkpoint_file … --join runs/24h
    python gpt/eval.py --checkpoint_file … --per_document documents.jsonl
    python gpt/eval.py --checkpoints runs/24h
    python gpt/eval.py --hf FOLDER --data_root data/books
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# instead of gpt/, whose module names must shadow nobody's
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.checkpoint.weights import file_of_weights
from gpt.config.own_code import TRUST, add_trust_option
from gpt.files import require_place_for, write_output

if TYPE_CHECKING:  # what it loads is not needed for a mistake on the command line
    from gpt.checkpoint.checkpoint import Checkpoint
    from gpt.checkpoint.sources import Source
    from gpt.data.datasets import Dataset
    from gpt.results.scoring import Evaluated, Target


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_inputs(parser)
    parser.add_argument(
        "--seq_len",
        type=int,
        help="tokens of context; default the model's, of --hf 2,048 at"
        " most; no more than the model has",
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
        help="write the result here as well; of several splits or checkpoints, a list of them",
    )
    parser.add_argument(
        "--markdown", metavar="FILE", help="write a table here, a row for each result"
    )
    parser.add_argument(
        "--join",
        type=Path,
        metavar="RUN",
        help="keep the result in RUN/evaluations, as RUN's evaluation of the whole split",
    )
    parser.add_argument(
        "--per_document",
        type=Path,
        metavar="FILE",
        help="write nats, tokens and bytes of each document here, .jsonl or .parquet; of one split,"
        " or of the files of --text, whose result is one figure for all",
    )
    args = parser.parse_args()
    for name in ("seq_len", "last_n", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}", mend="give a positive number")
    require_compatible(args)
    return args


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Options that name weights and texts."""
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--checkpoint_file",
        type=file_of_weights,
        help="model.safetensors, made by tools/zero_to_fp32.py",
    )
    weights.add_argument(
        "--checkpoints", type=Path, metavar="RUN", help="every checkpoint that a run has kept"
    )
    weights.add_argument(
        "--hf",
        type=Path,
        metavar="FOLDER",
        help="a causal language model that transformers opens, with its own tokenizer: scored on"
        " the same bytes",
    )
    add_trust_option(parser)
    parser.add_argument(
        "--config_file", help="the run's config.yaml; default the one beside the weights"
    )
    parser.add_argument(
        "--data_root", help="dataset folder; default the one that the model was trained on"
    )
    parser.add_argument(
        "--eval_data_split",
        metavar="SPLIT[,SPLIT…]|all",
        help="splits to evaluate (default test, and with --checkpoints and --join the one that the"
        " run is scored on); all: every one but train",
    )
    parser.add_argument(
        "--skip_data_hash",
        action="store_true",
        help="evaluate splits without holding their tokens against their sha256 first",
    )
    parser.add_argument(
        "--text", nargs="+", metavar="FILE", help="text files instead of a dataset, each a document"
    )


def require_compatible(args: argparse.Namespace) -> None:
    """Raise UserError where one option leaves another without meaning."""
    excluded = {
        "text": ("data_root", "eval_data_split", "join"),
        "checkpoints": ("config_file", "join", "per_document"),
        "hf": ("config_file", "join"),
    }
    for name, others in excluded.items():
        for other in others:
            if getattr(args, name) is not None and getattr(args, other) is not None:
                raise UserError(f"--{name} and --{other} exclude each other", mend="leave one out")
    if args.hf and args.trust_model_file:
        raise UserError(
            f"--hf runs no code that came with weights, so {TRUST} says nothing to it",
            mend="leave it out",
        )
    if args.hf and not (args.data_root or args.text):
        raise UserError(
            "--hf names a model, and nothing that it is to be scored on",
            mend="name a dataset by --data_root, or text files by --text",
        )


def main() -> None:
    args = parse_args()
    for name in ("json", "markdown"):
        file = getattr(args, name)
        if file:
            require_place_for(f"--{name}", file)

    from gpt.results import document_sums, evaluations, score_tables

    if args.per_document:
        document_sums.require_writable(args.per_document)
    evaluated, joined = (evaluate_foreign(args), None) if args.hf else evaluate_own(args)
    results = [result for result, _ in evaluated]
    is_single = not args.checkpoints and args.eval_data_split in (None, results[0]["split"])
    print(score_tables.in_full(results[0]) if is_single else score_tables.as_table(results))
    if args.per_document:
        (documents,) = (sums for _, sums in evaluated)
        assert documents is not None
        document_sums.write(args.per_document, documents)
    if joined:
        for result in results:
            print(f"joined: {evaluations.join(args.join, result, joined)}")
    if args.json:
        write_output("--json", args.json, as_json(results[0] if is_single else results))
    if args.markdown:
        write_output("--markdown", args.markdown, score_tables.as_markdown(results))


def evaluate_own(args: argparse.Namespace) -> "tuple[list[Evaluated], Checkpoint | None]":
    """Weights of ours; and, where their result is to be joined to a run, the folder that they are
    from."""
    from gpt.checkpoint import sources
    from gpt.results import evaluations, scoring

    trusted = args.trust_model_file
    if args.checkpoint_file:
        weights = [sources.of_file(args.checkpoint_file, args.config_file, notify, trusted)]
    else:
        weights = sources.of_run(args.checkpoints, notify, trusted)
    targets = targets_of(args, weights[0])
    joined = None
    if args.join:
        joined = weights_to_join(args.join, weights[0])
        seq_len, _ = scoring.window_of(weights[0], args.seq_len, args.last_n)
        for target in targets:
            evaluations.require_same_measure(args.join, {**target.facts, "seq_len": seq_len})
        evaluations.make_folder(args.join)
    if args.per_document:
        require_place_for("--per_document", args.per_document)
    return list(evaluate(args, weights, targets)), joined


def evaluate_foreign(args: argparse.Namespace) -> "list[Evaluated]":
    """A model of transformers'."""
    from gpt.compute.hardware import keep_freed_memory, usable_device
    from gpt.convert import foreign_model, foreign_text

    folder = foreign_model.open_folder(args.hf, notify)
    window = folder.window(args.seq_len, args.last_n)
    if args.per_document:
        require_place_for("--per_document", args.per_document)
    device = usable_device(args.device)
    if args.text:
        targets = [foreign_text.target_of_texts(args.text, folder.tokenizer)]
    else:
        dataset = dataset_at(args.data_root, args)
        targets = [
            foreign_text.target_of_split(dataset, name, folder.tokenizer, not args.skip_data_hash)
            for name in splits_of(args, dataset, "test")
        ]
    if device == "cpu":
        keep_freed_memory()
    evaluated = foreign_model.evaluate(folder, targets, window, device, notify, args.batch_size)
    return list(evaluated)


def notify(sentence: str) -> None:
    print(f"notice: {sentence}", file=sys.stderr)


def weights_to_join(run: Path, source: "Source") -> "Checkpoint":
    """The folder of weights that are a run's. Raises UserError."""
    from gpt.results.evaluations import require_of_run

    if source.checkpoint is None:
        raise UserError(
            f"{source.tokenizer.parent} has no checkpoint.json, which tells what its weights were"
            " made from",
            mend="join the evaluation of what tools/zero_to_fp32.py made",
        )
    require_of_run(run, source.checkpoint)
    return source.checkpoint


def targets_of(args: argparse.Namespace, source: "Source") -> "list[Target]":
    """What is scored with each weights: splits, or the texts of --text. Raises UserError."""
    from gpt.results import scoring

    per_document = args.per_document is not None
    if args.text:
        return [scoring.of_texts(args.text, source, per_document)]
    root = args.data_root or source.trained_on.get("root")
    if not root:
        raise UserError(
            f"{source.config_file} does not tell which dataset the model was trained on",
            mend="give --data_root",
        )
    if not args.data_root and not Path(root).exists():
        raise UserError(
            f"{source.config_file} tells of a model that was trained on {root}, which is not there"
            f" as seen from {Path.cwd()}",
            mend="name the dataset by --data_root, or text files by --text",
        )
    dataset = dataset_at(root, args)
    scoring.require_own_tokenizer(dataset.vocab, source, str(dataset.root))
    return [
        scoring.of_split(dataset, name, not args.skip_data_hash, per_document)
        for name in splits_of(args, dataset, own_split(args, source))
    ]


def dataset_at(root: str, args: argparse.Namespace) -> "Dataset":
    from gpt.data.datasets import TAKEN_UNHASHED, Dataset

    if args.skip_data_hash:
        notify(TAKEN_UNHASHED)
    return Dataset(root)


def splits_of(args: argparse.Namespace, dataset: "Dataset", by_default: str) -> list[str]:
    """Names of the splits that are evaluated. Raises UserError."""
    names = splits_named(args.eval_data_split or by_default, dataset)
    if args.per_document and len(names) > 1:
        raise UserError(
            f"--per_document holds the documents of one split, and --eval_data_split names"
            f" {len(names)}",
            mend="name one",
        )
    return names


def own_split(args: argparse.Namespace, source: "Source") -> str:
    """The split that is evaluated where none is named."""
    if args.join or args.checkpoints:
        return (source.config["run"].get("gpt") or {}).get("eval_data_split") or "test"
    return "test"


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
    args: argparse.Namespace, sources: "list[Source]", targets: "list[Target]"
) -> "Iterator[Evaluated]":
    """Of each of the weights on each of the texts."""
    from gpt.compute.hardware import keep_freed_memory, usable_device
    from gpt.results import scoring

    device = usable_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    for source in sources:
        window = scoring.window_of(source, args.seq_len, args.last_n)
        model = source.load().to(device)
        facts = {"checkpoint": source.name, "step": source.step}
        for target in targets:
            yield scoring.evaluate(model, target, facts, window, device, args.batch_size)
        del model  # before the next one is loaded


def as_json(content: dict | list[dict]) -> str:
    from gpt.metrics.events import finite

    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


if __name__ == "__main__":
    command(main)

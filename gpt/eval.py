"""Evaluate consolidated weights on held-out text: needs no DeepSpeed, no ZeRO files, no training
run.

    python gpt/eval.py --checkpoint_file runs/24h/export/model.safetensors [--json out.json]
    python gpt/eval.py --checkpoint_file … --eval_data_split all [--markdown out.md]
    python gpt/eval.py --checkpoint_file … --text letter.txt another.txt
    python gpt/eval.py --checkpoint_file … --join runs/24h
    python gpt/eval.py --checkpoints runs/24h
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# instead of gpt/, whose module names must shadow nobody's
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.checkpoint.weights import file_of_weights
from gpt.config.own_code import add_trust_option
from gpt.files import require_place_for, write_output

if TYPE_CHECKING:  # what it loads is not needed for a mistake on the command line
    from gpt.architecture.architecture import Model
    from gpt.checkpoint.checkpoint import Checkpoint
    from gpt.checkpoint.sources import Source
    from gpt.data.datasets import Dataset
    from gpt.data.vocab import Vocab
    from gpt.evaluation import Stream

# tokens of a batch, if --batch_size does not say how many windows
BATCH_TOKENS = 8192


class Target(NamedTuple):
    """Text to score. facts: what the result tells of it, its "split" and "dataset" among them."""

    facts: dict[str, Any]
    stream: "Stream"
    vocab: "Vocab"


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_inputs(parser)
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
        "checkpoints": ("config_file", "join"),
    }
    for name, others in excluded.items():
        for other in others:
            if getattr(args, name) is not None and getattr(args, other) is not None:
                raise UserError(f"--{name} and --{other} exclude each other", mend="leave one out")


def main() -> None:
    args = parse_args()
    for name in ("json", "markdown"):
        file = getattr(args, name)
        if file:
            require_place_for(f"--{name}", file)

    from gpt.checkpoint import sources
    from gpt.results import evaluations, score_tables

    trusted = args.trust_model_file
    if args.checkpoint_file:
        weights = [sources.of_file(args.checkpoint_file, args.config_file, notify, trusted)]
    else:
        weights = sources.of_run(args.checkpoints, notify, trusted)
    targets = targets_of(args, weights[0])
    joined = None
    if args.join:
        joined = weights_to_join(args.join, weights[0])
        seq_len, _ = window_of(args, weights[0])
        for target in targets:
            evaluations.require_same_measure(args.join, {**target.facts, "seq_len": seq_len})
    results = list(evaluate(args, weights, targets))
    is_single = args.checkpoint_file and args.eval_data_split in (None, results[0]["split"])
    print(score_tables.in_full(results[0]) if is_single else score_tables.as_table(results))
    if joined:
        for result in results:
            print(f"joined: {evaluations.join(args.join, result, joined)}")
    if args.json:
        write_output("--json", args.json, as_json(results[0] if is_single else results))
    if args.markdown:
        write_output("--markdown", args.markdown, score_tables.as_markdown(results))


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


def targets_of(args: argparse.Namespace, source: "Source") -> list[Target]:
    """What is scored with each weights: splits, or the texts of --text. Raises UserError."""
    if args.text:
        from gpt.data.vocab import Vocab
        from gpt.prepare.in_memory import split_of_files

        vocab = Vocab.load(source.tokenizer)
        require_own_tokenizer(vocab, source, str(source.tokenizer))
        stream = split_of_files(args.text, vocab)
        facts = {"split": "text", "dataset": ", ".join(args.text)}
        return [Target(facts, stream, vocab)]
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
    from gpt.data.datasets import TAKEN_UNHASHED, Dataset

    if args.skip_data_hash:
        notify(TAKEN_UNHASHED)
    dataset = Dataset(root)
    require_own_tokenizer(dataset.vocab, source, str(dataset.root))
    targets = []
    for name in splits_named(args.eval_data_split or own_split(args, source), dataset):
        facts = {
            "split": name,
            "dataset": str(dataset.root),
            "documents": dataset.documents(name),
        }
        split = dataset.split(name)
        if not args.skip_data_hash:
            split.require_as_written()
        targets.append(Target(facts, split, dataset.vocab))
    return targets


def own_split(args: argparse.Namespace, source: "Source") -> str:
    """The split that is evaluated where none is named."""
    if args.join or args.checkpoints:
        return (source.config["run"].get("gpt") or {}).get("eval_data_split") or "test"
    return "test"


def require_own_tokenizer(vocab: "Vocab", source: "Source", where: str) -> None:
    """Raise UserError where the text would get other ids than those that the model has learned.
    where: the tokenizer's file, or the dataset that it made."""
    mend = f"prepare the text with `--tokenizer {source.tokenizer}`"
    if source.trained_on.get("tokenizer") not in (None, vocab.fingerprint):
        raise UserError(
            f"{where} has another tokenizer than the one that the model was trained with", mend=mend
        )
    size = source.shape.vocab_size
    if vocab.size != size:
        raise UserError(
            f"the tokenizer of {where} has {vocab.size} ids, but the model was trained with {size}",
            mend=mend,
        )


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
    args: argparse.Namespace, sources: "list[Source]", targets: list[Target]
) -> Iterator[dict]:
    """The content of `--json` for each of the weights on each of the texts."""
    from gpt.compute.hardware import keep_freed_memory, usable_device

    device = usable_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    for source in sources:
        seq_len, last_n = window_of(args, source)
        model = source.load().to(device)
        for target in targets:
            yield {
                **target.facts,
                "checkpoint": source.name,
                "step": source.step,
                "seq_len": seq_len,
                "last_n": last_n,
                "of_tokens": len(target.stream.tokens),
                **scores_of(model, target, args.batch_size, seq_len, last_n, device),
            }
        del model  # before the next one is loaded


def scores_of(
    model: "Model", target: Target, batch_size: int | None, seq_len: int, last_n: int, device: str
) -> dict:
    """What gpt.evaluation.summary finds, with a bar on a terminal meanwhile."""
    from tqdm import tqdm

    from gpt.evaluation import Evaluator, summary

    batch_size = batch_size or max(1, BATCH_TOKENS // seq_len)
    evaluator = Evaluator(target.stream, target.vocab, seq_len, last_n, batch_size)
    hidden = not sys.stderr.isatty()
    with tqdm(
        total=evaluator.calls,
        unit="batch",
        desc=target.facts["split"],
        disable=hidden,
        leave=False,
    ) as bar:
        tally = evaluator.run(model, device, lambda: bar.update() or True)
    assert tally is not None
    return summary(tally)


def window_of(args: argparse.Namespace, source: "Source") -> tuple[int, int]:
    """(seq_len, last_n). Raises UserError where the model cannot score such windows."""
    from gpt.config.options import LAST_N

    longest = source.shape.seq_len
    seq_len = args.seq_len or longest
    if seq_len > longest:
        raise UserError(
            f"--seq_len {seq_len} is longer than the {longest} positions that the model was trained"
            " with",
            mend=f"give at most {longest}",
        )
    if args.last_n is None:
        options = source.config["run"].get("gpt") or {}
        return seq_len, min(options.get("last_n") or LAST_N, seq_len)
    if args.last_n > seq_len:
        raise UserError(
            f"--last_n {args.last_n} is more than the {seq_len} targets of a window",
            mend=f"give at most {seq_len}",
        )
    return seq_len, args.last_n


def as_json(content: dict | list[dict]) -> str:
    from gpt.metrics.events import finite

    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


if __name__ == "__main__":
    command(main)

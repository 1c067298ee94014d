"""Texts -> tokenizer -> packed dataset.

    python tools/prepare_data.py --sample data/sample
    python tools/prepare_data.py --input books/ --test_every 50 --out data/books
    python tools/prepare_data.py --input books.jsonl.zst --split_list test=held_out.txt \\
        --out data/books
    find /archive -name '*.txt' | python tools/prepare_data.py --input - --test_every 50 \\
        --out data/books
    python tools/prepare_data.py --input books/ --tokenizer books_16384.model --out data/books

    python tools/prepare_data.py --input enwik8 --cut_documents 100000 --test_every 20 \\
        --valid_every 20 --out data/enwik8

Without --test_every, --valid_every and --split_list each sub-folder of the input becomes the split
of its name; `train` must be among them. The work is kept in OUT.preparing until it is whole: after
a kill the same command goes on. One process encodes a compressed file: give large corpora in many.
On many hosts:

    python tools/prepare_data.py … --out data/books --shard 1/8   on the first, 2/8 on the second, …
    python tools/prepare_data.py --merge data/books.shard-*-of-8 --out data/books
"""

import os
import re
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt import standard_streams
from gpt.errors import Parser, UserError, command

VOCAB_SIZE = 16384
LARGEST_ROW = 1 << 28


def make_parser():
    parser = Parser(__doc__)
    parser.add_argument(
        "--sample", metavar="OUT", help="build the embedded sample dataset in this folder"
    )
    parser.add_argument(
        "--input",
        metavar="PLACE",
        help=(
            "a folder of .txt, .jsonl and .parquet files, packed or not, at any depth; one file; or"
            " - for a list of paths on the standard input; a named file of another ending is text"
        ),
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the dataset goes, a new folder")
    parser.add_argument(
        "--test_every",
        type=int,
        metavar="N",
        help="hold out every N-th document, of those that no list names, as the split `test`",
    )
    parser.add_argument(
        "--valid_every",
        type=int,
        metavar="N",
        help="of the documents that are left then, hold out every N-th as the split `valid`",
    )
    parser.add_argument(
        "--split_list",
        action="append",
        metavar="SPLIT=FILE",
        help="hold out the documents that FILE names, one per line, as SPLIT; may be repeated",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE.model",
        help="use this SentencePiece model instead of training one",
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        metavar="N",
        help=f"ids of the trained tokenizer (default {VOCAB_SIZE})",
    )
    add_options_of_reading(parser)
    add_options_of_work(parser)
    return parser


def add_options_of_reading(parser):
    parser.add_argument(
        "--cut_documents",
        type=int,
        metavar="BYTES",
        help=(
            "make documents FILE#1, FILE#2, … of about so many bytes of each larger text file, cut "
            "behind paragraphs or lines"
        ),
    )
    parser.add_argument(
        "--text_field", metavar="NAME", help="field of a row that holds its text (default text)"
    )
    parser.add_argument(
        "--id_field",
        metavar="NAME",
        help="field that names a row (default id); else it is FILE:ROW",
    )
    parser.add_argument(
        "--largest_row",
        type=int,
        metavar="BYTES",
        help=f"bytes that a row may have (default {LARGEST_ROW:,}); text files may be of any size",
    )
    parser.add_argument(
        "--bad_utf8",
        choices=("refuse", "replace", "skip"),
        help=(
            "what to do with a document that is not "
            "UTF-8: refuse to go on (default), put U+FFFD there, or leave it out"
        ),
    )
    parser.add_argument(
        "--duplicates",
        choices=("keep", "drop"),
        help=(
            "keep documents whose text their split has already "
            "(default), or drop them, and from train those that are held out too; both counts them"
        ),
    )


def add_options_of_work(parser):
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="encode the I-th of N parts only, for --merge"
    )
    parser.add_argument(
        "--merge", nargs="+", metavar="FOLDER", help="make the dataset of what all shards left"
    )


def main():
    args = make_parser().parse_args()
    options = {name for name, value in vars(args).items() if value is not None}
    if args.sample is not None:
        make_sample(args, options)
    elif args.merge is not None:
        merge_shards(args, options)
    else:
        prepare_texts(args)


def make_sample(args, options):
    from gpt.prepare.sample import prepare_sample

    if options != {"sample"}:
        raise UserError(
            "--sample takes no other option", mend="it has its own text and its own vocabulary"
        )
    prepare_sample(args.sample, say)


def merge_shards(args, options):
    from gpt.prepare import pipeline

    if args.out is None:
        raise UserError("--merge needs --out FOLDER, where the dataset goes")
    if options != {"merge", "out"}:
        raise UserError("--merge takes --out and no other option", mend="the shards know theirs")
    pipeline.merge(args.merge, args.out, say)


def prepare_texts(args):
    from gpt.data.vocab import Vocab
    from gpt.files import require_new_folder
    from gpt.prepare import pipeline
    from gpt.prepare.documents import holds_rows
    from gpt.prepare.inputs import endings_in_words, find_inputs, passed_over
    from gpt.prepare.splits import Rule, read_lists
    from gpt.prepare.staging import Job

    require_consistent(args)
    workers = len(os.sched_getaffinity(0)) if args.workers is None else args.workers
    if workers < 1:
        raise UserError(f"--workers {workers}", mend="give a positive number")
    require_new_folder(args.out)
    rule = Rule(args.test_every, read_lists(args.split_list or ()), args.valid_every)
    listed = getattr(sys.stdin, "buffer", ()) if args.input == "-" else ()
    inputs = find_inputs(args.input, rule.by_folder, listed)
    not_read = passed_over(args.input) if os.path.isdir(args.input) else {}
    if not_read:
        say(f"passed over {endings_in_words(not_read)}")
    fields = [f"--{name}" for name in ("text_field", "id_field") if getattr(args, name) is not None]
    if fields and not any(holds_rows(entry) for entry in inputs):
        say(f"notice: {' and '.join(fields)} changes nothing: no input holds rows")
    if args.tokenizer is not None:
        tokenizer = Vocab.load(args.tokenizer)
    else:
        tokenizer = VOCAB_SIZE if args.vocab_size is None else args.vocab_size
    provenance = provenance_of(args, rule, not_read)
    job = Job(rule, reading_of(args), args.duplicates or "keep", provenance)
    shard = shard_of(args.shard)
    pipeline.prepare(inputs, args.out, job, tokenizer, workers, shard, say)
    if shard == (1, 1):
        size = Vocab.load(Path(args.out) / "tokenizer.model").size
        options = f"--data_root {args.out} --vocab_size {size}"
        if args.valid_every is not None:
            options += " --eval_data_split valid"
        say(f"wrote {args.out}; train on it with {options}")


def require_consistent(args):
    """Raise UserError where options are missing or contradict each other."""
    if args.input is None or args.out is None:
        raise UserError("give --input FOLDER and --out FOLDER, or --sample OUT")
    if os.path.isdir(args.input) and Path(args.input).resolve() in Path(args.out).resolve().parents:
        raise UserError(
            f"--out {args.out} lies in --input {args.input}, and would be taken for input",
            mend="name a folder elsewhere",
        )
    if args.tokenizer is not None and args.vocab_size is not None:
        raise UserError(
            "--vocab_size is for training a tokenizer",
            mend="leave it out when --tokenizer gives one",
        )


def reading_of(args):
    from gpt.prepare.texts import Reading

    options = {}
    for name in ("text_field", "id_field", "bad_utf8", "cut_documents", "largest_row"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if options.get("largest_row", 1) < 1:
        raise UserError(f"--largest_row {args.largest_row}", mend="give a positive number")
    return Reading(**options)


def provenance_of(args, rule, not_read):
    """What the dataset is made of, for its manifest. not_read: {ending: files passed over}."""
    parts = ["lists"] if rule.lists else []
    for split, n in (("test", args.test_every), ("valid", args.valid_every)):
        if n is not None:
            parts.append(f"every {n}-th document is {split}")
    splits = ", then ".join(parts) or "folders"
    tokenizer = "trained on the split `train`" if args.tokenizer is None else "given"
    return {"splits": splits, "tokenizer": tokenizer, "passed_over": not_read}


def shard_of(text):
    """(i, n) of --shard I/N."""
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}", mend="give I/N, the I-th of N parts, for example 1/8")
    return int(match[1]), int(match[2])


def say(text):
    try:
        print(text, flush=True)
    except OSError:  # whoever read along has gone, and the work goes on
        standard_streams.discard(sys.stdout)


if __name__ == "__main__":
    command(main)

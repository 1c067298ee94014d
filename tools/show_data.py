"""Look at a dataset: its splits, documents and batches, in words.

    python tools/show_data.py data/books                                      splits and their sizes
    python tools/show_data.py data/books --split test --documents              names, bytes, tokens
    python tools/show_data.py data/books --document "b/moby dick.txt"          its text
    python tools/show_data.py data/books --batch 100 --train_batch_size 32 --seq_len 512
    python tools/show_data.py data/books --histogram                tokens by frequency, and lengths

A batch is what a run of that train_batch_size and seq_len trains on, window by window, and batch N,
counted from 0, is that of its step N + 1; a run that has left batches out names those in its
metrics.jsonl. With --rank and --world_size only the rows of one rank are shown.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command
from gpt.escaping import in_one_line, printable

TRAIN = "train"
LARGEST = 2**31 - 1
# tokens, which are all held and shown
LARGEST_BATCH = 1 << 26
BAR = 40  # characters of a histogram's longest bar


def make_parser():
    parser = Parser(__doc__)
    parser.add_argument("dataset", metavar="DATA", help="a dataset's folder")
    parser.add_argument("--split", help="the split to look at (default: all sizes, else train)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--documents", action="store_true", help="list the documents")
    what.add_argument("--document", metavar="NAME", help="show the text of a document")
    what.add_argument("--batch", type=int, metavar="N", help="show batch N, counted from 0")
    what.add_argument(
        "--histogram", action="store_true", help="count tokens and lengths; reads the whole split"
    )
    parser.add_argument("--train_batch_size", type=int, metavar="B", help="of the run")
    parser.add_argument("--seq_len", type=int, metavar="T", help="of the run")
    parser.add_argument("--rank", type=int, metavar="R", help="show the rows of this rank only")
    parser.add_argument("--world_size", type=int, metavar="W", help="how many ranks there are")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main():
    args = make_parser().parse_args()
    require_consistent(args)

    from gpt.data import contents, manifests
    from gpt.data.datasets import Dataset

    dataset = Dataset(args.dataset)
    split = args.split or TRAIN
    if args.documents:
        show(args, contents.documents_of(dataset.split(split)), print_documents)
    elif args.document is not None:
        document = contents.document_of(dataset, dataset.split(split), args.document)
        show(args, document, print_document)
    elif args.batch is not None:
        show(args, rows_of_batch(args, dataset), print_rows)
    elif args.histogram:
        show(args, contents.histogram_of(dataset, dataset.split(split)), print_histogram)
    else:
        splits = dataset.manifest["splits"]
        if args.split is not None:
            dataset.split(args.split)
            splits = {args.split: splits[args.split]}
        lines = [manifests.size_of_split(name, entry) for name, entry in splits.items()]
        show(args, dataset.manifest, lambda manifest: print("\n".join(lines)))


def require_consistent(args):
    """Raise UserError where options of a batch are missing, contradict each other, or are given
    without one."""
    of_a_batch = ("train_batch_size", "seq_len", "rank", "world_size")
    if args.batch is None:
        for name in of_a_batch:
            if getattr(args, name) is not None:
                raise UserError(f"--{name} is for --batch", mend="give --batch N, or leave it out")
        return
    if args.train_batch_size is None or args.seq_len is None:
        raise UserError(
            "--batch needs --train_batch_size and --seq_len", mend="give those of the run"
        )
    if args.batch < 0 or args.train_batch_size < 1 or args.seq_len < 1:
        raise UserError("--batch counts from 0, --train_batch_size and --seq_len from 1")
    if args.batch > LARGEST or args.train_batch_size * args.seq_len > LARGEST_BATCH:
        raise UserError("no run has such a batch", mend=f"it has {LARGEST_BATCH:,} tokens at most")
    if (args.rank is None) != (args.world_size is None):
        raise UserError("--rank and --world_size belong together", mend="give both, or neither")
    if args.rank is not None and not 0 <= args.rank < args.world_size:
        raise UserError(
            f"there is no rank {args.rank} of {args.world_size}", mend="ranks count from 0"
        )


def show(args, value, print_it):
    if args.json:
        print(json.dumps(value, indent=1))
    else:
        print_it(value)


def rows_of_batch(args, dataset):
    from gpt.data.contents import batch_of
    from gpt.data.streams import Streams

    streams = Streams(dataset.split(args.split or TRAIN), args.train_batch_size, args.seq_len)
    rows = streams.rows_of(args.rank or 0, args.world_size or 1)
    return batch_of(dataset, streams, args.batch, rows)


def print_documents(documents):
    for document in documents:
        print(f"{document['bytes']:>14,} bytes {document['tokens']:>14,} tokens  ", end="")
        print(in_one_line(document["name"]))
    longest = max(documents, key=lambda document: document["tokens"])
    tokens = sum(document["tokens"] for document in documents)
    print(
        f"{len(documents):,} documents, {tokens / len(documents):,.0f} tokens on average, at most"
        f" {longest['tokens']:,} ({longest['name']!r})"
    )


def print_document(document):
    name = in_one_line(document["name"])
    print(f"{name}: {document['bytes']:,} bytes, {document['tokens']:,} tokens")
    print(document["text"])


def print_rows(rows):
    for row in rows:
        print(f"row {row['row']}")
        for piece in row["pieces"]:
            last = piece["first"] + piece["tokens"] - 1
            end = ", its end" if piece["ends"] else ""
            print(f"  {in_one_line(piece['document'])}: tokens {piece['first']:,} to {last:,}{end}")
            for line in printable(piece["text"]).split("\n"):
                print(f"    | {line}")


def print_histogram(counts):
    tokens = counts["tokens"]
    print(
        f"{tokens:,} tokens, {counts['bytes'] / tokens:.2f} bytes each;"
        f" {counts['ids_never_met']:,} of {counts['vocab_size']:,} ids are never met"
    )
    frequent = {}
    for token in counts["most_frequent"]:
        frequent[f"{token['id']} {json.dumps(token['text'], ensure_ascii=False)}"] = token["count"]
    print_bars("most frequent tokens", frequent, tokens)
    print_bars("tokens, by the bytes that they stand for", counts["token_bytes"], tokens)
    lengths = {f"{low:,} to {2 * low - 1:,}": n for low, n in counts["document_tokens"].items()}
    print_bars("documents, by their tokens", lengths, sum(lengths.values()))


def print_bars(title, counts, total):
    print(f"\n{title}")
    most = max(counts.values())
    for name, count in counts.items():
        bar = "#" * round(BAR * count / most)
        print(f"{name!s:>24} {count:>14,} {count / total:7.2%} {bar}")


if __name__ == "__main__":
    command(main)

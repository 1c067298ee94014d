"""The seed project's tokenised books and trained models (Languini Kitchen, arXiv 2309.11197), as
they are.

    python tools/import_languini.py data --root data/books --vocab books_16384 \\
        --tokenizer books_16384.model --out OUT
    python tools/import_languini.py checkpoint --file model.pt --preset small \\
        --tokenizer books_16384.model --out OUT

`data` makes a dataset whose token streams are those of the seed project's loader. `checkpoint`
makes consolidated weights, for eval.py and for train.py --init_from; the shape is read from the
weights, all but the size of a head.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, command


def parse_args():
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="data|checkpoint")
    data = commands.add_parser(
        "data", description="Tokenised books to a dataset.", help="tokenised books to a dataset"
    )
    add_options_of_data(data)
    weights = commands.add_parser(
        "checkpoint",
        description="model.pt to consolidated weights.",
        help="model.pt to consolidated weights",
    )
    add_options_of_weights(weights)
    for subparser in (data, weights):
        subparser.add_argument(
            "--tokenizer", required=True, metavar="FILE.model", help="the SentencePiece model"
        )
        subparser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to make")
    return parser.parse_args()


def add_options_of_data(parser):
    parser.add_argument(
        "--root", required=True, metavar="FOLDER", help="where file_list_train.npy and its like are"
    )
    parser.add_argument(
        "--vocab",
        required=True,
        metavar="NAME",
        help="the folder in it with the token files: books_16384",
    )


def add_options_of_weights(parser):
    parser.add_argument(
        "--file", required=True, metavar="model.pt", help="a checkpoint of the seed project's GPT"
    )
    head = parser.add_mutually_exclusive_group(required=True)
    head.add_argument(
        "--head_dim",
        type=int,
        metavar="N",
        help="width of one attention head, which weights do not tell",
    )
    head.add_argument(
        "--preset", help="or the preset that the model is: mini, tiny, small, medium, large, XL"
    )


def main():
    args = parse_args()

    from gpt.data.vocab import Vocab

    vocab = Vocab.load(args.tokenizer)
    if args.command == "data":
        from gpt.convert.languini_books import import_dataset

        import_dataset(args.root, args.vocab, vocab, args.out)
        print(f"wrote {args.out}; use it with --data_root {args.out} --vocab_size {vocab.size}")
        return

    from gpt.checkpoint.manifest import WEIGHTS
    from gpt.convert.languini_weights import import_weights

    shape, step = import_weights(args.file, vocab, args.out, args.head_dim, args.preset)
    weights = Path(args.out) / WEIGHTS
    print(
        f"{weights}: {shape.parameters():,} fp32 parameters after step {step}:"
        f" {shape.n_layers} layers, h_dim {shape.h_dim}, mlp_dim {shape.mlp_dim}, {shape.n_heads} x"
        f" {shape.head_dim} heads, vocabulary {shape.vocab_size:,}, seq_len {shape.seq_len}"
    )
    print(
        f"evaluate it with `python gpt/eval.py --checkpoint_file {weights}"
        f" --data_root DATASET`, go on from it with `train.py --init_from {args.out}`"
    )


if __name__ == "__main__":
    command(main)

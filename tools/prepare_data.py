"""Text files -> tokenizer -> packed dataset.

    python tools/prepare_data.py --sample data/sample
    python tools/prepare_data.py --input books/ --test_every 50 --out data/books
    python tools/prepare_data.py --input books/ --tokenizer books_16384.model --out data/books

Without --test_every each sub-folder of the input becomes the split of its name; `train` must be among them.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, run


def main():
    from gpt import prepare
    from gpt.vocab import Vocab

    parser = Parser(__doc__)
    parser.add_argument("--sample", metavar="OUT", help="build the embedded sample dataset in this folder")
    parser.add_argument("--input", metavar="FOLDER", help="folder of UTF-8 .txt files, one document each")
    parser.add_argument("--out", metavar="FOLDER", help="where the dataset goes; it must not exist yet")
    parser.add_argument("--test_every", type=int, metavar="N", help="hold out every N-th document as the split `test`")
    parser.add_argument("--tokenizer", metavar="FILE.model", help="use this SentencePiece model instead of training one")
    parser.add_argument("--vocab_size", type=int, metavar="N", help="ids of the trained tokenizer (default 16384)")
    args = parser.parse_args()

    if args.sample is not None:
        if any(value is not None for key, value in vars(args).items() if key != "sample"):
            raise UserError("--sample takes no other option: it has its own text and its own vocabulary")
        if os.path.lexists(args.sample):
            raise UserError(f"{args.sample} exists already: remove it first, or name another folder")
        prepare.prepare_sample(args.sample)
        return
    if args.input is None or args.out is None:
        raise UserError("give --input FOLDER and --out FOLDER, or --sample OUT")
    if args.tokenizer is not None and args.vocab_size is not None:
        raise UserError("--vocab_size is for training a tokenizer: leave it out when --tokenizer gives one")
    if os.path.lexists(args.out):
        raise UserError(f"{args.out} exists already: remove it first, or name another folder")
    splits = prepare.splits_of_folder(args.input, args.test_every)
    if args.tokenizer:
        vocab = Vocab.load(args.tokenizer)
    else:
        print(f"training a tokenizer on {len(splits['train'])} documents", flush=True)
        vocab = prepare.train_tokenizer(splits["train"], 16384 if args.vocab_size is None else args.vocab_size)
    provenance = {"source": f"text files, {'every %d-th is test' % args.test_every if args.test_every else 'a folder per split'}",
                  "tokenizer": "given" if args.tokenizer else "trained on the split `train`"}
    prepare.write_dataset(splits, vocab, args.out, provenance)
    print(f"wrote {args.out}; train on it with --data_root {args.out} --vocab_size {vocab.size}")


if __name__ == "__main__":
    run(main)

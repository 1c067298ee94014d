"""Text from a trained model: goes on from a prompt, token by token.

    python tools/sample.py --checkpoint_file runs/24h/export/model.safetensors \\
        --prompt "It was a dark" [--tokens 100]

The prompt is taken for the beginning of a document. Temperature 0 always takes the likeliest token.
Text goes to the standard output, notes on it to the standard error.
"""

import argparse
import codecs
import math
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.checkpoint.weights import file_of_weights
from gpt.config.own_code import add_trust_option


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--checkpoint_file",
        required=True,
        type=file_of_weights,
        help="model.safetensors, with config.yaml and tokenizer.model beside it",
    )
    parser.add_argument("--prompt", default="", help="the document's first words (default: none)")
    parser.add_argument(
        "--tokens",
        type=int,
        default=100,
        help="at most so many (default 100); the end of the document ends it",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="divides the logits (default 1); 0: no chance involved",
    )
    parser.add_argument("--top_k", type=int, help="draw among the k likeliest tokens only")
    parser.add_argument(
        "--top_p",
        type=float,
        help="draw among the likeliest tokens that together reach this probability",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed draws the same text (default 0)"
    )
    add_trust_option(parser)
    parser.add_argument("--device", help="default cuda where there is one, else cpu")
    args = parser.parse_args()
    _require("prompt", args.prompt, _is_utf8(args.prompt), "text in UTF-8")
    _require("tokens", args.tokens, args.tokens >= 1, "a positive number")
    cold_or_warm = 0 <= args.temperature < math.inf
    _require("temperature", args.temperature, cold_or_warm, "0 or a positive number")
    if args.top_k is not None:
        _require("top_k", args.top_k, args.top_k >= 1, "a positive number")
    if args.top_p is not None:
        _require("top_p", args.top_p, 0 < args.top_p <= 1, "a number above 0, at most 1")
    _require("seed", args.seed, 0 <= args.seed < 2**63, "a whole number from 0 on")
    return args


def _require(name: str, value: object, valid: bool, values: str) -> None:
    if not valid:
        raise UserError(f"--{name} {value}", mend=f"give {values}")


def _is_utf8(text: str) -> bool:
    """Bytes of a command line that are not UTF-8 come as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def main() -> None:
    args = parse_args()
    weights = args.checkpoint_file

    from gpt.checkpoint.weights import load_model, open_folder
    from gpt.compute.hardware import usable_device
    from gpt.data.manifests import TOKENIZER
    from gpt.data.vocab import Vocab
    from gpt.generate import context_of, generate

    config = open_folder(weights.parent).config
    vocab = Vocab.load(weights.with_name(TOKENIZER))
    model = load_model(weights, config, weights.parent, args.trust_model_file)
    context = context_of(model.to(usable_device(args.device)))
    prompt = [vocab.eod_id, *vocab.encode(args.prompt).tolist()]
    print(args.prompt, end="", flush=True)
    text = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = generate(
        context,
        prompt,
        args.tokens,
        vocab.eod_id,
        args.temperature,
        args.top_k,
        args.top_p,
        args.seed,
    )
    count = 0
    for token in tokens:
        # a character may come in several tokens
        print(text.decode(vocab.bytes_of(token)), end="", flush=True)
        count += 1
    print(text.decode(b"", final=True), flush=True)
    end = "then the document ends" if count < args.tokens else "--tokens asks for more"
    note(f"{count} tokens after a prompt of {len(prompt)}; {end}")
    if context.cut:
        note(
            f"the model sees {model.config.seq_len} tokens at most; the context went on with its"
            f" latter half {context.cut} time(s)"
        )


def note(text: str) -> None:
    print(f"[{text}]", file=sys.stderr)


if __name__ == "__main__":
    command(main)

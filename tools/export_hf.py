"""Consolidated weights -> a folder that transformers opens as GPT2LMHeadModel, with a tokenizer;
and back.

    python tools/export_hf.py runs/24h/export OUT              from what tools/zero_to_fp32.py made
    python tools/export_hf.py --back OUT CONSOLIDATED          for eval.py and train.py --init_from

Before the folder appears it is opened by transformers, and its logits and token ids are held
against ours.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command

TOLERANCE = 1e-5  # of logits in fp32, relative to the largest of them where that is above 1
TEXTS = [
    (
        "  Two blanks first, and a tab\there.\n\n\tNumbers: 3.14159, 1,000,000 and 0x7F; don't;"
        " re-enter; e.g. “quotes” – dashes — …"
    ),
    "def f(x):\n    return {'a': [x ** 2, \"b\"]}  # code\r\n",
    (
        "Ünïcödé, naïve café; Straße; Ελληνικά; русский текст; עברית; العربية; हिन्दी;"
        " 日本語の文章と中文；한국어. 👩‍👩‍👧 🏳️‍🌈 𝔘𝔫𝔦\u0301 \u00a0\u200b\ufeff."
    ),
    "\x00\x01\x7f a<D>b <pad> <unk> <0x41>",
]  # of which the last holds what looks like a special piece


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "folder", help="consolidated weights, or with --back a GPT2LMHeadModel's folder"
    )
    parser.add_argument("out", help="the folder to make")
    parser.add_argument(
        "--back", action="store_true", help="from transformers' layout to consolidated weights"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="with --back: the tokenizer.model that the model was trained with; default the one in"
        " the folder",
    )
    args = parser.parse_args()
    if args.tokenizer and not args.back:
        raise UserError("--tokenizer goes with --back", mend="leave it out")

    from gpt.files import require_new_folder

    require_new_folder(args.out)
    if args.back:
        back(Path(args.folder), args.out, args.tokenizer)
    else:
        export(Path(args.folder), args.out)


def export(folder, out):
    from gpt.checkpoint.manifest import WEIGHTS
    from gpt.checkpoint.tensor_files import write_tensors
    from gpt.checkpoint.weights import load_model, open_folder
    from gpt.convert import transformers_gpt2, transformers_tokenizer
    from gpt.convert.transformers_package import import_transformers
    from gpt.data.manifests import TOKENIZER
    from gpt.data.vocab import Vocab
    from gpt.files import built_aside

    require_utf8(out)
    checkpoint = open_folder(folder)
    transformers_gpt2.require_gpt(folder, checkpoint.config)
    shape = checkpoint.shape
    transformers_gpt2.require_gpt2_shape(shape)
    transformers = import_transformers()
    vocab = Vocab.load(folder / TOKENIZER)
    ours = load_model(folder / WEIGHTS, checkpoint.config, folder)
    transformers_gpt2.require_gpt2_names(shape)
    with built_aside(out) as building:
        last_n = (checkpoint.config["run"].get("gpt") or {}).get("last_n")
        arguments = transformers_gpt2.config_of(shape, vocab, checkpoint.step, last_n)
        config = transformers.GPT2Config(**arguments)
        config.save_pretrained(building)
        transformers.GenerationConfig.from_model_config(config).save_pretrained(building)
        weights = transformers_gpt2.to_gpt2(ours.state_dict(), shape)
        write_tensors(building / transformers_gpt2.WEIGHTS, weights, {"format": "pt"})
        transformers_gpt2.write_run(building, checkpoint.config)
        (building / TOKENIZER).write_bytes(vocab.model)
        transformers_tokenizer.save_tokenizer(vocab, shape.seq_len, building)
        difference = compare_logits(building, ours, vocab, transformers)
        wrong_on = compare_ids(building, vocab, transformers)
        if wrong_on:
            transformers_tokenizer.save_without_tokenizer(vocab, building)
    print(
        f"{out}: GPT2LMHeadModel, {shape.parameters():,} parameters after step {checkpoint.step};"
        f" logits within {difference:.1e} of ours (fp32)"
    )
    if wrong_on:
        print(
            "NOTE: no tokenizer for transformers: its byte-pair encoding gives other ids than"
            f" SentencePiece, first on {wrong_on!r}; encode with the package sentencepiece and"
            f" {Path(out) / transformers_tokenizer.VOCABULARY}"
        )
    else:
        print(
            "tokenizer: PreTrainedTokenizerFast, ids equal to SentencePiece's on every piece and"
            " all texts tried"
        )


def require_utf8(out):
    """Raise UserError where transformers could not open the folder, by its name."""
    try:
        os.path.abspath(out).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{out} has a name that is not UTF-8, and transformers opens no such folder",
            mend="name another one",
        ) from error


def compare_logits(folder, ours, vocab, transformers) -> float:
    """Largest difference of logits over two windows, of text and of random ids, relative as
    TOLERANCE is.

    Raises UserError where it is larger than that, and than what rounding explains: weights can be
    such that fp32 carries fewer digits, which shows in our own logits' distance from those in
    float64. Leaves `ours` in float64 then.
    """
    import torch

    length = ours.config.seq_len
    text = vocab.encode(" ".join(TEXTS[:3]) * (1 + length // 100))[:length]
    random = torch.randint(vocab.size, (length,), generator=torch.Generator().manual_seed(0))
    rows = [torch.from_numpy(text).long()[None], random[None]]
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()

    with torch.no_grad():
        expected = [ours(row) for row in rows]
        logits = [model(row).logits for row in rows]
        worst = largest_difference(logits, expected)
        rounding = 0.0
        if not worst <= TOLERANCE:
            exact = [ours.double()(row) for row in rows]
            rounding = largest_difference(expected, exact)
    if not worst <= max(TOLERANCE, 4 * rounding):
        raise UserError(
            f"nothing was written: the exported model's logits are off by {worst:.1e}, more than"
            f" {TOLERANCE:g}; either gpt/model.py was changed, and transformers' GPT-2 computes the"
            f" baseline's model only, or transformers {transformers.__version__} computes GPT-2"
            " otherwise than expected"
        )
    if rounding:
        print(f"NOTE: with these weights fp32 itself is off by {rounding:.1e} of the largest logit")
    return worst


def largest_difference(logits, expected) -> float:
    """Over pairs of tensors, relative to the largest logit expected where that is above 1."""
    import torch

    differences = []
    for actual, reference in zip(logits, expected):
        scale = reference.abs().max().clamp(min=1)
        differences.append((actual - reference).abs().max() / scale)
    return float(torch.stack(differences).max())


def compare_ids(folder, vocab, transformers) -> str | None:
    """The first text of which transformers' tokenizer gives other ids than SentencePiece; None if
    all are equal."""
    from pydoc_data.topics import topics

    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    every_piece = (pieces.decode([i]) for i in range(vocab.size))
    for text in (*TEXTS, *topics.values(), *every_piece):
        if tokenizer.encode(text, add_special_tokens=False) != pieces.encode(text):
            return text[:80]
    return None


def back(folder, out, tokenizer=None):
    from gpt.checkpoint.manifest import WEIGHTS
    from gpt.checkpoint.weights import write_folder
    from gpt.convert import transformers_gpt2, transformers_tokenizer
    from gpt.data.vocab import Vocab
    from gpt.files import hash_file

    imported = transformers_gpt2.from_gpt2(folder)
    file = tokenizer or transformers_tokenizer.find_vocabulary(folder)
    vocab = Vocab.load(file)
    transformers_tokenizer.require_vocabulary(
        file, vocab, imported.shape.vocab_size, imported.tokenizer
    )
    sha256 = hash_file(folder / transformers_gpt2.WEIGHTS)["sha256"]
    config = transformers_gpt2.run_config_of(folder, imported, vocab, sha256)
    made_from = {"folder": folder.name, "sha256": sha256}
    write_folder(out, imported.weights, config, vocab.model, made_from)
    print(
        f"{Path(out) / WEIGHTS}: {imported.shape.parameters():,} fp32 parameters after step"
        f" {imported.step}"
    )


if __name__ == "__main__":
    command(main)

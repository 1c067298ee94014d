"""Small tokenizers, and texts that are hard to encode."""

import io

import sentencepiece

from gpt.prepare.vocab_training import TOKENIZER_OPTIONS

BLANK = "\u2581"
SENTENCES = [f"the quick brown fox number {i} jumps over the lazy dogs." for i in range(300)]
NASTY = {
    "literal end of document": "a<D>b",
    "only the literal": "<D>",
    "literals in a row": "<D><D>",
    "nested literals": "<D><D>>",
    "literal in a literal": "<<D>D>",
    "literals over lines": "<D>\n<D\n><D>\n",
    "blank character": f"a {BLANK} b{BLANK}{BLANK}",
    "blank character beside a literal": f"{BLANK}<D>{BLANK}",
    "NUL": "a\0b\0",
    "lone CR": "a\rb\r",
    "other line ends": "a\u2028b\u0085c\x0bd\x0c",
    "emoji": "😀 👩\u200d👩\u200d👧 🇩🇪",
    "Chinese": "中文没有空格。\n第二行",
    "combining": "e\u0301 \u00e9",
    "pieces spelled out": "<unk><pad></s><s><0x41><0x0A>",
    "special characters": "\ufeff \ufffd \u2047 \U0010ffff \ue000 \x7f \u00a0",
    "outer blanks": "  a  ",
    "only blanks": " " * 1000,
    "only newlines": "\n\n\n\n",
    "one newline": "\n",
    "blank lines": "a\n\n\nb\n \n\tc",
    "no newline at the end": "first line\nsecond line",
    "a very long line": "the quick <brown> fox " * 5000 + "\nshort",
    "a very long word": "x" * 50_000,
}
ALPHABET = [
    "<D>",
    "<D",
    "<",
    "D",
    ">",
    BLANK,
    "\0",
    "\r",
    "\n",
    "\n\n",
    "\r\n",
    " ",
    "  ",
    "\t",
    "the ",
    "fox",
    ".\n",
    "1",
    "é",
    "e\u0301",
    "😀",
    "中",
    "\ufeff",
    "\ufffd",
    "<0x0A>",
    "<unk>",
    "<pad>",
    "\u2028",
    "\U0010ffff",
]


def train(sentences=SENTENCES, vocab_size=320, **options):
    """A SentencePiece model as bytes, with the options of the trainer's own tokenizers unless told
    otherwise."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        minloglevel=2,
        **{**TOKENIZER_OPTIONS, **options},
    )
    return model.getvalue()

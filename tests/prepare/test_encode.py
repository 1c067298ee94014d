"""The fast encoder against SentencePiece on whole texts: the same ids, for any text, in any blocks,
with any vocabulary."""

import itertools
import random

import numpy as np
import pytest
from small_tokenizers import ALPHABET, BLANK, NASTY, SENTENCES, train

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare import encode
from gpt.prepare.documents import documents
from gpt.prepare.encode import Encoder, Lossy
from gpt.prepare.sample import sample_inputs
from gpt.prepare.texts import Reading

WHITE = ["the end.\n\nA new one\t\there  and there\n" * 3] * 60
VOCABULARIES = {
    "words": (dict(), "words", None),
    "ends as pieces": (dict(user_defined_symbols=["<D>", "\n\n", ".\n", "x\ny"]), "words", None),
    "blanks within pieces": (
        dict(user_defined_symbols=["<D>", "the quick"]),
        "lines",
        "over the ends of words",
    ),
    "neither": (
        dict(user_defined_symbols=["<D>", "the quick", ".\n"]),
        "whole documents",
        "over the ends of words and of lines",
    ),
    "learned over blanks": (
        dict(split_by_whitespace=False, vocab_size=420),
        "whole documents",
        "of lines",
    ),
    "suffix": (dict(treat_whitespace_as_suffix=True), "lines", "over the ends of words"),
    "ends by eos": (dict(user_defined_symbols="", eos_id=2), "words", None),
    "unigram": (
        dict(model_type="unigram", hard_vocab_limit=False),
        "whole documents",
        "it is a unigram model, not BPE",
    ),
}


@pytest.fixture(scope="module")
def encoders():
    return {
        name: Encoder(Vocab(train(SENTENCES + WHITE, **options)))
        for name, (options, _, _) in VOCABULARIES.items()
    }


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(encode, "CHUNK", 40)
    monkeypatch.setattr(encode, "MOST_WORDS", 50)


def whole(encoder, text):
    return encoder.vocab.encode(text).tolist()


def fast(encoder, blocks):
    stored = b"".join(encoder.encode(chunk) for chunk in encoder.chunks(blocks))
    return np.frombuffer(stored, encoder.dtype).tolist()


def random_blocks(rng, text):
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_units_are_those_that_the_vocabulary_allows(encoders, name):
    _, unit, reason = VOCABULARIES[name]
    assert encoders[name].unit == unit
    assert reason is None and encoders[name].reason is None or reason in encoders[name].reason


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_the_whole_text(encoders, name, small_chunks):
    rng, encoder = random.Random(name), encoders[name]
    pieces = [piece for piece in encoder.vocab._bytes if piece.isascii()]
    alphabet = [
        *ALPHABET,
        "the quick",
        "x\ny",
        *(piece.decode() for piece in rng.sample(pieces, 40)),
    ]
    for text in NASTY.values():
        text = text[:3000]
        assert fast(encoder, random_blocks(rng, text)) == whole(encoder, text), repr(text[:80])
    for _ in range(400):
        kind = rng.randrange(3)
        text = "".join(
            rng.choices(alphabet, k=rng.randrange(60))
            if kind
            else [chr(c) for c in rng.choices(range(0xD800), k=rng.randrange(60))]
        )
        assert fast(encoder, random_blocks(rng, text)) == whole(encoder, text), repr(text)
        if BLANK not in text and "<D>" not in text:
            assert whole(encoder, text) == encoder.vocab._sp.encode(text)


def test_ids_of_real_text_are_those_of_the_whole_text(sample):
    vocab = Vocab.load(sample / "tokenizer.model")
    encoder = Encoder(vocab)
    entries = [entry for entry in sample_inputs() if entry.split != "train"]
    assert len(entries) > 30 and encoder.unit == "words"
    for entry in entries:
        (document,) = documents(entry, Reading())
        assert fast(encoder, document.blocks()) == vocab._sp.encode(document.read())


def test_chunks_are_bounded_and_lose_nothing(encoders, monkeypatch):
    monkeypatch.setattr(encode, "CHUNK", 1000)
    text = "the quick brown fox jumps\n" * 2000
    for name in ("words", "neither"):
        chunks = list(encoders[name].chunks(text[i : i + 300] for i in range(0, len(text), 300)))
        assert "".join(chunks) == text and max(map(len, chunks)) < 1300


@pytest.mark.parametrize(
    "name, reason",
    [("words", "the run that begins 'oooooo"), ("unigram", "it is a unigram model, not BPE")],
)
def test_a_run_without_a_harmless_cut_is_refused_before_it_fills_the_memory(
    monkeypatch, name, reason
):
    options = dict(model_type="unigram", hard_vocab_limit=False) if name == "unigram" else {}
    encoder = Encoder(Vocab(train(["oooooooo"] * 50 + SENTENCES, **options)))
    monkeypatch.setattr(encode, "CHUNK", 100)
    monkeypatch.setattr(encode, "LONGEST_RUN", 1000)
    assert fast(encoder, ["o" * 950]) == whole(encoder, "o" * 950)
    with pytest.raises(
        UserError, match=f"more than 1,000 characters would have to be encoded at once .{reason}"
    ):
        list(encoder.chunks("o" * 100 for _ in range(11)))


def test_a_lossy_vocabulary_is_noticed():
    encoder = Encoder(Vocab(train(byte_fallback=False, hard_vocab_limit=False)))
    assert encoder.unit == "whole documents"
    encoder.encode("the fox")
    with pytest.raises(Lossy):
        encoder.encode("the 狐")

"""The sample dataset's vocabulary, as fixtures."""

import pytest
import sentencepiece

from gpt.data.vocab import Vocab


@pytest.fixture(scope="module")
def vocab(sample):
    return Vocab.load(sample / "tokenizer.model")


@pytest.fixture(scope="module")
def pieces(vocab):
    """The same, as SentencePiece knows it."""
    return sentencepiece.SentencePieceProcessor(model_proto=vocab.model)

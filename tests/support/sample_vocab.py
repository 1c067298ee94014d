"""The sample dataset's vocabulary, as a fixture."""

import pytest

from gpt.data.vocab import Vocab


@pytest.fixture(scope="module")
def vocab(sample):
    """The sample dataset's."""
    return Vocab.load(sample / "tokenizer.model")

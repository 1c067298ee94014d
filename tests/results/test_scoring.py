"""Figures that a model cannot have, and documents that a tokenizer does not stand for."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gpt.data.datasets import Dataset, Split
from gpt.errors import UserError
from gpt.kernels.linear_cross_entropy import TokenScores
from gpt.results import scoring

FACTS = {"split": "test", "dataset": "data/books"}
HASHES = ("ab" * 16, "cd" * 16)


def target_of(sizes):
    """Two documents of two and three tokens, whose ends are the id 0; every other id is a byte."""
    stream = SimpleNamespace(tokens=np.array([1, 0, 2, 3, 0]), check_ids=lambda ids: None)
    vocab = SimpleNamespace(
        byte_lengths=np.array([0, 1, 1, 1]), eod_id=0, decode=lambda ids: "x" * len(ids)
    )
    documents = scoring.Documents(np.array([2, 3]), np.array(sizes), HASHES)
    return scoring.Target(FACTS, stream, vocab, documents)


def evaluate(sizes, nats):
    def score(tokens, targets, scored):
        ids = targets[scored]
        return TokenScores(torch.where(ids == 0, nats / 2, nats), ids)

    weights = {"checkpoint": "w", "step": 7}
    return scoring.evaluate(score, target_of(sizes), weights, (4, 2), "cpu")


def test_sums_of_documents_stand_beside_the_result():
    result, documents = evaluate([1, 2], nats=1.0)
    assert (result["total_loss"], result["tokens"], result["bytes"]) == (4.0, 5, 3)
    assert documents.hashes == HASHES and documents.nats.tolist() == [1.5, 2.5]
    assert documents.text_nats.tolist() == [1.0, 2.0] and documents.bytes.tolist() == [1, 2]


def test_documents_of_other_bytes_than_their_tokens_stand_for():
    with pytest.raises(UserError) as error:
        evaluate([1, 1234], nats=1.0)
    assert str(error.value) == (
        "document 2 of 'test' in data/books has 1,234 bytes, and the tokenizer's tokens of it"
        " stand for 2: prepare the text again: figures per byte would be wrong"
    )


def test_a_model_that_is_sure_of_everything_is_not_believed():
    with pytest.raises(UserError) as error:
        evaluate([1, 2], nats=0.0)
    assert str(error.value) == (
        "w: what it scores on 'test' cannot be true: total_loss is 0 over 5 tokens, and no text is"
        " that sure: look at the logits that the model makes"
    )


def test_a_model_that_has_diverged_has_sums_without_numbers():
    result, documents = evaluate([1, 2], nats=float("nan"))
    assert np.isnan(documents.nats).all() and result["tokens"] == 5


def test_a_dataset_without_hashes_has_those_of_its_texts(sample, monkeypatch):
    """One of before format 3."""
    expected = scoring.of_split(Dataset(sample), "test", per_document=True).documents
    monkeypatch.setattr(Split, "doc_hashes", None)
    documents = scoring.of_split(Dataset(sample), "test", per_document=True).documents
    assert len(set(documents.hashes)) == len(documents.bytes) > 1
    assert documents.hashes == expected.hashes

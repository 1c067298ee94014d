"""Figures of evaluations held against their sums."""

import json
import math

import pytest

from gpt.metrics.events import finite
from gpt.quantities import contradiction, quantities

# 3 nats on 2 tokens, of which one carries 4 bytes and 2 nats
FIGURES = {
    "of_tokens": 2,
    "total_loss": 3.0,
    "tokens": 2,
    "text_nats": 2.0,
    "text_tokens": 1,
    "bytes": 4,
    "loss": 1.5,
    "ppl": 4.4816890703380645,
    "normalised_loss": 0.5,
    "normalised_ppl": 1.6487212707001282,
    "bits_per_byte": 0.7213475204444817,
}


def test_figures_follow_from_their_sums():
    assert quantities(3.0, 2, 2.0, 1, 4) == pytest.approx(
        {name: value for name, value in FIGURES.items() if name != "of_tokens"}, rel=1e-15
    )
    assert contradiction({**FIGURES, "split": "test", "top1": 0.5}) is None
    assert contradiction(json.loads(json.dumps(quantities(31.7, 9, 29.1, 8, 23)))) is None


@pytest.mark.parametrize("sums", [(0.0, 0, 0.0, 0, 0), (9e5, 2, 9e5, 2, 1), (2.0, 1, 0.0, 0, 0)])
def test_what_json_has_no_number_for_is_no_contradiction(sums):
    figures = quantities(*sums)
    assert contradiction(figures) is None and contradiction(finite(figures)) is None


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"normalised_ppl": 1.5}, "normalised_ppl is 1.5, and its sums make it 1.648721271"),
        ({"loss": 1.5 * (1 + 2e-9)}, "loss is 1.500000003, and its sums make it 1.5"),
        ({"bits_per_byte": None}, "bits_per_byte is None, and its sums make it 0.7213475204"),
        ({"ppl": math.inf}, "ppl is inf, and its sums make it 4.48168907"),
        ({"normalised_loss": "0.5"}, "normalised_loss is 0.5, and its sums make it 0.5"),
        ({"text_nats": None}, "text_nats is None, not a number"),
        ({"tokens": True}, "tokens is True, not a number"),
        ({"text_tokens": 3}, "text_tokens is 3, more than tokens (2)"),
        ({"text_tokens": 1.0}, "text_tokens is 1.0, not a whole number"),
        ({"total_loss": -3.0}, "total_loss is -3, below 0"),
        ({"text_nats": 3.5}, "text_nats is 3.5, more than total_loss (3)"),
        ({"of_tokens": 1}, "tokens is 2, more than of_tokens (1)"),
        ({"bytes": 10**400}, f"bytes is {10**400}, not a number"),
        ({"bytes": 5}, "normalised_loss is 0.5, and its sums make it 0.4"),
        (
            {"total_loss": 0.0, "text_nats": 0},
            "total_loss is 0 over 2 tokens, and no text is that sure",
        ),
        ({"text_nats": 0.0}, "text_nats is 0 over 1 text_tokens, and no text is that sure"),
        ({"tokens": 0, "text_tokens": 0}, "loss is 1.5, and its sums make it nan"),
    ],
)
def test_the_first_figure_that_contradicts_its_sums(change, sentence):
    assert contradiction({**FIGURES, **change}) == sentence


def test_figures_of_nothing_but_certainty_are_not_believed():
    """Each follows from the sums, which no model's are."""
    for figures in (quantities(0.0, 9, 0.0, 8, 23), quantities(4.0, 9, 0.0, 8, 23)):
        for is_whole in ({"of_tokens": 9}, {}):
            assert "and no text is that sure" in contradiction({**figures, **is_whole})
    # of a version that told no sums
    assert contradiction({"loss": 0.0, "ppl": 1.0}) == "loss is 0, and no text is that sure"


def test_a_sum_that_is_not_there_is_named():
    del (figures := dict(FIGURES))["text_tokens"]
    assert contradiction(figures) == "text_tokens is None, not a number"
    # an earlier version did not tell it, nor of_tokens
    del figures["of_tokens"]
    assert contradiction(figures) is None

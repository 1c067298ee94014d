"""Intervals over documents, against scipy's bootstrap, closed forms, and simulated documents of
which the truth is known."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from gpt.errors import UserError
from gpt.results import bootstrap
from gpt.results.bootstrap import over_documents
from gpt.results.document_sums import DocumentSums


def sums(nats, sizes):
    """Of documents of so many bytes."""
    sizes = np.asarray(sizes, np.int64)
    nats = np.asarray(nats, np.float64)
    hashes = tuple(f"{place:064x}" for place in range(len(sizes)))
    return DocumentSums(hashes, nats + 1.0, sizes + 1, nats, sizes, sizes)


def books(rng, count, mean=-0.003, scatter=0.01):
    """A contender's and a baseline's sums: documents of very unequal length and difficulty, the
    difference in nats per byte normal about the mean."""
    sizes = rng.lognormal(8, 0.8, count).astype(int) + 1
    baseline = sizes * rng.normal(0.8, 0.2, count)
    contender = baseline + sizes * rng.normal(mean, scatter, count)
    return sums(contender, sizes), sums(baseline, sizes)


def test_the_difference_is_a_ratio_of_sums_over_the_mean_of_seeds():
    contender = [sums([10, 30, 50], [10, 20, 70]), sums([12, 34, 50], [10, 20, 70])]
    baseline = [sums([12, 30, 60], [10, 20, 70])]
    interval = over_documents(contender, baseline)
    # 11 + 32 + 50 nats against 102, over 100 bytes; two documents of three are better
    assert interval.value == pytest.approx(-0.09)
    assert interval.better == pytest.approx(2 / 3) and interval.documents == 3


def test_three_documents_tell_no_more_than_their_extremes():
    # t of two degrees of freedom, times sqrt(3/2), is 5.27 standard deviations: beyond all draws
    interval = over_documents([sums([9, 20, 77], [10, 20, 70])], [sums([10, 20, 70], [10, 20, 70])])
    assert (interval.low, interval.high) == pytest.approx((-0.1, 0.1))


def test_the_interval_is_scipys():
    count = 200
    contender, baseline = books(np.random.default_rng(0), count)
    interval = over_documents([contender], [baseline])
    farther = math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1)

    def ratio(ours, theirs, sizes, axis):
        return (ours - theirs).sum(axis) / sizes.sum(axis)

    expected = stats.bootstrap(
        (contender.text_nats, baseline.text_nats, baseline.bytes),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=2 * stats.norm.cdf(farther) - 1,
        batch=1000,
        rng=np.random.default_rng(1),
    )
    width = interval.high - interval.low
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.05 * width)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.05 * width)


@pytest.mark.parametrize("count", [500, 25_000])
def test_the_interval_of_many_documents_is_that_of_the_delta_method(count):
    # the variance of a ratio of sums (Cochran, Sampling Techniques, 1977, section 6.3)
    contender, baseline = books(np.random.default_rng(0), count)
    interval = over_documents([contender], [baseline], resamples=4000)
    residuals = contender.text_nats - baseline.text_nats - interval.value * baseline.bytes
    half_width = 1.96 * math.sqrt(np.sum(residuals**2)) / baseline.bytes.sum()
    assert interval.high - interval.value == pytest.approx(half_width, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half_width, rel=0.1)


@pytest.mark.parametrize("count, simulations", [(8, 400), (50, 200)])
def test_intervals_over_documents_hold_the_truth(count, simulations):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(simulations):
        contender, baseline = books(rng, count)
        interval = over_documents([contender], [baseline], resamples=1000)
        hits += interval.low <= -0.003 <= interval.high
    assert 0.91 <= hits / simulations <= 0.98  # plain percentiles of 8 documents: 0.87


def test_what_makes_documents_hard_for_both_falls_out():
    sizes = np.array([100, 10_000, 1_000, 50])
    baseline = sizes * np.array([0.2, 1.5, 0.7, 3.0])
    interval = over_documents([sums(baseline - 0.01 * sizes, sizes)], [sums(baseline, sizes)])
    assert (interval.low, interval.value, interval.high) == pytest.approx((-0.01, -0.01, -0.01))


def test_the_same_model_under_another_name_differs_by_nothing():
    contender, _ = books(np.random.default_rng(0), 20)
    interval = over_documents([contender], [contender])
    assert (interval.low, interval.value, interval.high, interval.better) == (0, 0, 0, 0.5)


def test_the_interval_is_the_same_however_many_documents_are_held_at_once(monkeypatch):
    contender, baseline = books(np.random.default_rng(0), 30)
    interval = over_documents([contender], [baseline])
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 1000)
    assert over_documents([contender], [baseline]) == interval
    assert over_documents([contender], [baseline], seed=1) != interval


def test_many_documents_need_little_memory():
    contender, baseline = books(np.random.default_rng(0), 5000)
    tracemalloc.start()
    over_documents([contender], [baseline], resamples=2000)  # 80 MB of indices
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_documents_without_text_change_nothing():
    with_empty = over_documents(
        [sums([9, 0, 21, 0], [10, 0, 20, 0])], [sums([9] * 4, [10, 0, 20, 0])]
    )
    assert with_empty == over_documents([sums([9, 21], [10, 20])], [sums([9, 9], [10, 20])])


def test_what_cannot_be_told():
    alone = over_documents([sums([9], [10])], [sums([10], [10])])
    assert alone.value == pytest.approx(-0.1) and alone.documents == 1
    diverged = over_documents([sums([9, math.nan], [10, 10])], [sums([10, 10], [10, 10])])
    no_text = over_documents([sums([0], [0])], [sums([0], [0])])
    assert math.isnan(diverged.value) and math.isnan(no_text.value) and no_text.documents == 0
    for interval in (alone, diverged, no_text):
        assert math.isnan(interval.low) and math.isnan(interval.high)


OTHER_HASH = "f" * 64
OTHERS = [
    (
        sums([1, 2], [10, 20]),
        "sums of different documents cannot be compared: 3 in one evaluation and 2 in another:"
        " evaluate all runs with --per_document on the same split of the same dataset",
    ),
    (
        dataclasses.replace(
            sums([1, 2, 3], [10, 20, 30]), hashes=("0" * 64, OTHER_HASH, f"{2:064x}")
        ),
        "sums of different documents cannot be compared: document 1 is 000000000000… in one"
        " evaluation and ffffffffffff… in another:"
        " evaluate all runs with --per_document on the same split of the same dataset",
    ),
    (
        sums([1, 2, 3], [10, 20, 3100]),
        "document 2 (000000000000…) has 30 bytes in one evaluation and 3,100 in another:"
        " evaluate all runs again: bytes are those of the text, whatever model scores it",
    ),
]


@pytest.mark.parametrize("other, sentence", OTHERS, ids=["count", "hash", "bytes"])
@pytest.mark.parametrize("among_seeds", [False, True])
def test_sums_of_other_documents_are_refused(other, sentence, among_seeds):
    own = sums([1, 2, 3], [10, 20, 30])
    contender = [own, other] if among_seeds else [own]
    baseline = [own] if among_seeds else [other]
    with pytest.raises(UserError) as refusal:
        over_documents(contender, baseline)
    assert str(refusal.value) == sentence

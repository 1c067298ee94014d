"""Intervals, tests and equivalence of few runs, against closed forms, scipy's own tests, and
simulated seeds of which the truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from gpt.results.intervals import holm, mean, paired, welch
from gpt.results.power import power_of

# five public seeds of the Languini 6h baseline scatter by this much, in nats per token
DEVIATION = 0.0053
LOSS = 3.08
SIMULATIONS = 5000
SAMPLES = [
    ([2.9, 3.1, 3.0, 3.3], [2.5, 2.52, 2.49]),
    ([3.081, 3.079], [3.085, 3.0841]),
    ([3.0801, 3.0799, 3.0812, 3.0775, 3.079], [3.0803, 3.0803, 3.0802]),
]


def seeds(rng, count, deviation=DEVIATION, shift=0.0):
    return rng.normal(LOSS + shift, deviation, count).tolist()


def within(share, expected, simulations=SIMULATIONS):
    """Whether simulations may show such a share, up to 3 standard deviations."""
    return abs(share - expected) <= 3 * math.sqrt(expected * (1 - expected) / simulations)


def test_the_mean_of_three_has_the_interval_of_the_tables():
    # s = 0.01, t of two degrees of freedom is 4.303: 4.303 * 0.01 / sqrt(3)
    estimate = mean([1.01, 1.02, 1.03])
    assert estimate.value == pytest.approx(1.02)
    assert estimate.half_width == pytest.approx(0.02484, abs=1e-5)
    assert estimate.in_words(3) == "1.020 ± 0.025"


def test_welchs_difference_by_hand():
    # variances 1 and 20/3, of the means 1/3 and 5/3
    difference = welch([1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0])
    assert difference.value == -3
    assert difference.error == pytest.approx(math.sqrt(2))
    assert difference.freedom == pytest.approx(216 / 53)


def test_a_paired_difference_by_hand():
    # differences 1, 2, 3; with two degrees of freedom p = 1 - t / sqrt(t^2 + 2), and t^2 = 12
    difference = paired([4.0, 7.0, 5.0], [3.0, 5.0, 2.0])
    assert (difference.value, difference.freedom) == (2, 2)
    assert difference.error == pytest.approx(1 / math.sqrt(3))
    assert difference.p == pytest.approx(1 - math.sqrt(12 / 14))
    # t of 97.5% with two degrees of freedom, 0.95 / sqrt(2 * 0.975 * 0.025)
    half_width = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert difference.interval() == pytest.approx((2 - half_width, 2 + half_width))


@pytest.mark.parametrize("values, others", SAMPLES)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_welchs_difference_is_scipys(values, others, level):
    difference = welch(values, others)
    expected = stats.ttest_ind(values, others, equal_var=False)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.freedom == pytest.approx(expected.df)
    assert difference.interval(level) == pytest.approx(tuple(expected.confidence_interval(level)))
    low, high = difference.interval()
    assert difference.estimate == pytest.approx(((low + high) / 2, (high - low) / 2))


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_paired_difference_is_scipys(level):
    values, others = [3.081, 3.075, 3.0842, 3.0799], [3.0805, 3.0751, 3.0838, 3.079]
    difference = paired(values, others)
    expected = stats.ttest_rel(values, others)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.interval(level) == pytest.approx(tuple(expected.confidence_interval(level)))


def test_what_seeds_share_falls_out_of_pairs():
    rng = np.random.default_rng(0)
    shared = rng.normal(LOSS, DEVIATION, 5)
    contender = shared - 0.002 + rng.normal(0, DEVIATION / 20, 5)
    assert paired(contender, shared).p < 0.001 and welch(contender, shared).p > 0.1


def test_pairs_need_partners():
    with pytest.raises(ValueError):
        paired([3.0, 3.1, 3.2], [3.0, 3.1])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("margin", [0.002, 0.005, 0.02])
def test_equivalence_is_two_one_sided_tests(margin, sign):
    differences = [sign * value for value in (0.0012, -0.0021, 0.0033, 0.0009)]
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    difference = paired(differences, [0.0] * 4)
    assert difference.p_equivalent(margin) == pytest.approx(max(above, below))
    low, high = difference.interval(0.9)
    assert (difference.p_equivalent(margin) <= 0.05) == (-margin < low and high < margin)


def test_one_run_alone_tells_no_interval():
    assert mean([3.0]).value == 3.0 and math.isnan(mean([3.0]).half_width)
    assert mean([3.0]).in_words() == "3.0000"
    for difference in (welch([3.0], [2.0, 2.1]), welch([3.0], [3.0]), paired([3.0], [3.0])):
        numbers = [difference.p, difference.p_equivalent(0.1), *difference.interval()]
        assert np.isnan(numbers).all() and math.isnan(difference.estimate.half_width)
    assert welch([3.0], [2.0, 2.1]).value == pytest.approx(0.95)


# the rounded mean of such values is none of them, in one way of adding or another
@pytest.mark.parametrize("loss", [3.0, 3.1, 3.3, 3.0876984769644595])
@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_runs_equal_to_the_bit_differ_by_exactly_nothing(loss, count):
    same = [loss] * count
    assert mean(same) == (loss, 0.0)
    for compare in (welch, paired):
        difference = compare(same, same)
        assert (difference.value, difference.error) == (0.0, 0.0)
        assert difference.interval() == (0.0, 0.0) and difference.estimate == (0.0, 0.0)
        assert difference.p == 1 and difference.p_equivalent(0.005) == 0


def test_constant_runs_that_differ_do_so_without_doubt():
    for compare in (welch, paired):
        difference = compare([3.25] * 3, [3.0] * 3)
        assert difference.p == 0 and difference.interval() == (0.25, 0.25)
        assert difference.p_equivalent(0.26) == 0
        assert difference.p_equivalent(0.25) == 1 and difference.p_equivalent(0.1) == 1


def test_a_loss_that_is_no_number_shows_nothing():
    for compare in (welch, paired):
        difference = compare([3.0, math.nan, 3.1], [3.0, 3.2, 3.1])
        assert math.isnan(difference.p) and math.isnan(difference.p_equivalent(0.1))


def test_holms_adjustment_by_hand():
    # 3 * 0.01; 2 * 0.03; 1 * 0.04 is raised to the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03] and holm([]) == []


def test_holm_counts_no_test_that_could_not_be_made():
    first, missing, last = holm([0.01, math.nan, 0.04])
    assert (first, last) == pytest.approx((0.02, 0.04)) and math.isnan(missing)


def test_holm_errs_once_in_twenty_boards():
    rng = np.random.default_rng(0)
    boards = rng.random((SIMULATIONS, 6))
    errors = np.mean([min(holm(p_values.tolist())) <= 0.05 for p_values in boards])
    assert within(errors, 1 - (1 - 0.05 / 6) ** 6)


@pytest.mark.parametrize("contender, baseline", [(1, 1), (1, 4), (0, 1)])
def test_equal_methods_are_rarely_told_apart_by_three_seeds_a_side(contender, baseline):
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(SIMULATIONS):
        values, others = seeds(rng, 3, contender * DEVIATION), seeds(rng, 3, baseline * DEVIATION)
        errors += welch(values, others).p <= 0.05
    assert 0.03 <= errors / SIMULATIONS <= 0.07


def test_equal_methods_are_told_apart_by_pairs_one_time_in_twenty():
    rng = np.random.default_rng(0)
    errors = sum(paired(seeds(rng, 3), seeds(rng, 3)).p <= 0.05 for _ in range(SIMULATIONS))
    assert within(errors / SIMULATIONS, 0.05)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_of_three_seeds_a_side_hold_the_truth(level):
    rng = np.random.default_rng(1)
    hits = dict.fromkeys((welch, paired), 0)
    for _ in range(SIMULATIONS):
        contender, baseline = seeds(rng, 3, shift=-0.02), seeds(rng, 3)
        for compare in hits:
            low, high = compare(contender, baseline).interval(level)
            hits[compare] += low <= -0.02 <= high
    assert within(hits[paired] / SIMULATIONS, level)
    # Welch's are a little too wide where both sides scatter alike: exactly by so much
    assert within(hits[welch] / SIMULATIONS, 1 - 2 * power_of(0.0, DEVIATION, 3, level=level))


@pytest.mark.parametrize("count", [3, 10])
def test_methods_at_the_margin_are_rarely_called_equivalent(count):
    rng = np.random.default_rng(0)
    margin = math.log(1.005)
    equivalent = 0
    for _ in range(SIMULATIONS):
        difference = welch(seeds(rng, count, shift=margin), seeds(rng, count))
        equivalent += difference.p_equivalent(margin) <= 0.05
    assert equivalent / SIMULATIONS <= 0.05 or within(equivalent / SIMULATIONS, 0.05)


def test_the_same_method_is_called_equivalent_with_enough_seeds():
    rng = np.random.default_rng(0)
    margin = math.log(1.005)
    differences = [welch(seeds(rng, 30), seeds(rng, 30)) for _ in range(100)]
    assert sum(difference.p_equivalent(margin) <= 0.05 for difference in differences) > 85

"""What a number of seeds finds, against published tables, and against the tests themselves on
simulated seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from gpt.results.power import (
    power_of,
    power_of_equivalence,
    resolvable,
    seeds_for_equivalence,
    seeds_needed,
)

DEVIATION = 0.0053
SIMULATIONS = 20_000


def share_found(count, difference, paired):
    """Share of simulated comparisons that scipy's test finds at 5%, and with the right sign."""
    rng = np.random.default_rng(0)
    values = rng.normal(difference, 1, (SIMULATIONS, count))
    others = rng.normal(0, 1, (SIMULATIONS, count))
    if paired:
        result = stats.ttest_1samp(values, 0, axis=1)
    else:
        result = stats.ttest_ind(values, others, axis=1, equal_var=False)
    return float(np.mean((result.pvalue <= 0.05) & (result.statistic > 0)))


def shown_equivalent(count, margin, paired):
    """Share of simulated comparisons of one method with itself whose 90% interval, scipy's, lies
    within the margin."""
    rng = np.random.default_rng(0)
    values, others = rng.normal(0, 1, (2, SIMULATIONS, count))
    if paired:
        interval = stats.ttest_1samp(values, 0, axis=1).confidence_interval(0.9)
    else:
        result = stats.ttest_ind(values, others, axis=1, equal_var=False)
        interval = result.confidence_interval(0.9)
    return float(np.mean((-margin < interval.low) & (interval.high < margin)))


def may_be(share, expected):
    """Whether simulations may show such a share, up to 3 standard deviations."""
    return abs(share - expected) <= 3 * math.sqrt(expected * (1 - expected) / SIMULATIONS)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_a_resolvable_difference_is_found_four_times_in_five(count, paired):
    difference = resolvable(1.0, count, paired)
    assert may_be(share_found(count, difference, paired), 0.8)


@pytest.mark.parametrize("power, level", [(0.5, 0.95), (0.95, 0.9)])
def test_other_powers_and_levels(power, level):
    difference = resolvable(1.0, 4, power=power, level=level)
    assert power_of(difference, 1.0, 4, level=level) == pytest.approx(power)
    assert power_of(-difference, 1.0, 4, level=level) == pytest.approx(power)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_difference_of_none_is_found_as_often_as_simulated(count):
    assert may_be(share_found(count, 0.0, paired=False), power_of(0.0, 1.0, count))
    assert power_of(0.0, 1.0, count, paired=True) == pytest.approx(0.025)


# R 4, power.t.test(delta, power = 0.8): n = 393.4, 63.8, 25.5, 16.7; Cohen 1988, table 2.4.1
@pytest.mark.parametrize("difference, seeds", [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_seeds_of_two_sides_as_in_the_tables(difference, seeds):
    assert seeds_needed(difference, 1.0) == seeds


# the same of type = "paired": n = 198.2, 33.4, 14.3, 9.9
@pytest.mark.parametrize("difference, pairs", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_as_in_the_tables(difference, pairs):
    assert seeds_needed(difference, 1.0, paired=True) == pairs


@pytest.mark.parametrize("paired", [False, True])
def test_the_seeds_needed_are_those_that_resolve_it(paired):
    for count in (2, 3, 10):
        difference = resolvable(DEVIATION, count, paired)
        assert seeds_needed(difference * 1.001, DEVIATION, paired) == count
        assert seeds_needed(-difference * 0.999, DEVIATION, paired) == count + 1


def test_what_the_public_seeds_of_6h_resolve():
    perplexities = [21.930, 21.986, 21.726, 21.995, 21.997]  # Languini test split
    deviation = float(np.std(np.log(perplexities), ddof=1))
    assert deviation == pytest.approx(DEVIATION, abs=5e-5)
    differences = [resolvable(deviation, count) for count in (2, 3, 5, 10)]
    assert [round(difference, 4) for difference in differences] == [0.0549, 0.0185, 0.0110, 0.0070]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("count, margin", [(2, 5.0), (3, 1.0), (3, 3.0), (10, 1.2), (20, 0.95)])
def test_the_same_method_is_shown_equivalent_as_often_as_simulated(count, margin, paired):
    expected = power_of_equivalence(margin, 1.0, count, paired)
    assert may_be(shown_equivalent(count, margin, paired), expected)


def test_what_equivalence_of_half_a_percent_takes():
    margin = math.log(1.005)
    assert power_of_equivalence(margin, DEVIATION, 3) < 0.05
    assert seeds_for_equivalence(margin, DEVIATION) == 21
    assert seeds_for_equivalence(margin, DEVIATION / 5, paired=True) == 3


def test_nothing_is_shown_by_one_seed():
    assert power_of(1.0, 0.1, 1) == 0 and resolvable(0.1, 1) == math.inf
    assert power_of_equivalence(1.0, 0.1, 1) == 0


def test_seeds_that_do_not_scatter_show_everything():
    assert resolvable(0.0, 3) == 0 and power_of(1e-9, 0.0, 3) == 1 and power_of(0.0, 0.0, 3) == 0
    assert seeds_needed(1e-9, 0.0) == 2 and seeds_for_equivalence(1e-9, 0.0) == 2


def test_a_difference_far_beyond_the_scatter_is_seen():
    for paired in (False, True):
        assert power_of(1.0, 1e-12, 1000, paired) == 1.0
        assert seeds_needed(1.0, 1e-12, paired) == 2


def test_what_cannot_be_told():
    assert math.isnan(resolvable(math.nan, 3)) and math.isnan(power_of(0.1, math.nan, 3))
    assert seeds_needed(0.1, math.nan) is None and seeds_for_equivalence(0.1, math.nan) is None
    assert seeds_needed(0.0, 0.1) is None and seeds_needed(1e-6, 0.1) is None
    assert seeds_for_equivalence(1e-6, 0.1) is None

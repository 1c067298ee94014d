"""Intervals of means and differences, against tables and scipy's own tests."""

import math

import pytest
from scipy import stats

from gpt.results.intervals import mean, welch


def test_the_mean_of_three_has_the_interval_of_the_tables():
    # s = 0.01, t of two degrees of freedom is 4.303: 4.303 * 0.01 / sqrt(3)
    estimate = mean([1.01, 1.02, 1.03])
    assert estimate.value == pytest.approx(1.02)
    assert estimate.half_width == pytest.approx(0.02484, abs=1e-5)
    assert estimate.in_words(3) == "1.020 ± 0.025"


def test_differences_are_welchs():
    values, others = [2.9, 3.1, 3.0, 3.3], [2.5, 2.52, 2.49]
    estimate = welch(values, others).estimate
    expected = stats.ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    assert estimate.value - estimate.half_width == pytest.approx(expected.low)
    assert estimate.value + estimate.half_width == pytest.approx(expected.high)


def test_one_run_alone_has_no_interval():
    assert mean([3.0]).value == 3.0 and math.isnan(mean([3.0]).half_width)
    assert mean([3.0]).in_words() == "3.0000"
    assert math.isnan(welch([3.0], [2.0, 2.1]).estimate.half_width)


def test_equal_runs_differ_by_nothing():
    assert welch([3.0, 3.0], [3.0, 3.0]).estimate == (0.0, 0.0)

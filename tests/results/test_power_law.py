"""Power laws found again in points made from them."""

import numpy as np
import pytest
from scipy import stats

from gpt.errors import UserError
from gpt.results import power_law

HOURS = np.array([6.0, 12, 24, 48, 96])


def law(compute, amplitude, exponent, offset=0.0):
    return offset + amplitude * np.asarray(compute) ** -exponent


def noisy(rng, loss, relative):
    return loss * np.exp(rng.normal(0, relative, np.shape(loss)))


@pytest.mark.parametrize("unit", [1.0, 1e15, 1e-4])  # hours, FLOPs, the hours of tests
def test_a_plain_law_is_found_again(unit):
    found = power_law.fit(HOURS * unit, law(HOURS, 1.7, 0.083))
    assert found.offset == 0 and found.exponent == pytest.approx(0.083, rel=1e-9)
    assert found.loss_at(600.0 * unit) == pytest.approx(law(600.0, 1.7, 0.083), rel=1e-9)


@pytest.mark.parametrize("unit", [1.0, 1e15, 1e-4])
def test_a_law_with_an_offset_is_found_again(unit):
    found = power_law.fit(HOURS * unit, law(HOURS, 1.7, 0.45, 0.6))
    assert (found.offset, found.exponent) == (
        pytest.approx(0.6, rel=1e-5),
        pytest.approx(0.45, rel=1e-5),
    )
    assert found.loss_at(600.0 * unit) == pytest.approx(law(600.0, 1.7, 0.45, 0.6), rel=1e-6)
    assert found.offset_p < 1e-6 and found.freedom == 2


def test_three_scales_never_carry_an_offset():
    found = power_law.fit(HOURS[:3], law(HOURS[:3], 1.7, 0.45, 0.6))
    assert found.offset == 0 and found.offset_p is None


def test_uncertainty_of_a_plain_law_is_that_of_linear_regression():
    rng = np.random.default_rng(1)
    loss = noisy(rng, law(HOURS[:3].repeat(3), 1.7, 0.08), 0.01)
    found = power_law.fit(HOURS[:3].repeat(3), loss)
    by_scipy = stats.linregress(np.log(HOURS[:3].repeat(3)), np.log(loss))
    t = stats.t.ppf(0.975, 7)
    assert found.exponent == pytest.approx(-by_scipy.slope, rel=1e-12)
    assert found.half_widths()[1] == pytest.approx(t * by_scipy.stderr, rel=1e-9)
    low, high = found.band(1.0)  # log C = 0: the band there is that of the intercept
    middle = np.exp(by_scipy.intercept)
    assert low[0] == pytest.approx(middle * np.exp(-t * by_scipy.intercept_stderr), rel=1e-9)
    assert high[0] == pytest.approx(middle * np.exp(t * by_scipy.intercept_stderr), rel=1e-9)


def test_bands_hold_the_truth_as_often_as_they_say():
    rng, held = np.random.default_rng(2), 0
    for _ in range(600):
        found = power_law.fit(HOURS[:3], noisy(rng, law(HOURS[:3], 1.7, 0.08), 0.01))
        low, high = found.band(400.0)
        held += low[0] < law(400.0, 1.7, 0.08) < high[0]
    assert 0.95 * 600 == pytest.approx(held, abs=3.3 * np.sqrt(600 * 0.95 * 0.05))


def test_an_offset_is_seldom_taken_where_there_is_none_and_told_rightly_where_there_is():
    rng = np.random.default_rng(3)
    compute = np.geomspace(1, 1000, 8)
    false = [
        power_law.fit(compute, noisy(rng, law(compute, 2, 0.1), 0.01)).offset > 0
        for _ in range(120)
    ]
    assert np.mean(false) < 0.08  # 2.5% of such tests by their level
    fits = [
        power_law.fit(compute, noisy(rng, law(compute, 2, 0.5, 0.7), 0.003)) for _ in range(120)
    ]
    assert all(found.offset > 0 for found in fits)
    for index, values in enumerate(
        [[np.log(f.amplitude) for f in fits], [f.exponent for f in fits], [f.offset for f in fits]]
    ):
        told = np.sqrt(np.mean([found.covariance[index, index] for found in fits]))
        # 120 samples tell a deviation to 6.5%
        assert told == pytest.approx(np.std(values, ddof=1), rel=0.3)


def test_crossings():
    one, other = (
        power_law.fit(HOURS, law(HOURS, *numbers)) for numbers in ((1.7, 0.05), (2.5, 0.12))
    )
    at = (2.5 / 1.7) ** (1 / (0.12 - 0.05))  # where a C^-p = b C^-q
    (found,) = power_law.crossings(one, other)
    assert found.at == pytest.approx(at, rel=1e-9) and not found.measured and at > 200
    assert found.low == pytest.approx(at, rel=0.01) and found.high == pytest.approx(at, rel=0.01)
    (inside,) = power_law.crossings(one, power_law.fit(HOURS, law(HOURS, 1.7 * 24**0.1, 0.15)))
    assert inside.measured and inside.at == pytest.approx(24, rel=1e-6)
    assert power_law.crossings(one, power_law.fit(HOURS, law(HOURS, 1.8, 0.05))) == []
    (bent,) = power_law.crossings(one, power_law.fit(HOURS, law(HOURS, 3.0, 0.6, 1.0)))
    assert law(bent.at, 1.7, 0.05) == pytest.approx(law(bent.at, 3.0, 0.6, 1.0), rel=1e-6)


def test_a_crossing_lies_in_its_interval_as_often_as_it_should():
    rng = np.random.default_rng(4)
    compute = np.geomspace(1, 100, 6)[:3].repeat(2)
    held = 0
    at = (2.0 / 1.7) ** (1 / 0.06)
    for _ in range(150):
        one, other = (
            power_law.fit(compute, noisy(rng, law(compute, *numbers), 0.004))
            for numbers in ((1.7, 0.05), (2.0, 0.11))
        )
        found = power_law.crossings(one, other)
        held += any((c.low or 0) <= at <= (c.high or np.inf) for c in found)
    assert held / 150 > 0.9


@pytest.mark.parametrize(
    "compute, count", [([6.0], "is 1"), ([6.0, 12.0], "are 2"), ([6.0, 6.05, 12.0, 12.1], "are 2")]
)
def test_too_few_scales(compute, count):
    with pytest.raises(
        UserError,
        match=f"a power law needs final losses at 3 scales of compute at least, and there {count}",
    ):
        power_law.fit(compute, law(compute, 1.7, 0.08))

"""What others published of the baselines."""

import math
import statistics

import pytest
from conftest import ROOT

from gpt.results.power import resolvable
from gpt.results.published import BASELINES, of_class

# Of the 5 seeds of 6h, by hand: the natural logarithms of the perplexities, their mean, sample
# standard deviation, and Student's t for 4 degrees of freedom, 2.776445.
LOGS = [3.0878555, 3.0904059, 3.0785097, 3.0908151, 3.0909060]


def test_the_interval_of_the_five_seeds_is_student_s_of_their_logarithms():
    (published,) = of_class("6h")
    assert published.losses == pytest.approx(LOGS, abs=1e-7)
    center = sum(LOGS) / 5
    deviation = math.sqrt(sum((value - center) ** 2 for value in LOGS) / 4)
    assert deviation == pytest.approx(0.0053, abs=5e-5)
    assert published.loss.value == pytest.approx(center, abs=1e-7)
    assert published.loss.half_width == pytest.approx(2.776445 * deviation / 5**0.5, abs=1e-7)


def test_one_seed_has_no_interval():
    for name in ("12h", "48h"):
        (published,) = of_class(name)
        assert math.isnan(published.loss.half_width)


def test_classes_that_nobody_published_have_no_rows():
    assert of_class("24h") == []
    assert [baseline.last_n for baseline in BASELINES] == [128, 128, 128]


def test_the_documentation_tells_them():
    page = (ROOT / "docs" / "referee.md").read_text(encoding="utf-8")
    for baseline in BASELINES:
        perplexities = ", ".join(f"{value:.3f}" for value in baseline.perplexities)
        cells = [f"`{baseline.class_name}`", str(len(baseline.perplexities)), perplexities]
        assert f"| {' | '.join([*cells, baseline.loss.in_words()])} |" in page


def test_the_documentation_tells_what_seeds_resolve():
    """From the deviation of the five published seeds, and what a doubling of compute is worth."""
    page = (ROOT / "docs" / "referee.md").read_text(encoding="utf-8")
    six_hours, twelve_hours = BASELINES[:2]
    deviation = statistics.stdev(six_hours.losses)
    doubling = six_hours.loss.value - twelve_hours.loss.value
    assert f"scatter by {deviation:.4f} nats" in page
    assert f"a doubling is worth {doubling:.3f} nats" in page
    for count in (2, 3, 5, 10):
        nats = resolvable(deviation, count)
        compute = 2 ** (nats / doubling) - 1
        assert f"| {count} | {math.expm1(nats):.1%} | {compute:.0%} |" in page
    half_width = 2.776445 * deviation * math.sqrt(2 / 3)  # Student's t for 4 degrees of freedom
    assert f"interval is {math.expm1(half_width):.1%} of token perplexity" in page

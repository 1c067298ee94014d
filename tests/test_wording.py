"""Numbers and lists in sentences."""

import pytest

from gpt.wording import duration, first_of, listed, plural, time_unit, timespan


def test_duration():
    assert [duration(seconds) for seconds in (0, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]


def test_times_stand_in_the_unit_that_suits():
    hours = (6, 96, 0.04, 0.005, 12.5, 2345, 0, 1 / 3600)
    words = ["6 h", "96 h", "2.4 min", "18 s", "12.5 h", "2,345 h", "0 s", "1 s"]
    assert [timespan(amount) for amount in hours] == words
    assert [time_unit(amount) for amount in (1, 0.99, 0.01)] == ["h", "min", "s"]


def test_plural():
    assert [plural(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


@pytest.mark.parametrize(
    "count, counted, hinted",
    [(0, "", ""), (2, "0, 1", "0, 1"), (4, "0, 1 and 2 more", "0, 1, …")],
)
def test_lists_of_names(count, counted, hinted):
    assert listed(range(count), 2) == counted
    assert first_of(range(count), 2) == hinted

"""measured.json: what follows from the seconds of the steps, and what is refused."""

import json
import math

import numpy as np
import pytest
from measured import measurement_of, write_entry
from scipy import stats

from gpt.errors import UserError
from gpt.referee import measured_file, measurement
from gpt.referee.entry import BASELINE, CONTENDER

RATES = {BASELINE: [1000, 1010, 990, 1005], CONTENDER: [1100, 1120, 1095, 1111]}


def test_the_ratio_is_that_of_neighbouring_turns(tmp_path):
    ratio = measurement_of(write_entry(tmp_path / "e"), RATES).ratio
    logs = np.log(RATES[CONTENDER]) - np.log(RATES[BASELINE])
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert ratio.value == pytest.approx(np.exp(logs.mean()), rel=1e-12)
    assert ratio.low == pytest.approx(np.exp(interval.low), rel=1e-9)
    assert ratio.high == pytest.approx(np.exp(interval.high), rel=1e-9)
    assert ratio.used == ratio.value


def test_the_interval_holds_the_ratio_in_95_of_100_measurements():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        logs = rng.normal(math.log(1.1), 0.04, 10)
        turns = {CONTENDER: np.exp(logs), BASELINE: np.ones(10)}
        speeds = {side: _Rates(rates) for side, rates in turns.items()}
        ratio = measurement.ratio_of(speeds)
        held += ratio.low <= 1.1 <= ratio.high
    assert 0.93 < held / 1000 < 0.97


class _Rates:
    def __init__(self, rates):
        self.rates = list(map(float, rates))


def test_halves_that_disagree_in_one_of_twenty_quiet_measurements():
    rng = np.random.default_rng(6)
    quiet = 0
    for _ in range(1000):
        speeds = {CONTENDER: _Rates(np.exp(rng.normal(0, 0.02, 10))), BASELINE: _Rates(np.ones(10))}
        quiet += measurement.halves_disagree(speeds)
    assert 0.03 < quiet / 1000 < 0.07
    jumped = np.exp([0, 0.01, 0, 0.01, 0, 0.2, 0.21, 0.2, 0.21, 0.2])
    assert measurement.halves_disagree({CONTENDER: _Rates(jumped), BASELINE: _Rates(np.ones(10))})


def test_what_is_kept_is_read_again(tmp_path):
    entry = write_entry(tmp_path / "e")
    machine = {"load_before": 0.01, "load_during": 0.02, "gpu_processes": 0}
    before = measurement_of(entry, RATES, 950.0, machine, without_kernels=RATES)
    before.write(entry.measured)
    after = measured_file.read(entry)
    assert after == before
    assert after.ratio == after.method_ratio == before.ratio
    # of four turns of one step: the tokens of four over their seconds
    assert after.speeds[BASELINE].tokens_per_second == pytest.approx(
        4 / sum(1 / rate for rate in RATES[BASELINE])
    )
    assert after.off == pytest.approx(after.speeds[BASELINE].tokens_per_second / 950 - 1)
    assert measurement.doubts(after) == []


@pytest.mark.parametrize(
    "machine, sentence",
    [
        (
            {"load_before": 0.34},
            "doubtful: other processes took 34% of this machine's cores before it was measured",
        ),
        (
            {"load_during": 0.11},
            "doubtful: other processes took 11% of this machine's cores while it was measured",
        ),
        (
            {"gpu_processes": 2},
            "doubtful: other processes (2) computed on this machine's GPUs",
        ),
    ],
)
def test_a_doubtful_measurement(tmp_path, machine, sentence):
    assert measurement.doubts(
        measurement_of(write_entry(tmp_path / "e"), RATES, None, machine)
    ) == [sentence]


def test_doubts_about_halves(tmp_path):
    rates = {BASELINE: [100] * 8, CONTENDER: [100, 101, 100, 101, 150, 151, 150, 151]}
    assert measurement.doubts(measurement_of(write_entry(tmp_path / "e"), rates)) == [
        "doubtful: the first half of the turns gives another ratio than the second, beyond chance"
    ]


def changed(tree, path, value):
    *blocks, name = path.split(".")
    for block in blocks:
        tree = tree[block]
    tree[name] = value


EARLIER = {
    **{"time": "2026-01-01T00:00:00+00:00", "declaration": "0123456789ab", "device": "a test"},
    **{"value": 1.1, "low": 1.0, "high": 1.2, "used": 1.0},
}
BAD = [
    ("format", 2, "it is no measurement of the format 1"),
    ("declaration", None, "declaration must be a text"),
    ("together", 1, "together must be true or false"),
    ("machine", [], "machine must be a block"),
    ("ratio", 1, "ratio must be a block"),
    ("ratio.value", 1.5, "ratio.value is 1.5, and from its steps' seconds follows 1.1"),
    ("ratio.used", 1, "ratio.used is 1, and from its steps' seconds follows 1.1"),
    ("ratio.low", "x", "ratio.low is x, and from its steps' seconds follows 1."),
    ("reference", None, "reference must be a block"),
    ("reference.tokens_per_second", 0, "reference.tokens_per_second must be above 0, or null"),
    ("reference.tokens_per_second", 500, "reference.off is None, and from its steps' seconds"),
    ("sides", {}, "sides must be a block of baseline and contender"),
    ("sides.baseline", 5, "sides.baseline must be a block"),
    ("sides.baseline.kernels", 5, "sides.baseline.kernels must be a text"),
    ("sides.baseline.micro_batch", 0, "sides.baseline.micro_batch must be a whole number above 0"),
    ("sides.baseline.parameters", 10**350, "sides.baseline.parameters must be a whole number"),
    ("sides.baseline.model_digest", 5, "sides.baseline.model_digest must be a text, or null"),
    ("sides.contender.step_seconds", [[1.0]], "sides.contender.step_seconds must be a list of 2"),
    ("sides.contender.step_seconds", [[1.0]] * 3, "sides: one side has more turns than the other"),
    ("sides.contender.step_seconds", [[], []], "sides.contender.step_seconds must hold lists of"),
    ("sides.contender.step_seconds", [[1], [0]], "sides.contender.step_seconds must hold seconds"),
    ("sides.contender.step_seconds", [[1], ["1"]], "sides.contender.step_seconds must hold secon"),
    ("sides.contender.tokens_per_second", 5, "sides.contender.tokens_per_second is 5, and from"),
    ("sides.contender.tokens_per_step", 1, "ratio.value is 1.1"),
    ("without_kernels", 5, "without_kernels must be a block, or null"),
    ("without_kernels", {"sides": 5}, "without_kernels.sides must be a block of baseline and"),
    ("earlier", 5, "earlier must be a list of 1,000 measurements or fewer"),
    ("earlier", [{}] * 1001, "earlier must be a list of 1,000 measurements or fewer"),
    (
        "earlier",
        [{}],
        "earlier.0 must be a block of time, declaration, device, value, low, high, u",
    ),
    ("earlier", [{**EARLIER, "value": "x"}], "earlier.0.value must be above 0"),
    ("earlier", [EARLIER, {**EARLIER, "time": 5}], "earlier.1.time must be a text"),
]


@pytest.mark.parametrize("path, value, sentence", BAD, ids=[f"{row[0]}={row[1]}" for row in BAD])
def test_a_file_that_holds_something_else(tmp_path, path, value, sentence):
    entry = write_entry(tmp_path / "e")
    tree = measurement_of(entry, RATES).as_dict()
    changed(tree, path, value)
    entry.measured.write_text(json.dumps(tree))
    with pytest.raises(UserError) as caught:
        measured_file.read(entry)
    assert str(caught.value).startswith(f"{entry.measured}: {sentence}")
    assert str(caught.value).endswith(": move it away, and measure again")


@pytest.mark.parametrize("text", ["", "[", "5", '{"format": NaN}'])
def test_a_file_that_is_no_json(tmp_path, text):
    entry = write_entry(tmp_path / "e")
    entry.measured.write_text(text)
    with pytest.raises(UserError, match="move it away, and measure again"):
        measured_file.read(entry)

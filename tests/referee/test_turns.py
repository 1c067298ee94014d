"""Sides that take turns, on clocks that the test moves."""

import math

import pytest

from gpt.referee import turns

SIDES = ("baseline", "contender")


class Steady:
    """Steps that take as long each time."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.steps = 0

    def __call__(self):
        self.steps += 1
        return self.seconds


def test_turns_alternate_in_the_order_abba():
    assert turns.in_turns("a", "b", 4) == list("abbaabba")
    assert turns.in_turns("a", "b", 3) == list("abbaab")


@pytest.mark.parametrize(
    "seconds, count",
    [(0.1, 5), (0.26, 2), (3.0, 2), (0.004, 125)],
    ids=["some steps", "the least", "slow steps", "quick steps"],
)
def test_a_turn_is_whole_steps_of_half_a_second(seconds, count):
    step = Steady(seconds)
    assert turns.warm_up({"baseline": step}) == {"baseline": count}
    assert step.steps == turns.WARMUP_STEPS
    assert turns.take_turns({"baseline": step}, {"baseline": count}, ["baseline"]) == [
        ("baseline", [seconds] * count)
    ]


def test_a_compilation_is_off_the_clock():
    seconds = iter([60.0, 0.1, 0.1, 0.1, 0.1])
    counts = turns.warm_up({"contender": lambda: next(seconds)})
    assert counts == {"contender": 5}


def test_a_drift_meets_both_sides_alike():
    """A device that grows 3% slower from turn to turn, and a contender that takes 9/10 of the
    baseline's time."""
    clock = {"turn": 0}

    def step_of(share):
        def step():
            return share * 0.3 * 1.03 ** clock["turn"]

        return step

    steps = {"baseline": step_of(1.0), "contender": step_of(0.9)}
    seconds = {side: [] for side in SIDES}
    for side in turns.in_turns("baseline", "contender", 6):
        [(side_of_turn, turn)] = turns.take_turns(steps, dict.fromkeys(SIDES, 2), [side])
        seconds[side_of_turn].append(sum(turn))
        clock["turn"] += 1
    logs = [math.log(b / c) for b, c in zip(seconds["baseline"], seconds["contender"])]
    assert math.exp(sum(logs) / 6) == pytest.approx(1 / 0.9, rel=1e-9)
    # while each neighbour alone is 3% off
    assert abs(math.exp(logs[0]) - 1 / 0.9) > 0.03

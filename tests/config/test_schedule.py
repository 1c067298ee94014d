"""The learning rate against the published formula."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from gpt.config.identity import differences_of
from gpt.config.resolve import load, read, resolve
from gpt.config.saved import as_dict
from gpt.config.schedule import CooldownSchedule, CosineSchedule
from gpt.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def published_schedule(steps, max_lr, min_lr, warmup, decay):
    """The baseline's formula: min(s, w)/w * [min + (1 + cos(pi * min(s, d)/d))/2 * (max - min)], in
    long double."""
    s = np.asarray(steps, np.longdouble)
    cosine = np.cos(np.longdouble(np.pi) * np.minimum(s, decay) / decay)
    return np.minimum(s, warmup) / warmup * (min_lr + (1 + cosine) / 2 * (max_lr - min_lr))


def test_schedule_of_24h_is_exact_at_every_step():
    schedule = load(CONFIGS / "24h.json").schedule
    steps = np.arange(1, 36529 + 100)
    expected = published_schedule(steps, 6e-4, 6e-6, 200, 36529)
    rates = np.array([schedule.lr(int(step)) for step in steps])
    assert np.max(np.abs(rates - expected) / expected) < 1e-12
    assert rates[-1] == rates[36528] == pytest.approx(6e-6, rel=1e-12)


def test_schedule_at_points_known_by_hand():
    schedule = CosineSchedule(max_lr=1.0, min_lr=0.0, warmup_steps=0, decay_steps=4)
    assert [schedule.lr(s) for s in (2, 4, 5)] == pytest.approx([0.5, 0.0, 0.0], abs=1e-15)
    assert CosineSchedule(1.0, 1.0, 10, 100).lr(1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("warmup", "decay", "share"),
    [(200, 3653, 0.2), (0, 10, 1.0), (3, 10, 0.5), (10, 1000, 0.1), (5, 7, 0.001)],
)
def test_linear_cooldown_is_exact_at_every_step(warmup, decay, share):
    """Against a line through the points at which the rate turns, in exact rational numbers."""
    schedule = CooldownSchedule(6e-4, 6e-6, warmup, decay, share)
    high, low = Fraction(6e-4), Fraction(6e-6)
    length = max(1, round(Fraction(share) * decay))
    for step in range(1, decay + 20):
        expected = high * min(1, Fraction(step, warmup)) if warmup else high
        into_cooldown = min(length, max(0, step - (decay - length)))
        expected -= (high - low) * Fraction(into_cooldown, length)
        assert schedule.lr(step) == pytest.approx(float(expected), rel=1e-13), step
    assert schedule.lr(decay) == schedule.lr(decay + 1) == pytest.approx(6e-6, rel=1e-12)


def test_linear_cooldown_at_points_known_by_hand():
    schedule = CooldownSchedule(1.0, 0.2, warmup_steps=2, decay_steps=10, cooldown_share=0.4)
    assert schedule.cooldown_start == 6
    rates = [schedule.lr(step) for step in range(1, 12)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_without_a_cooldown_the_rate_stays():
    schedule = CooldownSchedule(1.0, 0.1, warmup_steps=0, decay_steps=10, cooldown_share=0.0)
    assert {schedule.lr(step) for step in range(1, 30)} == {1.0}


def test_until_the_cooldown_the_rate_is_that_of_any_length_bit_for_bit():
    trunk = CooldownSchedule(3e-4, 1e-6, 7, 1, 0.0)
    for decay in (50, 333, 1000):
        schedule = CooldownSchedule(3e-4, 1e-6, 7, decay, 0.3)
        for step in range(1, schedule.cooldown_start + 1):
            assert schedule.lr(step) == trunk.lr(step)


def test_of_a_rate_that_stays_it_makes_no_difference_where_it_would_have_gone():
    short, long = (
        of_cooldown(cooldown_share=share, decay_steps=steps, **{"gpt.max_train_steps": 5})
        for share, steps in ((0, 400), (0, 500))
    )
    assert differences_of(as_dict(short.settle()), as_dict(long.settle())) == {}
    cooling = of_cooldown(cooldown_share=0.5, decay_steps=500).settle()
    assert differences_of(as_dict(long.settle()), as_dict(cooling)).keys() == {
        "scheduler.params.cooldown_share",
        "scheduler.params.decay_steps",
        "scheduler.params.min_lr",
    }


def of_cooldown(**options):
    params = ("cooldown_share", "warmup_steps", "decay_steps")
    names = {name: f"scheduler.params.{name}" for name in params}
    overrides = {names.get(name, name): value for name, value in options.items()}
    overrides["scheduler.type"] = "LinearCooldownLR"
    return read(CONFIGS / "24h.json", 1, overrides)


def test_another_type_keeps_the_parameters_of_the_file():
    schedule = of_cooldown(cooldown_share=0.1).settle().schedule
    assert schedule == CooldownSchedule(6e-4, 6e-6, 200, 36529, 0.1)


def test_a_config_with_a_cooldown_resolves_to_itself_again():
    config = of_cooldown().settle()
    assert resolve(config.tree(), "again").schedule == config.schedule


def test_a_share_of_the_cosine_is_refused():
    with pytest.raises(UserError) as caught:
        read(CONFIGS / "24h.json", 1, {"scheduler.params.cooldown_share": 0.1}).settle()
    assert (
        "--cooldown_share sets a parameter of LinearCooldownLR, but the scheduler is"
        " LanguiniCosineLR: give --scheduler.type LinearCooldownLR as well" in str(caught.value)
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"cooldown_share": 1, "warmup_steps": 5},
            "scheduler.params.warmup_steps is 5, and the cooldown begins after step 0: give fewer,"
            " or a smaller cooldown_share",
        ),
        ({"cooldown_share": 1.5}, "scheduler.params.cooldown_share is 1.5, must be at most 1"),
        ({"cooldown_share": -1}, "scheduler.params.cooldown_share is -1, must be at least 0"),
        (
            {"optimizer.params.lr": 1e-3},
            "optimizer.params.lr is set beside LinearCooldownLR, which owns the learning rate",
        ),
    ],
)
def test_mistakes_of_a_cooldown(options, sentence):
    with pytest.raises(UserError) as caught:
        of_cooldown(**options).settle()
    assert sentence in str(caught.value)


def test_a_run_that_ends_before_its_cooldown_is_told_so():
    notices = of_cooldown(**{"gpt.max_train_steps": 20000}).settle().notices
    assert any(
        "the schedule ends at step 36529, the run at 20000: the learning rate is max_lr 0.0006 to"
        " the end" in notice
        for notice in notices
    )
    trunk = of_cooldown(cooldown_share=0, **{"gpt.max_train_steps": 20000}).settle()
    assert not any("schedule" in notice for notice in trunk.notices)

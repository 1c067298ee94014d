"""The learning rate against the published formula."""

from pathlib import Path

import numpy as np
import pytest

from gpt.config.resolve import load
from gpt.config.schedule import CosineSchedule

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

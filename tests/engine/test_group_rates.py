"""The trainer's own schedules in the shape that DeepSpeed steps: a rate for each group."""

from types import SimpleNamespace

import pytest
import torch

from gpt.config.schedule import CooldownSchedule
from gpt.engine.schedule import Schedule, set_lr

# of steps 1 to 6, by hand
RATES = [0.5, 1.0, 1.0, 1.0, 0.6, 0.2]


def scheduled():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))]} for _ in range(2)]
    groups[0]["lr_scale"] = 0.5
    optimizer = torch.optim.SGD(groups, lr=1.0)
    return optimizer, Schedule(optimizer, CooldownSchedule(1.0, 0.2, 2, 6, 1 / 3))


def test_every_group_has_the_rate_times_its_scale():
    optimizer, schedule = scheduled()
    for rate in RATES:
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 2, rate])
        assert schedule.lr == pytest.approx(rate)
        optimizer.step()
        schedule.step()


def test_a_schedule_goes_on_where_its_state_says():
    optimizer, schedule = scheduled()
    schedule.load_state_dict({"last_epoch": 4})
    set_lr(SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 0.6])
    assert schedule.state_dict() == {"last_epoch": 4}

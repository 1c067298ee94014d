"""What measurements have in common: their process, and the engine on the clock."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from conftest import tiny_run

from gpt.cluster.world import World
from gpt.config.resolve import resolve
from gpt.errors import RunError, UserError
from gpt.training import measuring


class Overflowing:
    """In an Engine's place: the first steps overflow, and each takes a second."""

    overflows = 2
    clock = 0.0

    def __init__(self, model, config, world, weights):
        self.batches = []

    def step(self, batch):
        Overflowing.clock += 1.0
        self.batches.append(batch)
        result = type("Result", (), {"loss": torch.zeros(())})
        result.applied = len(self.batches) > self.overflows
        return result


@pytest.fixture
def engine(monkeypatch):
    """A TimedEngine of an engine whose steps are made up."""
    from gpt.engine import boundary

    monkeypatch.setattr(boundary, "Engine", Overflowing)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: Overflowing.clock)
    config = resolve(tiny_run(), "tiny")
    return measuring.TimedEngine(config, World(0, 1, torch.device("cpu")))


def test_steps_that_overflow_are_off_the_clock(engine):
    assert [engine.step(), engine.step()] == [1.0, 1.0]
    batches = engine._engine.batches
    assert len(batches) == 4
    assert all(np.array_equal(batch, batches[0]) for batch in batches)
    # two micro-batches of four rows, each with the target of its last token
    assert batches[0].shape == (2, 4, 33) and batches[0].max() < 2048
    assert engine.kernels == "torch"


def test_a_gradient_that_always_overflows(engine, monkeypatch):
    monkeypatch.setattr(Overflowing, "overflows", 10**9)
    with pytest.raises(RunError, match="the gradient overflows again and again"):
        engine.step()


def test_a_process_that_dies():
    result = measuring.in_child("gpt.no_such_module", {})
    assert result["status"].startswith("failed: ")
    assert "No module named gpt.no_such_module" in result["status"]


def test_a_mistake_that_only_the_device_tells_is_a_result(monkeypatch, capsys):
    def measure(task):
        raise UserError(f"no {task['what']} here", mend="take another")

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"what": "GPU"}'))
    measuring.answer(measure)
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"status": "failed: no GPU here: take another"}

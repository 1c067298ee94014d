"""Ranks that fall silent, with several watchdogs in this process; ranks that hang: see
test_trouble.py."""

import time

import pytest
import torch

from gpt.cluster import watchdog
from gpt.cluster.watchdog import Watchdog
from gpt.cluster.world import World

HOSTS = ("node1", "node2", "node2")


class Silent:
    """A blackboard whose host is cut off."""

    def __getattr__(self, name):
        def unanswered(*args):
            raise RuntimeError("wait timeout")

        return unanswered


@pytest.fixture
def ended(monkeypatch):
    """Exit codes of processes that watchdogs ended, in this process, where they do not."""
    codes = []
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    return codes


def worlds(device="cpu"):
    board = torch.distributed.HashStore()
    return [World(rank, 3, torch.device(device), HOSTS, board) for rank in range(3)]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    "device, limit", [("cpu", "SILENCE_SECONDS"), ("cuda", "GPU_SILENCE_SECONDS")]
)
def test_all_are_told_who_is_silent(device, limit, ended, monkeypatch, capsys):
    monkeypatch.setattr(watchdog, limit, 2.0)
    # They are starting, so only silence can end them.
    watching = [Watchdog(world, 1.0) for world in worlds(device)]
    time.sleep(1)
    assert not ended
    watching[2]._stop_watching()  # as a process that was killed: it says nothing of its end
    wait_for(lambda: len(ended) == 2)
    errors = capsys.readouterr().err
    assert (
        ended == [1, 1]
        and errors.count("late: rank 2 on node2, which shows no sign of life. The same command")
        == 2
    )
    assert (
        "[rank 0 on node1] error: no sign of life from another rank for 2 s while starting"
        in errors
    )


def test_a_rank_that_does_not_reach_rank_0_ends(ended, monkeypatch, capsys):
    monkeypatch.setattr(watchdog, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(World, "blackboard", lambda world, seconds: Silent())
    Watchdog(worlds()[1], 1.0)
    wait_for(lambda: ended)
    assert ended == [1]
    assert (
        "[rank 1 on node2] error: no sign of life from another rank for 1 s while starting; late:"
        " rank 0 on node1, whose process does not answer, or its host is out of reach"
        in capsys.readouterr().err
    )


def test_ranks_whose_run_is_over_are_not_missed(ended, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENCE_SECONDS", 1.0)
    first, *others = [Watchdog(world, 1.0) for world in worlds()]
    for other in others:
        other.close()
    time.sleep(2)  # rank 0 may still be busy with the last of its metrics
    first.close()
    assert not ended


def test_who_is_gone():
    first, second, third = [Watchdog(world, 1.0) for world in worlds()]
    time.sleep(0.5)
    second.close()  # it has raised an exception of its own
    third._stop_watching()
    assert (
        first.who_is_gone()
        == "rank 1 on node2, which has ended; rank 2 on node2, which shows no sign of life"
    )
    assert Watchdog(worlds()[0], 0).who_is_gone() == "unknown, since gpt.step_timeout is off"


def test_evaluating_before_the_first_step_does_not_end_its_patience(ended, monkeypatch, capsys):
    monkeypatch.setattr(watchdog, "STARTING_SECONDS", 3.0)
    alone = Watchdog(World(0, 1, torch.device("cpu")), 0.4)
    for _ in range(5):
        alone.progress("evaluating after step 0")
    time.sleep(1)  # a first micro-batch that compiles
    assert not ended
    alone.progress("computing step 1")
    alone.first_micro_batch_done()
    wait_for(lambda: ended)
    assert ended == [1]
    assert (
        "error: no progress for 0.4 s (gpt.step_timeout) while computing step 1; late: the only"
        " rank. The same command" in capsys.readouterr().err
    )


def test_a_first_step_that_never_ends_is_noticed(ended, monkeypatch, capsys):
    monkeypatch.setattr(watchdog, "STARTING_SECONDS", 0.8)
    alone = Watchdog(World(0, 1, torch.device("cpu")), 0.4)
    alone.progress("reading the batch of step 1")
    wait_for(lambda: ended)
    assert "no progress for 0.8 s (gpt.step_timeout) while reading" in capsys.readouterr().err

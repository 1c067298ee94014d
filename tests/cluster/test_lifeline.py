"""Ranks that die while the others wait in C, each in its process; lines between ranks in this one.

Whole runs in which a rank dies are in test_failures.py and test_hosts.py."""

import json
import socket
import sys
import time

import pytest
import torch
from conftest import ROOT

from gpt.cluster.lifeline import PLACE, Lifeline
from gpt.cluster.world import World

GONE = "[rank {}] error: {} is gone without a word, while {} was waiting: it was killed or has "
RANKS = ("rank 0 on node1", "rank 1 on node1", "rank 2 on node2")


def test_a_rank_that_dies_while_the_others_wait_in_c_is_named_and_all_end(tmp_path, run_command):
    command = [sys.executable, ROOT / "tests/support/mute_run.py", 3, "0,2,-1"]
    done = run_command(command, tmp_path, PYTHONPATH=str(ROOT))
    ends = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(ends) == {0, 2, -1}, done.stderr
    codes = {0: [-9, 1, 1], 2: [1, 1, -9], -1: [0, 0, 0]}
    for killed, ranks in ends.items():
        assert [code for code, _ in ranks] == codes[killed]
        assert max(seconds for _, seconds in ranks) < 10
        said = [(tmp_path / str(killed) / str(rank)).read_text() for rank in range(3)]
        speakers = [rank for rank in range(3) if said[rank]]
        # Once for the whole run, by whichever rank heard of it first. Without rank 0 there is no
        # blackboard to agree on, and one rank on each host speaks.
        assert speakers in {0: [[1, 2]], 2: [[0], [1]], -1: [[]]}[killed]
        for rank in speakers:
            assert said[rank].startswith(GONE.format(rank, RANKS[killed], RANKS[rank]))
            assert said[rank].count("\n") == 1


@pytest.fixture
def lines(monkeypatch):
    """lines(size) -> (lifelines of all ranks, per rank those it has called gone, the
    blackboard)."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    lifelines = []

    def make(size):
        board = torch.distributed.HashStore()
        gone = [[] for _ in range(size)]
        for rank in range(size):
            world = World(rank, size, torch.device("cpu"), ("node1",) * size)
            lifelines.append(Lifeline(world, board, gone[rank].append))
        wait_for(lambda: len(lifelines[0]._lines) == size - 1)
        return lifelines, gone, board

    yield make
    for line in lifelines:
        line.close()


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("dying", [0, 2])
def test_all_others_hear_of_the_one_that_ends_without_a_word(dying, lines):
    lifelines, gone, _ = lines(4)
    lifelines[1].close()  # in good order, so it is neither missed nor told
    lifelines[dying].close(in_order=False)
    wait_for(lambda: sum(map(len, gone)) == 2)
    assert gone == [[] if rank in (1, dying) else [dying] for rank in range(4)]


def test_ends_in_good_order_are_no_deaths(lines):
    lifelines, gone, _ = lines(3)
    for rank in (1, 0, 2):
        lifelines[rank].close()
    assert gone == [[], [], []]


def test_strangers_are_no_ranks(lines):
    lifelines, gone, board = lines(2)
    _, port, _ = board.get(PLACE).decode().split()
    silent = socket.create_connection(("127.0.0.1", int(port)))
    for words in (b"GET / HTTP/1.1\r\n", b"word 1", b"\xff\xff", b""):
        with socket.create_connection(("127.0.0.1", int(port))) as stranger:
            stranger.sendall(words)
    silent.close()
    time.sleep(0.2)
    assert gone == [[], []] and lifelines[0]._thread.is_alive()
    lifelines[1].close(in_order=False)
    wait_for(lambda: gone == [[1], []])


def second_of_two():
    return World(1, 2, torch.device("cpu"), ("node1", "node2"))


def test_a_rank_that_cannot_reach_rank_0_says_so(capsys):
    board = torch.distributed.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    board.set(PLACE, f"127.0.0.1 {port} word")
    gone = []
    printed = []
    line = Lifeline(second_of_two(), board, gone.append)
    wait_for(lambda: printed.append(capsys.readouterr().err) or printed[-1])
    line.close()
    assert gone == []
    assert printed[-1].startswith(
        "notice: rank 1 on node2 could not connect to rank 0 at 127.0.0.1:"
        f"{port} (Connection refused): if a rank dies, this one finds it "
    )


def test_a_run_that_ends_before_rank_0_has_come():
    line = Lifeline(second_of_two(), torch.distributed.HashStore(), None)
    line.close()
    assert not line._thread.is_alive()

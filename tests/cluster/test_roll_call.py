"""Ranks that do not come, or come from other launches, with other data: in processes that do
nothing but call the roll."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

from gpt.cluster.roll_call import require_interfaces
from gpt.errors import UserError

ROLL_CALL = """
import sys
sys.path.insert(0, sys.argv[1])
from gpt.errors import command
from gpt.cluster.launch import Launch, launched
from gpt.cluster.roll_call import roll_call
def main():
    announced = launched()
    launch = Launch(announced.rank, announced.size, ("node1", "node2"))
    print(roll_call(launch, {"dataset": sys.argv[2]}, float(sys.argv[3])).hosts)
command(main)
"""


def roll_calls(port, *ranks, seconds=5):
    """[(exit code, stderr)] of processes that call the roll; ranks: (rank, ranks, dataset)."""
    processes = []
    for rank, size, dataset in ranks:
        env = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-c", ROLL_CALL, str(ROOT), dataset, str(seconds)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors)]


def test_a_rank_that_does_not_come_is_named():
    ((code, error),) = roll_calls(29842, (0, 2, "a"))
    assert code == 1
    assert (
        "error: the run was started as 2 ranks, and after 5 s rank 1 on node2 had not come: nothing"
        " was trained" in error
    )


def test_ranks_of_different_launches_and_data_are_refused():
    for port, ranks, message in (
        (29843, [(0, 2, "a"), (1, 2, "b")], "error: the ranks differ in dataset: a for rank 0 on "),
        (29844, [(0, 2, "a"), (1, 3, "a")], " as one of 3 ranks, rank 0 on "),
    ):
        for code, error in roll_calls(port, *ranks, seconds=60):
            assert code == 2 and message in error, error


def test_an_interface_that_is_not_there(monkeypatch):
    for names in ("nope", "lo,nope"):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", names)
        with pytest.raises(UserError, match="has no network interface 'nope', but .*: name one"):
            require_interfaces()
    for names in ("lo", ""):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", names)
        require_interfaces()


@pytest.mark.slow
def test_two_processes_with_one_rank():
    ends = roll_calls(29845, (0, 3, "a"), (1, 3, "a"), (1, 3, "a"), seconds=20)
    assert [code for code, _ in ends] == [1, 1, 1]
    message = "error: two processes say that they are rank 1, the second on "
    assert [message in error for _, error in ends].count(True) == 1


@pytest.mark.slow
def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 29846)):
        ((code, error),) = roll_calls(29846, (0, 2, "a"))
    assert code == 2 and "error: rank 0 cannot listen at 127.0.0.1:29846 on " in error
    assert ": if another run holds that port, export MASTER_PORT=29847 before " in error


@pytest.mark.slow
def test_no_rank_0():
    ((code, error),) = roll_calls(29847, (1, 2, "a"), seconds=3)
    assert code == 1 and "could not reach rank 0 at 127.0.0.1:29847 within 3 s" in error

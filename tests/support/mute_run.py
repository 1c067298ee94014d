"""Ranks that only wait for each other, as under NCCL: in C, where nothing raises and no signal
handler runs.

`python mute_run.py RANKS KILLED[,…]`: a run for every KILLED, the rank that is killed once all
wait; -1: none is, and all end in good order, rank 0 first and two seconds before the last. node1
has ranks 0 and 1, node2 the next two, …. What a rank writes to stderr goes to the file KILLED/RANK.
Prints a line of JSON a run, in the order of ranks:
[KILLED, [[exit code, seconds after the first end], …]].
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import torch
from forked import fork_ranks, wait_in_c

from gpt.cluster import meeting
from gpt.cluster.failures import Failures
from gpt.cluster.watchdog import Watchdog
from gpt.cluster.world import World


def wait(size, killed):
    rank = int(os.environ["RANK"])
    os.dup2(os.open(f"{killed}/{rank}", os.O_CREAT | os.O_WRONLY), 2)
    hosts = tuple(f"node{1 + rank // 2}" for rank in range(size))
    world = World(rank, size, torch.device("cpu"), hosts, meeting.store(60, is_master=rank == 0))
    watchdog = Watchdog(world, 600)
    failures = Failures(world, watchdog, Path.cwd())
    watchdog.progress("waiting")
    board = world.blackboard(10)
    board.add("waiting", 1)
    while board.add("waiting", 0) < size:
        time.sleep(0.02)
    time.sleep(1)  # until all lines stand
    if killed == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    if killed >= 0:
        wait_in_c()
    time.sleep(rank)
    failures.close()
    watchdog.close()


if __name__ == "__main__":
    size = int(sys.argv[1])
    for killed in map(int, sys.argv[2].split(",")):
        Path(str(killed)).mkdir()
        ends = fork_ranks(size, lambda: wait(size, killed))
        first = min(seconds for _, seconds in ends)
        print(json.dumps([killed, [[code, seconds - first] for code, seconds in ends]]), flush=True)

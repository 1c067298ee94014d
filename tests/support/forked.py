"""Ranks that are forked from one process, which has imported all they need: imports are most of a
launch's cost."""

import ctypes
import os
import signal
import socket
import sys
import time

import torch
import torch._dynamo  # noqa: F401  what DeepSpeed's ZeRO 3 imports in every rank

PATIENCE = 600.0  # seconds for which ranks may run


def fork_ranks(size: int, work) -> list:
    """(exit code, seconds until it ended) of `size` ranks on this host, each of which does
    `work()`.

    A rank computes in one thread: of OpenMP's pool, which this process may have used, a fork gets
    none, and would wait for it for ever.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    ranks = {}
    ends = {}
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(size),
                LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                OMP_NUM_THREADS="1",
            )
            torch.set_num_threads(1)
            code = 1
            try:
                work()
                code = 0
            finally:
                # whatever happens: a rank that went on would run its parent's other tests
                try:
                    if code:
                        sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(code)
        ranks[child] = rank
    while ranks:
        for child, rank in list(ranks.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                ends[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - began
                del ranks[child]
            elif time.monotonic() - began > PATIENCE:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [ends[rank] for rank in range(size)]


def wait_in_c():
    """For ever, without Python's lock, by locking a mutex twice."""
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

"""Before ranks compute together: have all come, from the launch that this one belongs to, with the
same code and data?

A process group that waits for a rank which never comes says nothing for minutes, and then not whom
it waited for. So every rank first puts a note about itself into the store that rank 0 (or torchrun)
keeps at MASTER_ADDR:MASTER_PORT. Rank 0 reads all, the others its verdict: one note to write and
one to read for each, however many they are.
"""

import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from gpt.cluster.host_report import interface_of, own_address, versions
from gpt.errors import RunError, UserError

PROJECT = Path(__file__).resolve().parents[2]
JOIN_SECONDS = 600.0  # many hosts that import torch from one file server take minutes
NOTICE_SECONDS = 30.0
VERDICT = "verdict"


def store(seconds: float, is_master=False):
    """A connection to the store at MASTER_ADDR:MASTER_PORT, which answers a question within
    `seconds` or raises torch.distributed.DistError. torchrun starts ranks anew at the same store,
    so each try has a part of its own."""
    found = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=is_master,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return torch.distributed.PrefixStore(
        f"gpt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found
    )


def roll_call(launch, facts: dict, seconds: float = JOIN_SECONDS) -> tuple:
    """(the store, every rank's host name in the order of ranks). All ranks call it together.

    launch: gpt.cluster.launch.Launch. facts: {what: a short text} that all ranks must have in
    common beside versions and code, but for a remark in parentheses at its end; None where this one
    does not know. Raises UserError where ranks differ, RunError where some have not come after
    `seconds`.
    """
    kept_here = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        board = store(seconds, is_master=kept_here)
    except torch.distributed.DistError as error:
        if kept_here:
            raise UserError(
                f"rank 0 cannot listen at {place} on {socket.gethostname()}: another run may hold"
                " that port, give --master_port another one; or the address is not this host's"
                f" ({error})"
            ) from error
        raise RunError(
            f"rank {launch.rank} on {socket.gethostname()} could not reach rank 0 at {place} within"
            f" {seconds:g} s: rank 0 has not started, or that address or port is closed to this"
            " host; tools/preflight.py looks into it"
        ) from error
    note = {
        "size": launch.size,
        "host": socket.gethostname(),
        "address": own_address(os.environ["MASTER_ADDR"]),
        "facts": {**versions(str(PROJECT)), **facts},
    }
    if board.add(f"claims of rank {launch.rank}", 1) > 1:
        raise RunError(
            f"two processes say that they are rank {launch.rank}, the second on {note['host']}:"
            " give each host its own --node_rank, and each run its own --master_port"
        )
    board.set(f"rank {launch.rank}", json.dumps(note))
    if launch.rank == 0:
        verdict = _judge(board, launch, seconds)
        board.set(VERDICT, json.dumps(verdict))
        _until(lambda: board.add("read", 0) >= verdict["present"] - 1, 10)
    else:
        try:
            board.wait([VERDICT], timedelta(seconds=seconds + 15))
            verdict = json.loads(board.get(VERDICT))
            board.add("read", 1)
        except torch.distributed.DistError as error:
            raise RunError(f"rank 0 at {place} has ended, or does not answer any more") from error
    if verdict["mistake"]:
        raise (UserError if verdict["users"] else RunError)(verdict["mistake"])
    if launch.size != len(verdict["hosts"]):
        raise UserError(
            _other_size(
                launch.rank, note, {"size": len(verdict["hosts"]), "host": verdict["hosts"][0]}
            )
        )
    _choose_interface(note["host"], verdict)
    return board, tuple(verdict["hosts"])


def _judge(board, launch, seconds) -> dict:
    """Rank 0's verdict on the notes of all ranks."""
    names = [f"rank {rank}" for rank in range(launch.size)]
    if (
        not _until(lambda: board.check(names), min(seconds, NOTICE_SECONDS))
        and seconds > NOTICE_SECONDS
    ):
        print(f"waiting for {_absent(board, launch, names)}", file=sys.stderr, flush=True)
        _until(lambda: board.check(names), seconds - NOTICE_SECONDS)
    absent = [rank for rank, name in enumerate(names) if not board.check([name])]
    notes = {
        rank: json.loads(board.get(name)) for rank, name in enumerate(names) if rank not in absent
    }
    mistake = _difference(notes)
    users = mistake is not None
    if absent and not mistake:
        mistake = (
            f"the run was started as {launch.size} ranks, and after {seconds:g} s"
            f" {_absent(board, launch, names)} had not come: nothing was trained; look for their"
            " own errors above, and try tools/preflight.py"
        )
    return {
        "mistake": mistake,
        "users": users,
        "present": len(notes),
        "hosts": [note["host"] for note in notes.values()],
        "addresses": [note["address"] for note in notes.values()],
    }


def _absent(board, launch, names):
    absent = [rank for rank, name in enumerate(names) if not board.check([name])]
    where = [
        f"rank {rank}" + (f" on {launch.promised[rank]}" if launch.promised else "")
        for rank in absent[:16]
    ]
    return ", ".join(where) + f" and {len(absent) - 16} more" * (len(absent) > 16)


def _difference(notes) -> str | None:
    """The first thing in which a rank differs from rank 0."""
    first = notes[0]
    for rank, note in notes.items():
        if note["size"] != first["size"]:
            return _other_size(rank, note, first)
        for what, value in note["facts"].items():
            wanted = first["facts"].get(what)
            if None not in (value, wanted) and _without_remark(value) != _without_remark(wanted):
                return (
                    f"the ranks differ in {what}: {wanted} for rank 0 on {first['host']}, {value}"
                    f" for rank {rank} on {note['host']}: make them the same on all hosts; nothing"
                    " was trained"
                )
    return None


def _without_remark(fact: str) -> str:
    return fact.partition(" (")[0]


def _other_size(rank, note, first):
    return (
        f"rank {rank} on {note['host']} was started as one of {note['size']} ranks, rank 0 on"
        f" {first['host']} as one of {first['size']}: start all hosts with the same hostfile, and"
        " other runs with another --master_port"
    )


def _until(condition, seconds) -> bool:
    """Whether the condition came true within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _choose_interface(host, verdict):
    """Have gloo listen on the interface that leads to the other hosts. By itself it takes the one
    of the host name's address, which many systems' /etc/hosts makes 127.0.1.1, and then no other
    host can reach it."""
    others = [
        address for name, address in zip(verdict["hosts"], verdict["addresses"]) if name != host
    ]
    for peer in [os.environ["MASTER_ADDR"], *others] if others else []:
        address = own_address(peer) if peer else None
        if address and not address.startswith("127."):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(address))
            return


class Deadline:
    """Ends the process with a sentence if the block inside takes longer."""

    def __init__(self, seconds: float, sentence: str):
        self._timer = threading.Timer(seconds, self._end, [sentence])
        self._timer.daemon = True

    def __enter__(self):
        self._timer.start()

    def __exit__(self, *raised):
        self._timer.cancel()

    @staticmethod
    def _end(sentence):
        sys.stderr.write(f"error: {sentence}\n")
        sys.stderr.flush()
        os._exit(1)

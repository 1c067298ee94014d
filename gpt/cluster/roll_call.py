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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from gpt.cluster.host_report import interface_of, interfaces, own_address, versions
from gpt.cluster.launch import Launch, another_port
from gpt.cluster.meeting import (
    Meeting,
    call_out,
    is_kept_by_torchrun,
    join,
    latest_part,
    part_of,
    place,
)
from gpt.errors import RunError, UserError
from gpt.wording import listed

PROJECT = Path(__file__).resolve().parents[2]
# many hosts that import torch from one file server take minutes
JOIN_SECONDS = 600.0
NOTICE_SECONDS = 30.0
# keys of a try's part, beside two a rank; what is under them is read by ranks with other code too
VERDICT = "verdict"
READ = "read"


def roll_call(
    launch: Launch, facts: dict[str, str | None], seconds: float = JOIN_SECONDS
) -> Meeting:
    """Where all ranks have met. All call it together.

    facts: {what: a short text} that all ranks must have in
    common beside versions and code, but for a remark in parentheses at its end; None where this one
    does not know. Raises UserError where ranks differ, RunError where some have not come after
    `seconds`.
    """
    whole = join(launch, seconds)
    note: dict[str, Any] = {
        "size": launch.size,
        "host": socket.gethostname(),
        "address": own_address(os.environ["MASTER_ADDR"]),
        "facts": {**versions(str(PROJECT)), **facts},
    }
    if launch.rank == 0:
        part = call_out(whole)
        board = part_of(whole, part)
        _answer(board, 0, note)
        verdict = _judge(board, launch, seconds)
        board.set(VERDICT, json.dumps(verdict))
        _until(lambda: board.add(READ, 0) >= verdict["present"] - 1, 10)
    else:
        try:
            part, verdict = _come(whole, launch.rank, note, seconds + 15)
        except torch.distributed.DistError as error:
            raise RunError(f"rank 0 at {place()} has ended, or does not answer any more") from error
    if verdict["mistake"]:
        raise (UserError if verdict["users"] else RunError)(verdict["mistake"])
    hosts = verdict["hosts"]
    if launch.size != len(hosts):
        first_note = {"size": len(hosts), "host": hosts[0]}
        raise UserError(_other_size(launch.rank, note, first_note))
    _choose_interface(note["host"], verdict)
    return Meeting(part_of(whole, part), tuple(hosts), part)


def _answer(board: torch.distributed.Store, rank: int, note: dict[str, Any]) -> bool:
    """Put this rank's note into a try's part; whether no other process did so for the rank."""
    is_first = board.add(f"claims of rank {rank}", 1) == 1
    if is_first:
        board.set(f"rank {rank}", json.dumps(note))
    return is_first


def _come(
    whole: torch.distributed.Store, rank: int, note: dict[str, Any], seconds: float
) -> tuple[str, dict[str, Any]]:
    """(the part of the try that this rank, not rank 0, belongs to, rank 0's verdict on it).

    The part that is called out may be that of a try before, in which this rank has died, or whose
    rank 0 has: then another one follows.
    """
    part = None
    is_first = False
    end = time.monotonic() + seconds
    pause = 0.05
    while time.monotonic() < end:
        latest = latest_part(whole)
        if latest is not None and latest != part:
            part = latest
            is_first = _answer(part_of(whole, part), rank, note)
            if not is_first and not is_kept_by_torchrun():
                break
        if part is not None and is_first:
            board = part_of(whole, part)
            if board.check([VERDICT]):
                verdict = json.loads(board.get(VERDICT))
                # else it is on a rank before this one, which did not come: another try begins
                if rank not in verdict["absent"] or not is_kept_by_torchrun():
                    board.add(READ, 1)
                    return part, verdict
        time.sleep(pause)
        pause = min(1.2 * pause, 1.0)  # few questions of many ranks that wait long
    if part is not None and not is_first:
        raise RunError(
            f"two processes say that they are rank {rank}, the second on {note['host']}:"
            f" give each host its own --node_rank, or, if the other is of another run,"
            f" {another_port()}"
        )
    raise RunError(f"rank 0 at {place()} has ended, or does not answer any more")


def _judge(board: torch.distributed.Store, launch: Launch, seconds: float) -> dict[str, Any]:
    """Rank 0's verdict on the notes of all ranks.

    {"mistake": a sentence or None, "users": whether that is the user's, "present": how many ranks
    have come, "absent": those that have not, "hosts" and "addresses": theirs}
    """
    keys = [f"rank {rank}" for rank in range(launch.size)]
    all_have_come = _until(lambda: board.check(keys), min(seconds, NOTICE_SECONDS))
    if not all_have_come and seconds > NOTICE_SECONDS:
        absent = _absent(board, launch.size)
        print(f"waiting for {_names(absent, launch)}", file=sys.stderr, flush=True)
        _until(lambda: board.check(keys), seconds - NOTICE_SECONDS)
    absent = _absent(board, launch.size)
    notes = {}
    for rank, key in enumerate(keys):
        if rank not in absent:
            notes[rank] = json.loads(board.get(key))
    mistake = _difference(notes)
    users = mistake is not None
    if absent and not mistake:
        mistake = (
            f"the run was started as {launch.size} ranks, and after {seconds:g} s"
            f" {_names(absent, launch)} had not come: nothing was trained; look for their own"
            " errors above, and try tools/preflight.py"
        )
    return {
        "mistake": mistake,
        "users": users,
        "present": len(notes),
        "absent": absent,
        "hosts": [note["host"] for note in notes.values()],
        "addresses": [note["address"] for note in notes.values()],
    }


def _absent(board: torch.distributed.Store, size: int) -> list[int]:
    """The ranks that have not come."""
    return [rank for rank in range(size) if not board.check([f"rank {rank}"])]


def _names(ranks: list[int], launch: Launch) -> str:
    """Ranks, each with its host where that is known."""
    names = []
    for rank in ranks:
        host = f" on {launch.promised[rank]}" if launch.promised else ""
        names.append(f"rank {rank}{host}")
    return listed(names, 16)


def _difference(notes: dict[int, dict[str, Any]]) -> str | None:
    """The first thing in which a rank differs from rank 0."""
    first = notes[0]
    for rank, note in notes.items():
        if note["size"] != first["size"]:
            return _other_size(rank, note, first)
        for what, value in note["facts"].items():
            first_value = first["facts"].get(what)
            if value is None or first_value is None:
                continue
            if _without_remark(value) != _without_remark(first_value):
                return (
                    f"the ranks differ in {what}: {first_value} for rank 0 on {first['host']},"
                    f" {value} for rank {rank} on {note['host']}: make them the same on all hosts;"
                    " nothing was trained"
                )
    return None


def _without_remark(fact: str) -> str:
    return fact.partition(" (")[0]


def _other_size(rank: int, note: dict[str, Any], first: dict[str, Any]) -> str:
    return (
        f"rank {rank} on {note['host']} was started as one of {note['size']} ranks, rank 0 on"
        f" {first['host']} as one of {first['size']}: start all hosts with the same hostfile, or,"
        f" if the other is of another run, {another_port()}"
    )


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _choose_interface(host: str, verdict: dict[str, Any]) -> None:
    """Have gloo listen on the interface that leads to the other hosts. By itself it takes the one
    of the host name's address, which many systems' /etc/hosts makes 127.0.1.1, and then no other
    host can reach it."""
    others = []
    for name, address in zip(verdict["hosts"], verdict["addresses"]):
        if name != host:
            others.append(address)
    if not others:
        return
    for peer in [os.environ["MASTER_ADDR"], *others]:
        address = own_address(peer) if peer else None
        if address and not address.startswith("127."):
            interface = interface_of(address)
            if interface is not None:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            return


def require_interfaces() -> None:
    """Raise UserError where gloo shall listen on a network interface that this host has not: torch
    says so too late, and not of which host."""
    names = os.environ.get("GLOO_SOCKET_IFNAME")
    if not names:  # torch takes an empty one as none
        return
    present = interfaces()
    absent = [name for name in names.split(",") if name not in present]
    if absent:
        raise UserError(
            f"GLOO_SOCKET_IFNAME is {names!r}, and {socket.gethostname()} has no network interface"
            f" {absent[0]!r}, but {listed(present, 16)}",
            mend="name one of those, or unset it",
        )


class Deadline:
    """Ends the process, with a sentence and an exit code, if the block inside takes longer."""

    def __init__(self, seconds: float, sentence: str, code: int = 1):
        self._timer = threading.Timer(seconds, self._end, [sentence, code])
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()

    @staticmethod
    def _end(sentence: str, code: int) -> None:
        try:
            sys.stderr.write(f"{'error' if code else 'notice'}: {sentence}\n")
            sys.stderr.flush()
        finally:  # even if nobody reads stderr any more
            os._exit(code)

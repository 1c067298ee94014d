"""A connection from every rank to rank 0, by which all learn at once that a process has died.

The kernel closes the connections of a process that ends, whatever it died of. So neither the
process, nor a launcher, nor the backend has to tell: gloo's exchanges raise when a peer is gone,
but NCCL's wait on the device, and no exception comes. A host that loses its power closes nothing:
that silence is gpt.cluster.watchdog's.
"""

import os
import secrets
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import torch.distributed

from gpt.cluster.host_report import address_for_others
from gpt.cluster.world import World
from gpt.errors import in_brief

# on the blackboard: where rank 0 listens, and the password of its own ranks
PLACE = "lifeline"
# a rank that is gone, or one of the two below
MESSAGE = struct.Struct("!i")
ENDED = -1
ALIVE = -2
# some firewalls drop a connection that says nothing for minutes
ALIVE_SECONDS = 60.0
CONNECT_SECONDS = 10.0


class Lifeline:
    """Calls `gone(rank)`, once, from a thread, when another rank's process ended without `close()`.

    Rank 0 hears of every other rank and passes it on, the others hear of rank 0. All make one.
    """

    def __init__(self, world: World, board: torch.distributed.Store, gone: Callable[[int], object]):
        self._world = world
        self._board = board
        self._gone = gone
        # {rank: the connection to it}
        self._lines: dict[int, socket.socket] = {}
        self._password = ""
        # until a death is known
        self._open = True
        self._in_order = True
        self._closed = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, lambda: None)
        if world.rank == 0:
            self._listen()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self, in_order: bool = True) -> None:
        """Listen no more. The others learn that this rank ends in order, or take it for gone."""
        self._in_order = in_order
        self._closed.set()
        with suppress(OSError):  # the thread has heard of a death, and listens no more
            self._wake.send(b"\0")
        self._thread.join()
        self._wake.close()

    def _watch(self) -> None:
        if self._world.rank > 0:
            self._connect()
        while self._open and not self._closed.is_set():
            ready = self._selector.select(ALIVE_SECONDS)
            for key, _ in ready:
                if self._open and not self._closed.is_set():
                    key.data()
            if not ready:
                self._send(ALIVE)
        if self._closed.is_set() and self._in_order:
            self._send(ENDED)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _receive(self, peer: int, line: socket.socket) -> None:
        number = _read(line)
        if number == ALIVE:
            return
        del self._lines[peer]
        self._drop(line)
        if number != ENDED:
            self._open = False
            gone = peer if number is None else number
            # before anything else: its end may soon be the end of this process too
            self._send(gone)
            self._gone(gone)

    def _send(self, number: int) -> None:
        for line in self._lines.values():
            with suppress(OSError):  # that process has ended as well
                line.send(MESSAGE.pack(number))

    def _drop(self, line: socket.socket) -> None:
        self._selector.unregister(line)
        line.close()

    # ── rank 0 ──

    def _listen(self) -> None:
        dual_stack = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual_stack else socket.AF_INET
        listening = socket.create_server(
            ("", 0), family=family, backlog=self._world.size, dualstack_ipv6=dual_stack
        )
        self._selector.register(listening, selectors.EVENT_READ, lambda: self._accept(listening))
        self._password = secrets.token_hex(8)
        address = address_for_others(os.environ["MASTER_ADDR"])
        port = listening.getsockname()[1]
        self._board.set(PLACE, f"{address} {port} {self._password}")

    def _accept(self, listening: socket.socket) -> None:
        try:
            line = listening.accept()[0]
        except OSError:  # the caller has hung up, or this process may open no more files
            self._closed.wait(0.1)  # in the second case the selector asks again at once
            return
        self._selector.register(line, selectors.EVENT_READ, lambda: self._identify(line))

    def _identify(self, line: socket.socket) -> None:
        """The first words on a line: those of a rank, or of a stranger."""
        with suppress(OSError, ValueError):
            password, rank = line.recv(64).decode().split()
            if password == self._password:
                peer = int(rank)
                self._lines[peer] = line
                self._selector.modify(line, selectors.EVENT_READ, lambda: self._receive(peer, line))
                return
        self._drop(line)

    # ── the others ──

    def _connect(self) -> None:
        while not self._announced():
            if self._closed.wait(0.2):
                return
        address, port, password = self._board.get(PLACE).decode().split()
        try:
            line = socket.create_connection((address, int(port)), timeout=CONNECT_SECONDS)
            line.settimeout(None)
            line.send(f"{password} {self._world.rank}".encode())
        except OSError as error:
            self._cannot_connect(f"rank 0 at {address}:{port} ({in_brief(error)})")
            return
        self._lines[0] = line
        self._selector.register(line, selectors.EVENT_READ, lambda: self._receive(0, line))

    def _announced(self) -> bool:
        try:
            return self._board.check([PLACE])
        except RuntimeError:  # rank 0 is busy or gone
            return False

    def _cannot_connect(self, peer: str) -> None:
        if self._closed.is_set():
            return
        own_name = self._world.name(self._world.rank)
        sys.stderr.write(
            f"notice: {own_name} could not connect to {peer}: if a rank dies, this one finds it out"
            " by its silence alone; tools/preflight.py looks into the network\n"
        )


def _read(line: socket.socket) -> int | None:
    """The number that a peer sent; None where its process has ended."""
    try:
        message = line.recv(MESSAGE.size, socket.MSG_WAITALL)
    except ConnectionError:
        message = b""
    except OSError:  # the way there is cut, which says nothing of the process
        return ENDED
    return MESSAGE.unpack(message)[0] if len(message) == MESSAGE.size else None

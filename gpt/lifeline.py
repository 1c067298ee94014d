"""A connection from every rank to rank 0, which tells at once that a process has died, whatever it died of.

The kernel closes the connections of a process that ends, so neither the process, nor the launcher, nor the backend has
to tell: gloo's exchanges raise when a peer is gone, NCCL's wait for it on the device, and nobody hears of it. A host that
loses its power closes nothing; for such a silence there is gpt.watchdog.
"""

import os
import secrets
import selectors
import socket
import struct
import sys
import threading
from contextlib import suppress

from gpt.errors import in_brief
from gpt.host_report import own_address

PLACE = "lifeline"  # on the blackboard: where rank 0 listens, and the word by which it knows its own ranks
MESSAGE = struct.Struct("!i")  # a rank that is gone, or one of these:
ENDED, ALIVE = -1, -2
ALIVE_SECONDS = 60.0  # some firewalls drop a connection that says nothing for minutes
CONNECT_SECONDS = 10.0


class Lifeline:
    """Calls `gone(rank)`, once, from a thread, when another rank's process has ended without `close()`.

    Rank 0 hears of every other rank and passes it on, the others hear of rank 0. All ranks make one together.
    """

    def __init__(self, world, board, gone):
        self._world, self._board, self._gone = world, board, gone
        self._lines, self._open, self._closed = {}, True, threading.Event()  # {rank: its connection}
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, lambda: None)
        if world.rank == 0:
            self._listen()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self, in_order=True):
        """Listen no more. The others are told that this rank ends in good order, or take it for gone."""
        self._in_order = in_order
        self._closed.set()
        self._wake.send(b"\0")
        self._thread.join()
        self._wake.close()

    def _watch(self):
        if self._world.rank > 0:
            self._connect()
        while self._open and not self._closed.is_set():
            ready = self._selector.select(ALIVE_SECONDS)
            for key, _ in ready:
                if self._open and not self._closed.is_set():
                    key.data()
            if not ready:
                self._say(ALIVE)
        if self._closed.is_set() and self._in_order:
            self._say(ENDED)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def _hear(self, peer, line):
        said = _read(line)
        if said == ALIVE:
            return
        del self._lines[peer]
        self._drop(line)
        if said != ENDED:
            self._open = False
            gone = peer if said is None else said
            self._say(gone)  # before anything else: its end may soon be the end of this process too
            self._gone(gone)

    def _say(self, number):
        for line in self._lines.values():
            with suppress(OSError):  # that process has ended as well
                line.send(MESSAGE.pack(number))

    def _drop(self, line):
        self._selector.unregister(line)
        line.close()

    # ── rank 0 ──

    def _listen(self):
        both = socket.has_dualstack_ipv6()
        listening = socket.create_server(("", 0), family=socket.AF_INET6 if both else socket.AF_INET,
                                         backlog=self._world.size, dualstack_ipv6=both)  # fmt: skip
        self._selector.register(listening, selectors.EVENT_READ, lambda: self._accept(listening))
        self._word = secrets.token_hex(8)
        address = own_address(os.environ["MASTER_ADDR"])
        if address is None or address.startswith("127."):  # rank 0 is on that host, and the others know it by that name
            address = os.environ["MASTER_ADDR"]
        self._board.set(PLACE, f"{address} {listening.getsockname()[1]} {self._word}")

    def _accept(self, listening):
        try:
            line = listening.accept()[0]
        except OSError:  # it has hung up already; or this process may open no more files, and is asked again at once
            self._closed.wait(0.1)
            return
        self._selector.register(line, selectors.EVENT_READ, lambda: self._greet(line))

    def _greet(self, line):
        """The first words on a line: those of a rank, or of a stranger."""
        with suppress(OSError, ValueError):
            word, rank = line.recv(64).decode().split()
            if word == self._word:
                self._lines[int(rank)] = line
                self._selector.modify(line, selectors.EVENT_READ, lambda: self._hear(int(rank), line))
                return
        self._drop(line)

    # ── the others ──

    def _connect(self):
        while not self._announced():
            if self._closed.wait(0.2):
                return
        address, port, word = self._board.get(PLACE).decode().split()
        try:
            line = socket.create_connection((address, int(port)), timeout=CONNECT_SECONDS)
            line.settimeout(None)
            line.send(f"{word} {self._world.rank}".encode())
        except OSError as error:
            if not self._closed.is_set():
                sys.stderr.write(f"notice: {self._world.name(self._world.rank)} could not connect to rank 0 at {address}:{port} "
                                 f"({in_brief(error)}): if a rank dies, this one finds it out by its silence alone\n")  # fmt: skip
            return
        self._lines[0] = line
        self._selector.register(line, selectors.EVENT_READ, lambda: self._hear(0, line))

    def _announced(self):
        try:
            return self._board.check([PLACE])
        except RuntimeError:  # rank 0 is busy or gone
            return False


def _read(line):
    """The number that a peer sent; None where its process has ended."""
    try:
        message = line.recv(MESSAGE.size, socket.MSG_WAITALL)
    except ConnectionError:
        message = b""
    except OSError:  # the way there is cut, which says nothing of the process
        return ENDED
    return MESSAGE.unpack(message)[0] if message else None

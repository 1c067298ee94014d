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
from contextlib import suppress

from gpt.cluster.host_report import own_address
from gpt.errors import in_brief

# on the blackboard: where rank 0 listens, and the word that its own ranks say
PLACE = "lifeline"
MESSAGE = struct.Struct("!i")  # a rank that is gone, or one of these:
ENDED, ALIVE = -1, -2
ALIVE_SECONDS = 60.0  # some firewalls drop a connection that says nothing for minutes
CONNECT_SECONDS = 10.0


class Lifeline:
    """Calls `gone(rank)`, once, from a thread, when another rank's process ended without `close()`.

    Rank 0 hears of every other rank and passes it on, the others hear of rank 0. All make one.
    """

    def __init__(self, world, board, gone):
        self._world = world
        self._board = board
        self._gone = gone
        self._lines = {}  # {rank: the connection to it}
        self._open = True
        self._closed = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, lambda: None)
        if world.rank == 0:
            self._listen()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self, in_order=True):
        """Listen no more. The others are told that this rank ends in order, or take it for gone."""
        self._in_order = in_order
        self._closed.set()
        with suppress(OSError):  # the thread has heard of a death, and listens no more
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
            # before anything else: its end may soon be the end of this process too
            self._say(gone)
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
        family = socket.AF_INET6 if both else socket.AF_INET
        listening = socket.create_server(
            ("", 0), family=family, backlog=self._world.size, dualstack_ipv6=both
        )
        self._selector.register(listening, selectors.EVENT_READ, lambda: self._accept(listening))
        self._word = secrets.token_hex(8)
        address = own_address(os.environ["MASTER_ADDR"])
        if address is None or address.startswith("127."):
            address = os.environ["MASTER_ADDR"]  # this host, by the name that the others know
        self._board.set(PLACE, f"{address} {listening.getsockname()[1]} {self._word}")

    def _accept(self, listening):
        try:
            line = listening.accept()[0]
        except OSError:  # the caller has hung up, or this process may open no more files
            self._closed.wait(0.1)  # in the second case the selector asks again at once
            return
        self._selector.register(line, selectors.EVENT_READ, lambda: self._greet(line))

    def _greet(self, line):
        """The first words on a line: those of a rank, or of a stranger."""
        with suppress(OSError, ValueError):
            word, rank = line.recv(64).decode().split()
            if word == self._word:
                peer = int(rank)
                self._lines[peer] = line
                self._selector.modify(line, selectors.EVENT_READ, lambda: self._hear(peer, line))
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
            self._cannot_connect(f"rank 0 at {address}:{port} ({in_brief(error)})")
            return
        self._lines[0] = line
        self._selector.register(line, selectors.EVENT_READ, lambda: self._hear(0, line))

    def _announced(self):
        try:
            return self._board.check([PLACE])
        except RuntimeError:  # rank 0 is busy or gone
            return False

    def _cannot_connect(self, whither):
        if not self._closed.is_set():
            own = self._world.name(self._world.rank)
            sys.stderr.write(
                f"notice: {own} could not connect to {whither}: if a rank dies, this "
                "one finds it out by its silence alone; tools/preflight.py looks into "
                "the network\n"
            )


def _read(line):
    """The number that a peer sent; None where its process has ended."""
    try:
        message = line.recv(MESSAGE.size, socket.MSG_WAITALL)
    except ConnectionError:
        message = b""
    except OSError:  # the way there is cut, which says nothing of the process
        return ENDED
    return MESSAGE.unpack(message)[0] if len(message) == MESSAGE.size else None

"""A request to stop, from a signal or because the launcher is gone, that a run acts on between two
steps."""

import os
import signal
import socket
import threading
import time

import psutil

from gpt.cluster.launch import launchers, over_ssh

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# DeepSpeed's launcher kills what still runs so long after it was told to end
LAUNCHER_SECONDS = 30
GRACE_SECONDS = LAUNCHER_SECONDS - 5
WATCH_SECONDS = 0.5


class StopRequest:
    """`reason` is None until this process is asked to stop, then a few words.

    SIGTERM, SIGINT and SIGUSR1 ask; a SIGINT to one that was asked before leaves at once. A thread
    hears them, for Python's handlers run in the main thread and would wait until that comes back
    from CUDA. However long the answer takes, no signal ends this process: who sent it, a launcher
    or Slurm, does that when its own time is up.

    A launcher that dies tells its ranks nothing, and they would train on unseen, so a thread
    watches it: once it is gone this process is asked to stop too, and ends by itself unless all
    ranks have `heeded()` that within GRACE_SECONDS: some may no longer answer.
    """

    def __init__(self):
        self.reason = None
        self._asked = None
        self._closed = threading.Event()
        self._heeded = threading.Event()
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _only_wake) for number in SIGNALS}
        listening = threading.Thread(target=self._listen, daemon=True)
        watching = threading.Thread(target=self._watch, args=_watched(), daemon=True)
        self._threads = listening, watching
        for thread in self._threads:
            thread.start()

    def close(self):
        """Listen no more: the run is over."""
        self._closed.set()
        self._heeded.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._mouth.close()
        for thread in self._threads:
            thread.join()
        self._ear.close()

    def heeded(self):
        """All ranks know of the request, so all are alive: saving may take as long as it needs."""
        self._heeded.set()

    def _listen(self):
        while numbers := self._ear.recv(1):
            if numbers[0] in SIGNALS:  # Python writes down all signals that have a handler
                self._hear(numbers[0])

    def _hear(self, number):
        if number == signal.SIGINT and self.reason is not None:
            os._exit(130)
        self._ask(signal.Signals(number).name)

    def _ask(self, reason):
        self._asked = self._asked or time.monotonic()
        self.reason = self.reason or reason

    def seconds_ago(self) -> float | None:
        """Seconds since this process was asked to stop; None if only another rank was."""
        return None if self._asked is None else time.monotonic() - self._asked

    def _watch(self, watched, remote):
        while all(_parent_of(pid) == parent for pid, parent in watched) and (
            remote is None or _lives(remote)
        ):
            if self._closed.wait(WATCH_SECONDS):
                return
        self._ask("the launcher is gone")
        if not self._heeded.wait(GRACE_SECONDS):
            os._exit(1)


def _only_wake(number, frame):
    """A handler that does nothing: Python writes only signals that have one to the descriptor."""


def _watched() -> tuple:
    """([(process, its parent)] of this process and of each launcher above it that could die alone,
    the one beyond ssh)."""
    above = launchers()
    pids = [process.pid for process in above]
    return list(zip([os.getpid(), *pids], pids)), over_ssh(above)


def _parent_of(pid):
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None


def _lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

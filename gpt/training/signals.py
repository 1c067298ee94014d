"""A request to stop, from a signal or because the launcher is gone, that a run acts on between two
steps."""

import os
import signal
import socket
import threading
import time
from types import FrameType

import psutil

from gpt.cluster.launch import launchers, over_ssh, own_exception

# of a person, a terminal that is gone, a scheduler (Grid Engine: SIGUSR2), a limit on CPU time
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
# DeepSpeed's launcher kills what still runs so long after it was told to end
LAUNCHER_SECONDS = 30
GRACE_SECONDS = LAUNCHER_SECONDS - 5
WATCH_SECONDS = 0.5


def heard() -> list[signal.Signals]:
    """The signals that ask to stop, here."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not is_ignored]


class StopRequest:
    """`reason` is None until this process is asked to stop, then a few words.

    SIGNALS ask; a second SIGINT leaves at once. SIGHUP is let be where it is ignored, as under
    nohup. A SIGTERM beside the first does
    not count: at Ctrl-C in a terminal DeepSpeed's launcher sends one to its ranks. A thread
    hears them, for Python's handlers run in the main thread and would wait until that comes back
    from CUDA. However long the answer takes, no signal ends this process: who sent it, a launcher
    or Slurm, does that when its own time is up.

    A launcher that dies tells its ranks nothing, and they would train on unseen, so a thread
    watches it: once it is gone this process is asked to stop too, and ends by itself unless all
    ranks have `heeded()` that within GRACE_SECONDS: some may no longer answer.
    """

    def __init__(self):
        self.reason: str | None = None
        self._requested_at: float | None = None
        # looked for now: at Ctrl-C it may be gone before this process has saved
        self._launcher = own_exception(launchers())
        self._interrupted = False  # by a SIGINT
        self._closed = threading.Event()
        self._heeded = threading.Event()
        # Python writes the number of every signal that has a handler into the one end
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._handlers_before = {}
        for number in heard():
            self._handlers_before[number] = signal.signal(number, _only_wake)
        listening = threading.Thread(target=self._listen, daemon=True)
        watching = threading.Thread(target=self._watch, args=_watched(), daemon=True)
        self._threads = listening, watching
        for thread in self._threads:
            thread.start()

    def run_is_over(self) -> None:
        """Watch the launcher no more. Signals still do nothing: one that comes before the process
        has ended would else give a run that is saved the exit code of one that was killed."""
        self._closed.set()
        self._heeded.set()

    def close(self) -> None:
        """Listen no more, and give the signals back, in a process that goes on."""
        self.run_is_over()
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._sender.close()
        for thread in self._threads:
            thread.join()
        self._receiver.close()

    def heeded(self) -> None:
        """All ranks know of the request, so all are alive: saving may take as long as it needs."""
        self._heeded.set()

    def _listen(self) -> None:
        while received := self._receiver.recv(1):
            number = received[0]
            if number in SIGNALS:  # others may have handlers too
                self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                os._exit(130)
            self._interrupted = True
        self._request(signal.Signals(number).name)

    def _request(self, reason: str) -> None:
        self._requested_at = self._requested_at or time.monotonic()
        self.reason = self.reason or reason

    def seconds_ago(self) -> float | None:
        """Seconds since this process was asked to stop; None if only another rank was."""
        if self._requested_at is None:
            return None
        return time.monotonic() - self._requested_at

    def launchers_part(self, reason: str) -> str | None:
        """What this process's launcher may add to the run's last line, in a sentence, after a stop
        for `reason`; None where it adds nothing."""
        if self._launcher is None or reason not in (signal.SIGINT.name, signal.SIGTERM.name):
            return None
        name, exception = self._launcher
        return (
            f"{name} may still print its own {exception}, and end with an exit code other than 0:"
            " the run is saved"
        )

    def _watch(self, parents: list[tuple[int, int]], remote: psutil.Process | None) -> None:
        while _all_live(parents, remote):
            if self._closed.wait(WATCH_SECONDS):
                return
        self._request("the launcher is gone")
        if not self._heeded.wait(GRACE_SECONDS):
            os._exit(1)


def _only_wake(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing: Python writes only signals that have one to the descriptor."""


def _watched() -> tuple[list[tuple[int, int]], psutil.Process | None]:
    """([(process, its parent)] of this process and of each launcher above it that could die alone,
    the one beyond ssh)."""
    above = launchers()
    pids = [process.pid for process in above]
    return list(zip([os.getpid(), *pids], pids)), over_ssh(above)


def _all_live(parents: list[tuple[int, int]], remote: psutil.Process | None) -> bool:
    """Whether every process still has its parent, and the one beyond ssh runs."""
    if any(_parent_of(pid) != parent for pid, parent in parents):
        return False
    return remote is None or _runs(remote)


def _parent_of(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

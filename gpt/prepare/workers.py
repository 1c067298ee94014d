"""Tasks on all cores: processes that end with their parent, however it ends, and whose death is
noticed."""

import multiprocessing
import signal
import time
from multiprocessing.connection import wait

from gpt.errors import RunError, UserError, in_words
from gpt.wording import duration

SECONDS_BETWEEN_REPORTS = 10


def spread(work, tasks, count: int, report):
    """Call `work(task, report)` for every task on `count` processes; yield the results as they
    come.

    work: picklable. report(number): called here, now and then, with the sum of what `work` has
    reported since. count 1: in this process. Raises the first UserError that `work` raises, and
    RunError where a process is lost.
    """
    if count == 1:
        for task in tasks:
            yield work(task, report)
        return
    context = multiprocessing.get_context("spawn")
    tasks = iter(tasks)
    processes, busy = [], {}
    try:
        for _, task in zip(range(count), tasks):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(work, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            _talk(ours.send, processes[-1], task)
            busy[ours] = processes[-1]
        while busy:
            for connection in wait(list(busy)):
                kind, value = _talk(connection.recv, busy[connection])
                if kind == "mistake":
                    raise UserError(value)
                if kind == "report":
                    report(value)
                    continue
                task = next(tasks, None)
                if task is None:
                    del busy[connection]
                    connection.close()
                else:
                    _talk(connection.send, busy[connection], task)
                yield value
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _talk(act, process, *args):
    """Send to, or receive from, a process."""
    try:
        return act(*args)
    except (EOFError, ConnectionError) as error:
        process.join()
        raise RunError(
            f"a worker process ended with exit code {process.exitcode}, for want of memory perhaps:"
            " what is done is kept, the same command goes on; fewer --workers need less"
        ) from error


def _serve(work, connection):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        while True:
            task = connection.recv()
            sums = _Sums(connection)
            try:
                done = work(task, sums.add)
            except Exception as caught:
                error = in_words(caught)
                if not isinstance(error, UserError):
                    raise
                connection.send(("mistake", str(error)))
                return
            sums.send()
            connection.send(("done", done))
    except (EOFError, ConnectionError):
        pass  # all is done, or the parent is gone


class _Sums:
    """Sends sums of numbers, twice a second."""

    def __init__(self, connection):
        self._connection = connection
        self._sum = 0
        self._sent = time.monotonic()

    def add(self, number):
        self._sum += number
        if time.monotonic() - self._sent > 0.5:
            self.send()

    def send(self):
        self._connection.send(("report", self._sum))
        self._sum = 0
        self._sent = time.monotonic()


class Progress:
    """Says every few seconds how far the encoding is. sizes: {unit: bytes of input}. plain: whether
    those are bytes of text, so that a unit in work counts too."""

    def __init__(self, sizes: dict, plain: bool, say):
        self._sizes = sizes
        self._plain = plain
        self._say = say
        self._total = sum(sizes.values())
        self._text = 0
        self._finished = 0
        self._began = time.monotonic()
        self._last = self._began

    def advance(self, size: int):
        """`size` bytes of text more were encoded."""
        self._text += size
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_REPORTS:
            self._last = now
            spent = now - self._began
            done = min(self._text, self._total) if self._plain else self._finished
            eta = duration(spent * (self._total - done) / done) if done else "unknown"
            self._say(
                f"{self._text / 1e6:,.0f} MB of text encoded, {self._text / 1e6 / spent:.1f} MB/s; "
                f"{done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB of files done, ETA {eta}"
            )

    def finish(self, number: int):
        """A unit is done."""
        self._finished += self._sizes[number]

"""Tasks on all cores: processes that end with their parent, however it ends, and whose death is
noticed."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from gpt.errors import RunError, UserError, in_words
from gpt.wording import duration

# Between two lines that say how far the encoding is.
SECONDS_BETWEEN_REPORTS = 10

# Between two sums that a worker process sends.
SECONDS_BETWEEN_SUMS = 0.5


def spread(
    work: Callable[[Any, Callable[[int], object]], Any],
    tasks: Iterable[Any],
    count: int,
    report: Callable[[int], object],
) -> Iterator[Any]:
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
    busy: dict[Any, BaseProcess] = {}  # by the connection to each
    processes = []
    try:
        for _, task in zip(range(count), tasks):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            processes.append(process)
            process.start()
            theirs.close()
            _talk(ours.send, process, task)
            busy[ours] = process
        while busy:
            ready: list[Any] = wait(list(busy))
            for connection in ready:
                kind, value = _talk(connection.recv, busy[connection])
                if kind == "mistake":
                    raise value
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


def _talk(act: Callable[..., Any], process: BaseProcess, *args: Any) -> Any:
    """Send to, or receive from, a process."""
    try:
        return act(*args)
    except (EOFError, ConnectionError) as error:
        process.join()
        raise RunError(
            f"a worker process ended with exit code {process.exitcode}, for want of memory perhaps:"
            " what is done is kept, the same command goes on; fewer --workers need less"
        ) from error


def _serve(work: Callable[[Any, Callable[[int], object]], Any], connection: Connection) -> None:
    """What a worker process does: tasks come in; ("report", sum), ("done", result) and
    ("mistake", UserError) go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        while True:
            task = connection.recv()
            sums = _Sums(connection)
            try:
                result = work(task, sums.add)
            except Exception as caught:
                error = in_words(caught)
                if isinstance(error, MemoryError):
                    error = UserError(
                        "a worker process had not enough memory",
                        mend="give fewer --workers, or a smaller --largest_row",
                    )
                if not isinstance(error, UserError):
                    raise
                connection.send(("mistake", error))
                return
            sums.send()
            connection.send(("done", result))
    except (EOFError, ConnectionError):
        pass  # all is done, or the parent is gone


class _Sums:
    """Sends sums of numbers, twice a second."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._sum = 0
        self._last_sent = time.monotonic()

    def add(self, number: int) -> None:
        self._sum += number
        if time.monotonic() - self._last_sent > SECONDS_BETWEEN_SUMS:
            self.send()

    def send(self) -> None:
        self._connection.send(("report", self._sum))
        self._sum = 0
        self._last_sent = time.monotonic()


class EncodingReport:
    """Says every few seconds how far the encoding is.

    sizes: {unit: bytes of input}. plain: whether those are bytes of text, so that a unit in work
    counts too.
    """

    def __init__(self, sizes: dict[int, int], plain: bool, say: Callable[[str], object]):
        self._sizes = sizes
        self._plain = plain
        self._say = say
        self._total = sum(sizes.values())
        self._text = 0
        self._finished = 0
        self._began = time.monotonic()
        self._last_report = self._began

    def advance(self, size: int) -> None:
        """`size` bytes of text more were encoded."""
        self._text += size
        now = time.monotonic()
        if now - self._last_report < SECONDS_BETWEEN_REPORTS:
            return
        self._last_report = now
        seconds = now - self._began
        done = min(self._text, self._total) if self._plain else self._finished
        eta = "unknown"
        if done:
            eta = duration(seconds * (self._total - done) / done)
        text = self._text / 1e6
        self._say(
            f"{text:,.0f} MB of text encoded, {text / seconds:.1f} MB/s;"
            f" {done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB of files done, ETA {eta}"
        )

    def finish(self, number: int) -> None:
        """A unit is done."""
        self._finished += self._sizes[number]

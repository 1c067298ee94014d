"""Time without that for which a process was suspended: by SIGSTOP, by `scontrol suspend`, in a
frozen container. (While a machine sleeps, its monotonic clock stands.)"""

import threading
import time

TICK_SECONDS = 0.5
# a process none of whose threads has run for so long does not only wait for a processor
LEAST_SECONDS = 20.0


class RunningTime:
    """A clock that stands while its process is suspended.

    A thread looks at the time twice a second. Where it comes back late by LEAST_SECONDS, and the
    process has hardly computed meanwhile, nothing of the process has run: that is left out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._suspended = 0.0
        self._looked_at = time.perf_counter()
        self._computed = time.process_time()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look_often, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _look_often(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            self.now()

    def now(self) -> float:
        """Seconds since some time, like time.perf_counter's."""
        with self._lock:
            now = time.perf_counter()
            computed = time.process_time()
            passed = now - self._looked_at
            if passed >= LEAST_SECONDS and computed - self._computed < passed / 2:
                self._suspended += passed
            self._looked_at = now
            self._computed = computed
            return now - self._suspended

    @property
    def suspended(self) -> float:
        """Seconds that were left out so far."""
        return self._suspended

"""A run that hangs is worse than one that dies: after a while without progress all ranks say where they are, and end."""

import os
import sys
import threading
import time
import traceback

ALARM = "alarm"
STARTING_SECONDS = 1800.0  # for building the model, loading it, and a first step that may have to compile


class Watchdog:
    """A thread per rank that wants a sign of progress every `limit` seconds; 0 or less: none is wanted. Until the first
    micro-batch is computed it waits STARTING_SECONDS if that is longer.

    Each rank's thread tells the others on the blackboard that it is alive and how far its rank has come. Once one has
    waited too long all write their Python stacks to stderr, with a line that names the rank that is behind, and the
    process ends with exit code 1. Time during which the process itself was suspended does not count.
    """

    def __init__(self, world, limit: float):
        self._world, self._limit = world, limit
        self._count, self._place = 0, "starting"
        if limit <= 0:
            return
        self._tick = min(5.0, limit / 4)
        self._board, self._asking = world.blackboard(2 * self._tick), None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def progress(self, place: str):
        """This rank has come to `place`."""
        self._count, self._place = self._count + 1, place

    def close(self):
        if self._limit > 0:
            self._closed.set()
            self._thread.join()

    def _watch(self):
        silent, seen, ticks, before = 0.0, -1, 0, time.monotonic()
        while not self._closed.wait(self._tick):
            now = time.monotonic()
            silent = silent + min(now - before, 2 * self._tick) if self._count == seen else 0.0
            before, seen, ticks = now, self._count, ticks + 1
            patience = self._limit if self._count > 2 else max(self._limit, STARTING_SECONDS)
            if silent >= patience or not self._tell(ticks):
                return self._give_up(ticks)

    def _tell(self, ticks) -> bool:
        """Show this rank's place to the others; False if one of them has given up."""
        if self._board is None:
            return True
        try:
            return self._ask(lambda: self._show(ticks) or not self._board.check([ALARM]))
        except RuntimeError:  # rank 0 is busy or gone; what matters is whether this rank itself comes on
            return True

    def _show(self, ticks):
        self._board.set(f"rank {self._world.rank}", f"{ticks} {self._count} {self._place}")

    def _ask(self, question):
        """What the blackboard answers. Raises RuntimeError if it does not: it waits for ever for a suspended rank 0."""
        if self._asking is not None and self._asking.is_alive():
            raise RuntimeError("the blackboard has not answered yet")
        answers = []

        def ask():
            try:
                answers.append(question())
            except RuntimeError:
                pass

        self._asking = threading.Thread(target=ask, daemon=True)
        self._asking.start()
        self._asking.join(self._tick)
        if not answers:
            raise RuntimeError("the blackboard does not answer")
        return answers[0]

    def _give_up(self, ticks):
        if self._closed.is_set():
            return
        try:
            if self._board is not None:
                self._ask(lambda: self._board.set(ALARM, "1") or True)
            late = self._late(ticks)
        except RuntimeError:
            late = "rank 0, whose process does not answer, or its host is out of reach"
        stacks = "".join(f"\n  thread {thread_id:#x}, most recent call last:\n" + "".join(traceback.format_stack(frame))
                         for thread_id, frame in sys._current_frames().items())  # fmt: skip
        sys.stderr.write(f"[rank {self._world.rank}] error: no progress for {self._limit:g} s (gpt.step_timeout) while "
                         f"{self._place}; late: {late}. The same command goes on from the latest checkpoint. "
                         f"Python stacks:{stacks}\n")  # fmt: skip
        sys.stderr.flush()
        time.sleep(2 * self._tick)  # the others find the alarm, and write theirs, before a launcher ends them
        os._exit(1)

    def _late(self, ticks) -> str:
        """Which rank is behind, as far as it can be told."""
        if self._board is None:
            return "the only rank"
        first = self._ask(self._places)
        for later in range(1, 4):  # a rank that is alive moves on its tick meanwhile
            time.sleep(self._tick)
            self._ask(lambda: self._show(ticks + later) or True)
        second = self._ask(self._places)
        dead = [rank for rank in second if second[rank][0] == first.get(rank, (-1,))[0] and rank != self._world.rank]
        missing = [rank for rank in range(self._world.size) if rank not in second]
        if dead or missing:
            return f"rank {', '.join(map(str, sorted(dead + missing)))}, which shows no sign of life"
        least = min(count for _, count, _ in second.values())
        behind = [f"rank {rank}, {place}" for rank, (_, count, place) in sorted(second.items()) if count == least]
        return "; ".join(behind) if len(behind) < self._world.size else f"none, all ranks are {self._place}"

    def _places(self) -> dict:
        """{rank: (ticks of its thread, progress, place)}"""
        found = {}
        for rank in range(self._world.size):
            if self._board.check([f"rank {rank}"]):
                ticks, count, place = self._board.get(f"rank {rank}").decode().split(" ", 2)
                found[rank] = int(ticks), int(count), place
        return found

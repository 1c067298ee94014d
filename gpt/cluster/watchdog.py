"""A run that hangs is worse than one that dies: after a while without progress all ranks say where
they are, and end."""

import os
import sys
import threading
import time
import traceback

ALARM = "alarm"
ENDED = -1  # in the place of a count of ticks: this rank is not watched any more
# for building the model, loading it, and a first step that may have to compile
STARTING_SECONDS = 1800.0
# a process whose threads all stand still so long does not only wait for a disk
SILENCE_SECONDS = 300.0
GPU_SILENCE_SECONDS = 60.0  # NCCL's exchanges with a host that is cut off do not break


class Watchdog:
    """A thread per rank that wants a sign of progress every `limit` seconds; 0 or less: none is
    wanted. Until the first micro-batch is computed it waits STARTING_SECONDS if that is longer.

    Each rank's thread tells the others on the blackboard that it is alive and how far its rank has
    come. Once one has waited too long all write their Python stacks to stderr, with a line that
    names the rank that is behind, and the process ends with exit code 1. So they do, without
    waiting that long, where the thread of a rank has been silent for SILENCE_SECONDS, on GPUs
    GPU_SILENCE_SECONDS (rank 0 listens to all, the others to rank 0): its host is down, or the
    network between them. Time during which the process itself was suspended does not count.
    """

    def __init__(self, world, limit: float):
        self._world = world
        self._limit = limit
        self._count = 0
        self._ticks = 0
        self.place = "starting"
        self.giving_up = False
        # {rank: its last sign of life}, {rank: seconds since}
        self._heard = {}
        self._silent = {}
        self._patience = GPU_SILENCE_SECONDS if world.device.type == "cuda" else SILENCE_SECONDS
        if limit <= 0:
            return
        self._tick = min(5.0, limit / 4)
        self._board = world.blackboard(2 * self._tick)
        self._asking = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def progress(self, place: str):
        """This rank has come to `place`."""
        self._count = self._count + 1
        self.place = place

    def close(self):
        if self._limit <= 0:
            return
        self._stop_watching()
        if self._board is not None:
            try:
                self._ask(lambda: self._show(ENDED) or True)
            except RuntimeError:
                pass  # rank 0 has ended before

    def _stop_watching(self):
        self._closed.set()
        self._thread.join()

    def _watch(self):
        waited = 0.0
        seen = -1
        before = time.monotonic()
        while not self._closed.wait(self._tick):
            now = time.monotonic()
            passed, before = min(now - before, 2 * self._tick), now
            waited = waited + passed if self._count == seen else 0.0
            seen = self._count
            self._ticks = self._ticks + 1
            patience = self._limit if self._count > 2 else max(self._limit, STARTING_SECONDS)
            if waited >= patience or not self._tell():
                return self._give_up(f"no progress for {patience:g} s (gpt.step_timeout)")
            if self._board is not None and self._listen(passed) >= self._patience:
                return self._give_up(f"no sign of life from another rank for {self._patience:g} s")

    def _listen(self, passed) -> float:
        """Seconds for which the most silent of the other ranks has given no sign of life: rank 0
        listens to all of them, the others to the blackboard that it keeps."""
        rank_0 = self._world.rank == 0
        try:
            signs = (
                self._ask(self._places)
                if rank_0
                else {0: (self._ask(lambda: self._board.add("questions", 1)),)}
            )
        except RuntimeError:
            signs = {}
        for rank in range(1, self._world.size) if rank_0 else (0,):
            sign = signs.get(rank, (None,))[0]
            alive = sign == ENDED or (sign is not None and sign != self._heard.get(rank))
            self._silent[rank] = 0.0 if alive else self._silent.get(rank, 0.0) + passed
            self._heard[rank] = sign
        return max(self._silent.values())

    def _tell(self) -> bool:
        """Show this rank's place to the others; False if one of them has given up."""
        if self._board is None:
            return True
        try:
            return self._ask(lambda: self._show(self._ticks) or not self._board.check([ALARM]))
        except RuntimeError:  # rank 0 is busy or gone: _listen() counts how long
            return True

    def _show(self, ticks):
        self._board.set(f"rank {self._world.rank}", f"{ticks} {self._count} {self.place}")

    def _ask(self, question):
        """What the blackboard answers. Raises RuntimeError if it does not: it waits for ever for a
        suspended rank 0."""
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

    def _give_up(self, why):
        if self._closed.is_set():
            return
        self.giving_up = True
        try:
            if self._board is not None:
                self._ask(lambda: self._board.set(ALARM, "1") or True)
            late = self._late()
        except RuntimeError:
            late = self._rank_0_is_gone()
        stacks = "".join(
            f"\n  thread {thread_id:#x}, most recent call last:\n"
            + "".join(traceback.format_stack(frame))
            for thread_id, frame in sys._current_frames().items()
        )
        sys.stderr.write(
            f"[{self._world.name(self._world.rank)}] error: {why} while {self.place}; late: {late}."
            f" The same command goes on from the latest checkpoint. Python stacks:{stacks}\n"
        )
        sys.stderr.flush()
        # the others find the alarm, and write theirs, before a launcher ends them
        time.sleep(2 * self._tick)
        os._exit(1)

    def who_is_gone(self) -> str:
        """For a rank that has lost its connection to others: which of them do not live any more.
        Ends the watching."""
        if self._limit <= 0 or self._board is None:
            return "unknown, since gpt.step_timeout is off"
        self._stop_watching()
        try:
            late = self._late()
        except RuntimeError:
            return self._rank_0_is_gone()
        if self._world.rank == 0:
            time.sleep(2 * self._tick)  # the others still ask
        return late

    def _rank_0_is_gone(self):
        return f"{self._world.name(0)}, whose process does not answer, or its host is out of reach"

    def _late(self) -> str:
        """Which rank is behind, as far as it can be told."""
        if self._board is None:
            return "the only rank"
        world, first = self._world, self._ask(self._places)
        for later in range(1, 4):  # a rank that is alive moves on its tick meanwhile
            time.sleep(self._tick)
            self._ask(lambda: self._show(self._ticks + later) or True)
        second = self._ask(self._places)
        dead = [
            rank
            for rank in range(world.size)
            if rank not in second or second[rank][0] == first.get(rank, (None,))[0]
        ]
        dead = [rank for rank in dead if rank != world.rank]
        if dead:
            ended = [rank for rank in dead if rank in second and second[rank][0] == ENDED]
            return "; ".join(
                f"{', '.join(map(world.name, ranks))}, which {what}"
                for ranks, what in (
                    (ended, "has ended"),
                    ([rank for rank in dead if rank not in ended], "shows no sign of life"),
                )
                if ranks
            )
        least = min(count for _, count, _ in second.values())
        behind = [
            f"{world.name(rank)}, {place}"
            for rank, (_, count, place) in sorted(second.items())
            if count == least
        ]
        return (
            "; ".join(behind) if len(behind) < world.size else f"none, all ranks are {self.place}"
        )

    def _places(self) -> dict:
        """{rank: (ticks of its thread, progress, place)}"""
        found = {}
        for rank in range(self._world.size):
            if self._board.check([f"rank {rank}"]):
                ticks, count, place = self._board.get(f"rank {rank}").decode().split(" ", 2)
                found[rank] = int(ticks), int(count), place
        return found

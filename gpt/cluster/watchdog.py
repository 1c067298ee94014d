"""A run that hangs is worse than one that dies: after a while without progress all ranks say where
they are, and end."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch.distributed

from gpt.cluster.world import World

ALARM = "alarm"
ENDED = -1  # in the place of a count of ticks: this rank is not watched any more
# for building the model, loading it, and a first step that may have to compile
STARTING_SECONDS = 1800.0
# a process whose threads all stand still so long does not only wait for a disk
SILENCE_SECONDS = 300.0
GPU_SILENCE_SECONDS = 60.0  # NCCL's exchanges with a host that is cut off do not break


class _State(NamedTuple):
    """What a rank tells the others of itself."""

    ticks: int  # of its thread, or ENDED
    progress: int  # how often it has shown some
    place: str


class Watchdog:
    """A thread per rank that wants a sign of progress every `limit` seconds; 0 or less: none is
    wanted. Until the first micro-batch is computed it waits STARTING_SECONDS if that is longer,
    whatever comes before it, an evaluation too.

    Each rank's thread tells the others on the blackboard that it is alive and how far its rank has
    come. Once one has waited too long all write their Python stacks to stderr, with a line that
    names the rank that is behind, and the process ends with exit code 1. So they do, without
    waiting that long, where the thread of a rank has been silent for SILENCE_SECONDS, on GPUs
    GPU_SILENCE_SECONDS (rank 0 listens to all, the others to rank 0): its host is down, or the
    network between them. Time during which the process itself was suspended does not count.
    """

    def __init__(self, world: World, limit: float):
        self._world = world
        self._limit = limit
        # seconds without progress that are too many
        self._patience = max(limit, STARTING_SECONDS)
        self._count = 0
        self._ticks = 0
        self.place = "starting"
        self.giving_up = False
        # {rank: its last sign of life}, {rank: seconds since}
        self._heard: dict[int, int | None] = {}
        self._silent: dict[int, float] = {}
        on_gpu = world.device.type == "cuda"
        self._silence_limit = GPU_SILENCE_SECONDS if on_gpu else SILENCE_SECONDS
        if limit <= 0:
            return
        self._tick = min(5.0, limit / 4)
        self._board = world.blackboard(2 * self._tick)
        self._query_thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def progress(self, place: str) -> None:
        """This rank has come to `place`."""
        self._count += 1
        self.place = place

    def first_micro_batch_done(self) -> None:
        """What had to be compiled is: from now on `limit` holds. To be told after the progress that
        it was."""
        self._patience = self._limit

    def close(self) -> None:
        if self._limit <= 0:
            return
        self._stop_watching()
        if self._board is not None:
            try:
                self._query(lambda: self._publish(ENDED))
            except RuntimeError:
                pass  # rank 0 has ended before

    def _stop_watching(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        waited = 0.0
        last_count = -1
        before = time.monotonic()
        while not self._closed.wait(self._tick):
            now = time.monotonic()
            passed = min(now - before, 2 * self._tick)
            before = now
            # read before the count: a shorter patience then never meets the time before that count
            patience = self._patience
            count = self._count
            waited = waited + passed if count == last_count else 0.0
            last_count = count
            self._ticks += 1
            if waited >= patience or self._others_gave_up():
                return self._give_up(f"no progress for {patience:g} s (gpt.step_timeout)")
            if self._board is not None and self._listen(passed) >= self._silence_limit:
                silence = f"no sign of life from another rank for {self._silence_limit:g} s"
                return self._give_up(silence)

    def _listen(self, passed: float) -> float:
        """Seconds for which the most silent of the other ranks has given no sign of life: rank 0
        listens to all of them, the others to the blackboard that it keeps."""
        try:
            signs = self._signs_of_life()
        except RuntimeError:
            signs = {}
        others = range(1, self._world.size) if self._world.rank == 0 else (0,)
        for rank in others:
            sign = signs.get(rank)
            is_new = sign is not None and sign != self._heard.get(rank)
            if is_new or sign == ENDED:
                self._silent[rank] = 0.0
            else:
                self._silent[rank] = self._silent.get(rank, 0.0) + passed
            self._heard[rank] = sign
        return max(self._silent.values())

    def _signs_of_life(self) -> dict[int, int]:
        """{rank: a number that changes while it lives}. Raises RuntimeError as _query does."""
        if self._world.rank == 0:
            return {rank: state.ticks for rank, state in self._query(self._states).items()}
        return {0: self._query(lambda: self._shared().add("questions", 1))}

    def _others_gave_up(self) -> bool:
        """Show this rank's place to the others; returns whether one of them has given up."""
        if self._board is None:
            return False
        try:
            return self._query(self._publish_and_look)
        except RuntimeError:  # rank 0 is busy or gone: _listen() counts how long
            return False

    def _publish_and_look(self) -> bool:
        self._publish(self._ticks)
        return self._shared().check([ALARM])

    def _publish(self, ticks: int) -> None:
        self._shared().set(f"rank {self._world.rank}", f"{ticks} {self._count} {self.place}")

    def _shared(self) -> torch.distributed.Store:
        assert self._board is not None, "a rank alone asks nobody"
        return self._board

    def _query(self, query: Callable[[], Any]) -> Any:
        """What the blackboard answers. Raises RuntimeError if it does not: it waits for ever for a
        suspended rank 0."""
        if self._query_thread is not None and self._query_thread.is_alive():
            raise RuntimeError("the blackboard has not answered yet")
        answers = []

        def run() -> None:
            with suppress(RuntimeError):
                answers.append(query())

        self._query_thread = threading.Thread(target=run, daemon=True)
        self._query_thread.start()
        self._query_thread.join(self._tick)
        if not answers:
            raise RuntimeError("the blackboard does not answer")
        return answers[0]

    def _give_up(self, why: str) -> None:
        if self._closed.is_set():
            return
        self.giving_up = True
        try:
            if self._board is not None:
                self._query(lambda: self._shared().set(ALARM, "1"))
            late = self._late()
        except RuntimeError:
            late = self._rank_0_is_gone()
        name = self._world.name(self._world.rank)
        sys.stderr.write(
            f"[{name}] error: {why} while {self.place}; late: {late}. The same command goes on from"
            f" the latest checkpoint. Python stacks:{_stacks()}\n"
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

    def _rank_0_is_gone(self) -> str:
        return f"{self._world.name(0)}, whose process does not answer, or its host is out of reach"

    def _late(self) -> str:
        """Which rank is behind, as far as it can be told."""
        if self._board is None:
            return "the only rank"
        earlier = self._query(self._states)
        for later in range(1, 4):  # a rank that is alive moves on its tick meanwhile
            time.sleep(self._tick)
            self._query(partial(self._publish, self._ticks + later))
        states = self._query(self._states)
        return self._dead(earlier, states) or self._slowest(states)

    def _dead(self, earlier: dict[int, _State], states: dict[int, _State]) -> str:
        """Ranks whose threads did not tick between the two, and what is known of them."""
        ended = []
        silent = []
        for rank in range(self._world.size):
            if rank == self._world.rank or _ticked(earlier.get(rank), states.get(rank)):
                continue
            name = self._world.name(rank)
            if rank in states and states[rank].ticks == ENDED:
                ended.append(name)
            else:
                silent.append(name)
        groups = []
        if ended:
            groups.append(f"{', '.join(ended)}, which has ended")
        if silent:
            groups.append(f"{', '.join(silent)}, which shows no sign of life")
        return "; ".join(groups)

    def _slowest(self, states: dict[int, _State]) -> str:
        least = min(state.progress for state in states.values())
        behind = [rank for rank in sorted(states) if states[rank].progress == least]
        if len(behind) == self._world.size:
            return f"none, all ranks are {self.place}"
        return "; ".join(f"{self._world.name(rank)}, {states[rank].place}" for rank in behind)

    def _states(self) -> dict[int, _State]:
        """What every rank that has published anything published last."""
        states = {}
        for rank in range(self._world.size):
            if self._shared().check([f"rank {rank}"]):
                ticks, count, place = self._shared().get(f"rank {rank}").decode().split(" ", 2)
                states[rank] = _State(int(ticks), int(count), place)
        return states


def _ticked(earlier: _State | None, later: _State | None) -> bool:
    if later is None:
        return False
    return earlier is None or later.ticks != earlier.ticks


def _stacks() -> str:
    """Python stacks of all threads of this process."""
    stacks = ""
    for thread_id, frame in sys._current_frames().items():
        stacks += f"\n  thread {thread_id:#x}, most recent call last:\n"
        stacks += "".join(traceback.format_stack(frame))
    return stacks

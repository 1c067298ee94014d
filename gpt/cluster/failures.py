"""A rank that fails: it tells why, once for the whole run, and all the others end without
a word."""

import os
import re
import threading
import time
from pathlib import Path

from gpt.cluster.lifeline import Lifeline
from gpt.cluster.watchdog import Watchdog
from gpt.cluster.world import World
from gpt.errors import RunError, SilentError, UserError, in_words, tell

FAILED = "failed"
POLL_SECONDS = 2.0
BOARD_SECONDS = 10.0


class Failures:
    """What becomes of this rank when it, or another one, fails.

    A rank that fails notes it on the blackboard and tells why. A thread per rank looks there and
    ends its process, with exit code 1, a few seconds later, so that nobody waits in a collective
    for one that will not come. A rank that dies without a note is known by its lifeline, whatever
    the main threads are waiting in; the first to note that tells which one it was. Where a
    connection breaks and no process is known to have died, `watchdog` finds out who is silent.

    reports: the folder that gets the traceback of what nobody foresaw.
    """

    def __init__(self, world: World, watchdog: Watchdog, reports: Path):
        self._world = world
        self._reports = reports
        self._watchdog = watchdog
        self._board = world.blackboard(BOARD_SECONDS)
        self._closed = threading.Event()
        self._telling = threading.Lock()
        self._told = False
        if self._board is not None:
            self._lifeline = Lifeline(world, self._board, self._leave_without)
            threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """The run is over for this rank, unless it has ended by an error."""
        if not self._closed.is_set():
            self._closed.set()
            if self._board is not None:
                self._lifeline.close()

    def end(self, error: Exception, step: int) -> Exception:
        """Tell an error that came after `step` and that the ranks did not agree on, unless another
        rank has told one; returns the exception to leave with."""
        error = in_words(error)
        reason = self._world.lost(error)
        # found out before the note, on which the other ranks would end: they still have to show
        # that they live
        if reason:
            explained: Exception = self._explained_loss(reason, step)
        else:
            explained = self._explained(error, step)
        self._closed.set()
        self._tell_if_first(explained)
        if self._board is not None:
            self._lifeline.close(in_order=False)
        self._leave_last()
        return SilentError(2 if isinstance(error, UserError) else 1)

    def _leave_without(self, rank: int) -> None:
        """The process of a rank has ended, and it has not said why."""
        if self._closed.is_set() or self._watchdog.giving_up:
            return
        name = self._world.name(rank)
        own_name = self._world.name(self._world.rank)
        try:
            self._tell_if_first(
                RunError(
                    f"{name} is gone without a word, while {own_name} was {self._watchdog.place}:"
                    " it was killed or has crashed, or its host ran out of memory. The same command"
                    " goes on from the latest checkpoint, on other hosts too"
                )
            )
        finally:  # even if a launcher has died and taken the other end of stderr along
            if self._world.rank == 0:
                self._leave_last()
            else:
                time.sleep(POLL_SECONDS)
            os._exit(1)

    def _explained(self, error: Exception, step: int) -> Exception:
        if isinstance(error, (UserError, RunError)) or not _is_out_of_memory(error):
            return error
        allocation = re.search(r"tried to allocate \S+ \w+", str(error), re.IGNORECASE)
        detail = f" ({allocation[0].lower()})" if allocation else ""
        return RunError(
            f"out of memory after step {step}{detail}: raise gradient_accumulation_steps, set"
            " --activation_checkpointing true, lower zero_optimization.reduce_bucket_size, or take"
            " a higher ZeRO stage (--dry_run tells what each of them needs); the same command goes"
            " on from the latest checkpoint"
        )

    def _explained_loss(self, reason: str, step: int) -> RunError:
        # a lifeline that knows more has ended this process meanwhile
        time.sleep(2 * POLL_SECONDS)
        gone = self._watchdog.who_is_gone()
        return RunError(
            f"another rank is gone without a word after step {step}: it was killed, its host ran"
            f" out of memory or is out of reach ({reason}); gone: {gone}. The same command goes on"
            " from the latest checkpoint, on other hosts too"
        )

    def _leave_last(self) -> None:
        """Rank 0 may keep the blackboard: it stays until the others have read it."""
        if self._board is not None and self._world.rank == 0:
            time.sleep(2 * POLL_SECONDS)

    def _tell_if_first(self, error: Exception) -> None:
        """Tell an error unless another rank, or another thread of this one, has told one."""
        with self._telling:
            if not self._told and self._is_first():
                who = f"[rank {self._world.rank}] " if self._board is not None else ""
                tell(error, who, self._reports)
            self._told = True

    def _is_first(self) -> bool:
        """Note that this rank fails; whether none did before it. Where the blackboard is gone with
        rank 0, one rank on each host speaks."""
        try:
            return self._board is None or self._board.add(FAILED, 1) == 1
        except RuntimeError:
            hosts = self._world.hosts
            rank = self._world.rank
            # the first on its host, without rank 0
            return rank == 0 or hosts.index(hosts[rank], 1) == rank

    def _watch(self) -> None:
        assert self._board is not None
        while not self._closed.wait(POLL_SECONDS):
            try:
                failed = self._board.check([FAILED])
            except RuntimeError:  # rank 0 is busy or gone; its lifeline tells which
                continue
            # the one that fails has told it before any process ends
            if failed and not self._closed.wait(POLL_SECONDS):
                self._leave_last()
                os._exit(1)


def _is_out_of_memory(error: Exception) -> bool:
    """torch's own exception has a class for accelerators only."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)

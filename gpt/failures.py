"""A rank that fails: it tells why, once for the whole run, and all the others end without a word."""

import os
import re
import threading
import time

from gpt.errors import RunError, SilentError, UserError, in_words, tell

FAILED = "failed"
POLL_SECONDS = 2.0
BOARD_SECONDS = 10.0
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|remote process", re.IGNORECASE)


class Failures:
    """What becomes of this rank when it, or another one, fails.

    A rank that fails notes it on the blackboard. A thread per rank looks there and ends its process, with exit code 1, a
    few seconds later, so that nobody waits in a collective for one that will not come. Where a rank dies without a note,
    the first whose collectives break tells that.
    """

    def __init__(self, world):
        self._world, self._board = world, world.blackboard(BOARD_SECONDS)
        self._closed = threading.Event()
        if self._board is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def close(self):
        self._closed.set()

    def end(self, error: Exception, step: int) -> Exception:
        """Tell an error that came after `step` and that the ranks did not agree on, unless another rank has told one;
        returns the exception to leave with."""
        self.close()
        error = in_words(error)
        if self._first():
            tell(self._explained(error, step), f"[rank {self._world.rank}] " if self._board is not None else "")
        self._leave_last()
        return SilentError(2 if isinstance(error, UserError) else 1)

    def _explained(self, error, step):
        if isinstance(error, (UserError, RunError)):
            return error
        if _out_of_memory(error):
            wanted = re.search(r"tried to allocate \S+ \w+", str(error), re.IGNORECASE)
            return RunError(f"out of memory after step {step}{f' ({wanted[0].lower()})' if wanted else ''}: raise "
                            "gradient_accumulation_steps, set --activation_checkpointing true, or take a higher ZeRO stage "
                            "(--dry_run tells what each of them needs); the same command goes on from the latest checkpoint")
        if self._board is not None and isinstance(error, RuntimeError) and LOST.search(str(error)):
            reason = re.sub(r"^\[[^]]*\] *", "", str(error).strip()).splitlines()[0].split(". ")[0]  # without torch's file name
            return RunError(f"another rank is gone without a word after step {step}: it was killed, its host ran out of "
                            f"memory or is out of reach ({reason}); the same command goes on from the latest checkpoint")
        return error

    def _leave_last(self):
        """Rank 0 may keep the blackboard: it stays until the others have read it."""
        if self._board is not None and self._world.rank == 0:
            time.sleep(2 * POLL_SECONDS)

    def _first(self) -> bool:
        """Note that this rank fails; whether none did before it. Where the blackboard is gone rank 1 speaks for all."""
        try:
            return self._board is None or self._board.add(FAILED, 1) == 1
        except RuntimeError:
            return self._world.rank <= 1

    def _watch(self):
        while not self._closed.wait(POLL_SECONDS):
            try:
                failed = self._board.check([FAILED])
            except RuntimeError:  # rank 0 is busy or gone; this rank's own collectives will tell
                continue
            if failed and not self._closed.wait(POLL_SECONDS):  # the one that fails has told it before any process ends
                self._leave_last()
                os._exit(1)


def _out_of_memory(error):
    """torch's own exception has a class for accelerators only."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error))  # fmt: skip

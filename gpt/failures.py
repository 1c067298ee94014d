"""A rank that fails: it tells why, once for the whole run, and all the others end without a word."""

import os
import re
import threading
import time

from gpt.errors import RunError, SilentError, UserError, in_words, tell

FAILED = "failed"
POLL_SECONDS = 2.0
BOARD_SECONDS = 10.0


class Failures:
    """What becomes of this rank when it, or another one, fails.

    A rank that fails notes it on the blackboard. A thread per rank looks there and ends its process, with exit code 1, a
    few seconds later, so that nobody waits in a collective for one that will not come. Where a rank dies without a note,
    the first whose collectives break tells that, and which one it is, as far as `who_is_gone()` finds out.
    """

    def __init__(self, world, who_is_gone):
        self._world, self._board, self._who_is_gone = world, world.blackboard(BOARD_SECONDS), who_is_gone
        self._closed = threading.Event()
        if self._board is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def close(self):
        self._closed.set()

    def end(self, error: Exception, step: int) -> Exception:
        """Tell an error that came after `step` and that the ranks did not agree on, unless another rank has told one;
        returns the exception to leave with."""
        error = in_words(error)
        lost = self._world.lost(error)
        if lost:  # found out before the note, on which the other ranks would end: they still have to show that they live
            told = self._explained_loss(lost, step)
        self.close()
        if self._first():
            tell(told if lost else self._explained(error, step), f"[rank {self._world.rank}] " if self._board is not None else "")
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
        return error

    def _explained_loss(self, reason, step):
        return RunError(f"another rank is gone without a word after step {step}: it was killed, its host ran out of memory or "
                        f"is out of reach ({reason}); gone: {self._who_is_gone()}. The same command goes on from the latest "
                        "checkpoint, on other hosts too")  # fmt: skip

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

"""A save that is under way."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpt.checkpoint.manifest import Manifest
from gpt.errors import in_brief


@dataclass
class Pending:
    """A save that is under way, and the thread that works on it."""

    manifest: Manifest
    staged: Path
    began: float  # of time.perf_counter
    failure: str | None
    files: dict = field(default_factory=dict)  # of this rank, hashed
    committing: bool = False
    pause: float | None = None  # seconds that training waited
    bytes: int | None = None
    not_removed: str | None = None  # why an old checkpoint could not be removed
    thread: threading.Thread = field(init=False)

    def run(self, work: Callable[[], None]) -> None:
        """Start a thread that works; what it raises is the save's failure."""

        def noting_failure() -> None:
            try:
                work()
            # whatever it is: what this rank did not do must not go unnoticed
            except Exception as error:
                self.failure = in_brief(error)

        self.thread = threading.Thread(target=noting_failure)
        self.thread.start()

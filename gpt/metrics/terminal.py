"""What a run shows on the terminal."""

import sys
from contextlib import suppress

from tqdm import tqdm

from gpt.wording import duration


def say_line(text, stream):
    # a log on a full disk, a reader that has gone: no reason to end a run
    with suppress(OSError):
        print(text, file=stream, flush=True)


class Progress:
    """What a person watching sees: a bar on a terminal, plain lines in a log."""

    def __init__(self, first: int, last: int, active: bool):
        self._active = active
        self._last = last
        self._bar = None
        if active and sys.stderr.isatty():
            self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, leave=True)

    def advance(self):
        if self._bar is not None:
            self._bar.update()

    def rewind(self, step: int):
        """The run went back to an earlier step."""
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def say(self, text: str):
        if self._bar is not None:
            self._bar.write(text)
        elif self._active:
            say_line(text, sys.stdout)

    def report(
        self, step: int, loss: float, lr: float, tokens_per_second: float, seconds_left: float
    ):
        text = f"loss {loss:.4f}  lr {lr:.2e}  {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.say(
                f"step {step:>{len(str(self._last))}}/{self._last}  {text}  ETA"
                f" {duration(seconds_left)}"
            )

    def close(self):
        if self._bar is not None:
            self._bar.close()

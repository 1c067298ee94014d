"""The windows in which a split is scored."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """One forward pass of the evaluator: inputs [start, start + length), targets one further; the
    last `scored` targets count."""

    start: int
    length: int
    scored: int


# The stream's first token after the end of a document, which is no token of the stream. It comes in
# addition to the windows that `windows` counts.
FIRST_TOKEN = Window(-1, 1, 1)


def windows(tokens: int, seq_len: int, last_n: int) -> int:
    """Number of windows of a stream of `tokens` tokens."""
    if tokens <= 1:
        return 0
    return 1 + max(0, math.ceil((tokens - 1 - seq_len) / last_n))


def window(index: int, tokens: int, seq_len: int, last_n: int) -> Window:
    """Window `index` (from 0). The last one is as long as the stream lasts."""
    start = index * last_n
    length = min(seq_len, tokens - 1 - start)
    seen_before = 0 if index == 0 else seq_len - last_n
    return Window(start, length, length - seen_before)

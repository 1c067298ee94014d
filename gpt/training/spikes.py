"""Losses that leap."""

import math
import statistics
from collections.abc import Iterable

WINDOW = 64  # losses that a new one is compared with
FEWEST = 16  # of them, before anything is called a spike
# as a share of the median: what a loss must differ by where the others hardly differ
LEAST_DEVIATION = 1e-4


class SpikeDetector:
    """Robust z-scores of a run's losses.

    z = (loss - median) / (1.4826 * MAD) over the last WINDOW losses, MAD their median absolute
    deviation: for normally distributed losses 1.4826 * MAD estimates their standard deviation
    (Rousseeuw and Croux 1993, eq. 1.2), and a few spikes in the window move it little. A loss that
    is not finite scores infinity.
    """

    def __init__(self, losses: Iterable[float] = ()):
        self.losses = list(losses)[-WINDOW:]

    def score(self, loss: float) -> float:
        """z of a loss against those before it; 0 while there are fewer than FEWEST."""
        if not math.isfinite(loss):
            return math.inf
        if len(self.losses) < FEWEST:
            return 0.0
        median = statistics.median(self.losses)
        mad = statistics.median(abs(value - median) for value in self.losses)
        deviation = max(1.4826 * mad, LEAST_DEVIATION * abs(median), 1e-12)
        return (loss - median) / deviation

    def add(self, loss: float) -> None:
        """Take in the loss of a batch that the weights were updated with."""
        if math.isfinite(loss):
            self.losses = [*self.losses, loss][-WINDOW:]

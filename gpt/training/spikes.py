"""Losses that leap, and the batches that a run leaves out for it."""

import math
import statistics

WINDOW = 64  # losses that a new one is compared with
FEWEST = 16  # of them, before anything is called a spike


class SpikeDetector:
    """Robust z-scores of a run's losses.

    z = (loss - median) / (1.4826 * MAD) over the last WINDOW losses, MAD their median absolute
    deviation: for normally distributed losses 1.4826 * MAD estimates their standard deviation
    (Rousseeuw and Croux 1993, eq. 1.2), and a few spikes in the window move it little. A loss that
    is not finite scores infinity.
    """

    def __init__(self, losses=()):
        self.losses = list(losses)[-WINDOW:]

    def score(self, loss: float) -> float:
        """z of a loss against those before it; 0 while there are fewer than FEWEST."""
        if not math.isfinite(loss):
            return math.inf
        if len(self.losses) < FEWEST:
            return 0.0
        middle = statistics.median(self.losses)
        deviation = statistics.median(abs(value - middle) for value in self.losses)
        return (loss - middle) / max(1.4826 * deviation, 1e-4 * abs(middle), 1e-12)

    def add(self, loss: float):
        """Take in the loss of a batch that the weights were updated with."""
        if math.isfinite(loss):
            self.losses = [*self.losses, loss][-WINDOW:]

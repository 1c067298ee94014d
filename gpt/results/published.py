"""Results of baselines that others published, to stand beside one's own.

They are token perplexities of the Languini Kitchen's GPT (arXiv 2309.11197) on the test split of
its books, and compare with nothing else: neither with another text nor with another tokenizer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt.results.intervals import Estimate, mean

SOURCE = "arXiv 2404.06508"
# where the figures stand
REPOSITORY = "antonschafer/duplicate-subwords"
FILE = "runs.csv"
MEASURE = "token perplexity on the test split of the Languini Kitchen's books, under its tokenizer"


@dataclass(frozen=True)
class Published:
    """A baseline's perplexities per token, one of each seed that was published."""

    class_name: str  # of the file in ds_configs/
    perplexities: tuple[float, ...]
    last_n: int = 128

    @property
    def losses(self) -> list[float]:
        """Nats per token."""
        return [math.log(perplexity) for perplexity in self.perplexities]

    @property
    def loss(self) -> Estimate:
        """Nats per token, with a 95% interval over seeds where there are several."""
        return mean(self.losses)


BASELINES = (
    Published("6h", (21.930, 21.986, 21.726, 21.995, 21.997)),
    Published("12h", (19.777,)),
    Published("48h", (16.278,)),
)


def of_class(class_name: str) -> Sequence[Published]:
    """Those of a compute class."""
    return [baseline for baseline in BASELINES if baseline.class_name == class_name]

"""The final scores of an entry's runs: the sums of each seed's evaluation of the whole split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt.referee.entry import Entry
from gpt.results.document_sums import DocumentSums


@dataclass(frozen=True)
class SeedScore:
    """What one run's last weights score on the whole split. nats: over all tokens. text_nats: over
    the text_tokens that carry bytes."""

    run: str  # its folder's name
    seed: int
    nats: float
    tokens: int
    text_nats: float
    text_tokens: int
    bytes: int
    documents: DocumentSums | None  # of each document, where they were kept

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def normalised_loss(self) -> float:
        """Nats per byte."""
        return self.text_nats / self.bytes


@dataclass(frozen=True)
class Side:
    """The seeds of one side that are finished, and what became of the others."""

    name: str  # what sentences call it
    scores: tuple[SeedScore, ...]  # by rising seed
    missing: tuple[int, ...] = ()  # declared seeds that are not finished
    diverged: tuple[int, ...] = ()


def of_entry(entry: Entry) -> dict[str, Side]:
    """{CONTENDER: …, BASELINE: …} of an entry's folder, or a pack's. Raises UserError where an
    evaluation contradicts itself, or sides were not scored alike."""
    raise NotImplementedError


def of_runs(runs: Sequence[Path], name: str) -> Side:
    """Of folders of runs that are seeds of each other. Raises UserError."""
    raise NotImplementedError

"""The verdict on an entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Judgement:
    """What is known of a contender against its baseline."""


def of_paths(
    paths: Sequence[Path], baseline: Sequence[Path] | None, ladder: Sequence[Path] | None
) -> Judgement:
    """Of an entry's folder, a pack's, or of runs and those of the baseline. Raises UserError."""
    raise NotImplementedError


def in_words(judgement: Judgement) -> str:
    raise NotImplementedError


def as_json(judgement: Judgement) -> str:
    raise NotImplementedError

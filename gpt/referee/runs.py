"""The runs of an entry: trained, consolidated and evaluated, and every start on record."""

from collections.abc import Sequence
from pathlib import Path


def train(path: Path, seeds: Sequence[int] | None, launcher: str | None) -> None:
    """Train what is not finished of the declared runs. Whatever ends it, the same command goes on.
    Raises UserError and RunError."""
    raise NotImplementedError

"""A table of packs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Board:
    """Entries by class, best first."""


def of_packs(paths: Sequence[Path]) -> Board:
    """Raises UserError."""
    raise NotImplementedError


def as_markdown(board: Board) -> str:
    raise NotImplementedError


def as_html(board: Board) -> str:
    raise NotImplementedError

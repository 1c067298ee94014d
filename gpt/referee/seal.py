"""pack.json: read and checked like all that comes from outside."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SealedRun:
    side: str
    weights_sha256: str


@dataclass(frozen=True)
class Pack:
    runs: Mapping[str, SealedRun]
    judgement: Mapping[str, Any]


def read(path: Path) -> Pack:
    """Raises UserError."""
    raise NotImplementedError


def require_whole(pack: Pack) -> None:
    """Raises UserError."""
    raise NotImplementedError

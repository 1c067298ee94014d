"""Sums of an evaluation for each document of a split, kept as lines of JSON or as Parquet."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class DocumentSums:
    """Row i is document i of the split. hashes: sha256 of the documents' text, as the dataset knows
    them; arrays (documents,): nats, text_nats float64, the others int64."""

    hashes: tuple[str, ...]
    nats: np.ndarray
    tokens: np.ndarray
    text_nats: np.ndarray
    text_tokens: np.ndarray
    bytes: np.ndarray


def write(path: Path, sums: DocumentSums) -> None:
    """By the path's suffix: .jsonl or .parquet. Raises UserError for another."""
    raise NotImplementedError


def read(path: Path) -> DocumentSums:
    """Raises UserError where it holds something else."""
    raise NotImplementedError

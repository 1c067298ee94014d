"""The throughput of contender and baseline, which take turns on one device."""

from pathlib import Path


def measure_entry(path: Path, rounds: int) -> str:
    """Measure, keep measured.json, and tell it in words. Raises UserError."""
    raise NotImplementedError

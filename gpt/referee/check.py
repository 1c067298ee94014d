"""Whether an entry is a fair comparison."""

from pathlib import Path


def report(path: Path, with_runs: bool) -> int:
    """Print a line for each check; returns the exit code."""
    raise NotImplementedError

"""A pack: an entry's folder without checkpoints, sealed."""

from pathlib import Path


def write(path: Path, out: Path, with_weights: bool) -> str:
    """Returns what was written, in words. Raises UserError, and leaves nothing."""
    raise NotImplementedError

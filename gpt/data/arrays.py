"""Arrays of .npy files, which may be damaged."""

from pathlib import Path

import numpy as np


def load(path: Path | str, mapped: bool = False) -> np.ndarray | None:
    """The array of a plain .npy file, memory-mapped if `mapped`; None where it is none, or damaged.
    Pickled objects are never loaded. Raises OSError where the file cannot be read."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError:
        raise
    except Exception:  # a damaged header may raise whatever Python's own parser raises
        return None
    return array if isinstance(array, np.ndarray) else None

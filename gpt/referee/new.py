"""A new entry's folder."""

import argparse
from collections.abc import Sequence

from gpt.referee.entry import Entry


def create(args: argparse.Namespace, train_args: Sequence[str]) -> Entry:
    """Raises UserError, and writes nothing, where the folder is there, or a side is mistaken."""
    raise NotImplementedError

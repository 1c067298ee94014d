"""Makes, in the folder that it is started in, an entry whose runs are trained and evaluated."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "support")]

from entry_runs import in_this_process, new_entry, small_dataset

from gpt.referee import runs

entry = Path("trained")
data = Path("of_entries")
data.mkdir()
new_entry(Path(), small_dataset(data), "--max_lr", 0.01, entry=entry, factors=[1.0, 2.0])
with in_this_process():
    runs.train(entry, None, None)

"""Runs of two ranks with faults planted in them, one after another: `python failing_run.py
FAULT[,…] TRAIN-OPTIONS`.

Every fault's run is kept in the folder FAULT, with what each rank wrote to stderr in FAULT/RANK.
Prints a line of JSON a fault: [fault, [[exit code, seconds], …]], in the order of ranks.
"""

import json
import os
import sys
from pathlib import Path

from forked import fork_ranks
from planted import train_with

from gpt.training import trainer  # noqa: F401  (no rank need import it)


def failing(fault, options):
    errors = os.open(f"{fault}/{os.environ['RANK']}", os.O_CREAT | os.O_WRONLY)
    os.dup2(errors, 2)
    sys.argv = ["train.py", *options, "--run_dir", f"{fault}/run"]
    train_with(fault)


if __name__ == "__main__":
    for fault in sys.argv[1].split(","):
        Path(fault).mkdir()
        print(json.dumps([fault, fork_ranks(2, lambda: failing(fault, sys.argv[2:]))]), flush=True)

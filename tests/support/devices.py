"""Tests compute on the CPU, on a machine with GPUs too, unless those that need one are asked for,
by their marker (`-m gpu`) or by their file. Part of conftest.py, beside it as it needs no torch.
"""

import os
from collections import defaultdict
from pathlib import Path

GPU_TESTS = "test_gpu.py"
# CUDA reads the first when it is first asked for a device, which no import does. DeepSpeed's
# launcher sets it anew for its ranks, which then go by the second.
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def asked_for(marker_expression: str, paths) -> bool:
    """Whether GPU tests are: the expression takes no others, or one of the paths is their file."""
    if any(Path(path.partition("::")[0]).name == GPU_TESTS for path in paths):
        return True
    try:
        takes = [
            bool(eval(marker_expression, {"__builtins__": {}}, defaultdict(bool, gpu=gpu)))
            for gpu in (True, False)
        ]
    except Exception:  # no expression at all, or one that pytest will refuse
        return False
    return takes == [True, False]


def pytest_configure(config):
    if not asked_for(config.getoption("markexpr") or "", config.args):
        os.environ.update(HIDDEN)

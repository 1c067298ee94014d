import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from gpt.kernels import triton_shared

INTERPRETED = {**os.environ, "TRITON_INTERPRET": "1"}
INTERPRETED_TESTS = sorted((ROOT / "tests/support").glob("interpreted_*.py"))


def run_interpreted(*options):
    """The kernels' own tests, in a process of their own: one that has imported triton without
    TRITON_INTERPRET, as DeepSpeed's import does, cannot interpret kernels any more, and one that
    interprets them cannot compile them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, INTERPRETED_TESTS),
        "-p",
        "no:cacheprovider",
        *options,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=INTERPRETED, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_kernels_against_float64():
    run_interpreted("-x")


@pytest.mark.slow
def test_all_sizes_against_float64():
    run_interpreted("-m", "slow")


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 1000, 16384, 100_003])
@pytest.mark.parametrize("warps", [1, 4, 12, 32])
@pytest.mark.parametrize("multiprocessors", [82, 108])
def test_every_row_has_one_program(monkeypatch, rows, warps, multiprocessors):
    monkeypatch.setattr(triton_shared, "_multiprocessors", lambda device: multiprocessors)
    programs, per_program = triton_shared.share_rows(rows, warps, torch.device("cuda", 0))
    walked = [
        row
        for p in range(programs)
        for row in range(p * per_program, min((p + 1) * per_program, rows))
    ]
    assert walked == list(range(rows))
    assert programs * warps <= max(multiprocessors * triton_shared.RESIDENT_WARPS, warps)
    assert (programs - 1) * triton_shared.ROWS_PER_PROGRAM <= max(
        rows, triton_shared.ROWS_PER_PROGRAM
    )

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt.errors import UserError
from gpt.kernels import choose, launch, require_compiler

ROOT = Path(__file__).resolve().parents[1]
INTERPRETED = {**os.environ, "TRITON_INTERPRET": "1"}


def run_interpreted(*options):
    """The kernels' own tests, in a process of their own: one that has imported triton without TRITON_INTERPRET, as
    DeepSpeed's import does, cannot interpret kernels any more, and one that interprets them cannot compile them."""
    command = [sys.executable, "-m", "pytest", "tests/interpreted_kernels.py", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=ROOT, env=INTERPRETED, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_kernels_against_float64():
    run_interpreted("-x")


@pytest.mark.slow
def test_all_sizes_against_float64():
    run_interpreted("-m", "slow")


@pytest.fixture
def gpu(monkeypatch):
    """gpu(capability): what torch says of a GPU that is not here, beside an installed triton."""

    def pretend(capability, installed=True, interpreted=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(launch, "HAVE_TRITON", installed)
        monkeypatch.setattr(launch, "interpreted", lambda: installed and interpreted)
        return "cpu" if capability is None else "cuda"

    return pretend


MACHINES = [  # capability, triton installed, interpreted, auto's choice, words of its reason
    ((8, 0), True, False, "triton", "recent enough"),
    ((9, 0), True, False, "triton", "recent enough"),
    ((7, 5), True, False, "torch", "capability 7.5 is below 8.0"),
    ((8, 0), False, False, "torch", "triton is not installed"),
    (None, True, False, "torch", "no CUDA device"),
    (None, False, False, "torch", "triton is not installed"),
    ((8, 0), True, True, "torch", "TRITON_INTERPRET is set"),
    (None, True, True, "torch", "TRITON_INTERPRET is set"),
]


@pytest.mark.parametrize("capability, installed, interpreted, expected, words", MACHINES)
def test_automatic_choice(gpu, capability, installed, interpreted, expected, words):
    device_type = gpu(capability, installed, interpreted)
    choice, reason = choose("auto", device_type, 64)
    assert choice == expected and words in reason and reason.count("\n") == 0
    assert choose("torch", device_type, 64)[0] == "torch"


@pytest.mark.parametrize("capability, installed, interpreted, remedy", [
    ((7, 5), True, False, "take a newer GPU"),
    ((8, 0), False, False, "pip install triton"),
    (None, True, False, "TRITON_INTERPRET=1"),
])  # fmt: skip
def test_triton_where_it_cannot_run(gpu, capability, installed, interpreted, remedy):
    with pytest.raises(UserError, match=remedy) as caught:
        choose("triton", gpu(capability, installed, interpreted), 64)
    assert 'set kernels to "auto" or "torch"' in str(caught.value)


def test_triton_where_it_runs(gpu):
    assert choose("triton", gpu((8, 6)), 64)[0] == "triton"
    assert choose("triton", gpu(None, interpreted=True), 64)[0] == "triton"


def test_a_model_that_is_too_wide(gpu):
    device_type = gpu((9, 0))
    assert choose("auto", device_type, 8192)[0] == "triton"
    assert choose("auto", device_type, 8193) == ("torch", "h_dim 8,193 is wider than the 8,192 that its LayerNorm takes")
    with pytest.raises(UserError, match='h_dim 8,193 .*: take a narrower model, or set kernels to "auto" or "torch"'):
        choose("triton", device_type, 8193)


def test_unknown_choice():
    with pytest.raises(UserError, match='"auto", "triton" or "torch"'):
        choose("cuda", "cpu", 64)


def test_compiling_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r'compile needs the compiler g\+\+, which is not on the PATH: install it .* compile to "none"'):
        require_compiler("cpu")


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # import triton raises ImportError
import torch
from gpt.kernels import choose
from gpt.kernels.cross_entropy import softmax_gradient_
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm
ones = torch.ones(4)
add_layer_norm(torch.randn(2, 4), torch.randn(2, 4), ones, ones)
bias_gelu(torch.randn(2, 4), ones)
softmax_gradient_(torch.randn(2, 4), torch.tensor([0, 3]), 1.0)
print(choose("auto", "cuda", 64))
"""


def test_without_triton():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout and "triton is not installed" in done.stdout


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 1000, 16384, 100_003])
@pytest.mark.parametrize("warps", [1, 4, 12, 32])
@pytest.mark.parametrize("multiprocessors", [82, 108])
def test_every_row_has_one_program(monkeypatch, rows, warps, multiprocessors):
    monkeypatch.setattr(launch, "_multiprocessors", lambda index: multiprocessors)
    programs, per_program = launch.share_rows(rows, warps, torch.device("cuda", 0))
    walked = [row for p in range(programs) for row in range(p * per_program, min((p + 1) * per_program, rows))]
    assert walked == list(range(rows))
    assert programs * warps <= max(multiprocessors * launch.RESIDENT_WARPS, warps)
    assert (programs - 1) * launch.ROWS_PER_PROGRAM <= max(rows, launch.ROWS_PER_PROGRAM)

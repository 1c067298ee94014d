"""One rank fails: the others end too, one error is told, nothing is left running, and the run goes
on afterwards.

Ranks that hang are in test_trouble.py, signals and killed launchers in test_signals.py.
"""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, write_run

from gpt.checkpoint import folders
from gpt.cluster.world import World

GONE = "error: rank {} is gone without a word, while rank {} was "
MEMORY = (
    "error: out of memory after step 11 (tried to allocate 1152921504606846976 bytes): raise"
    " gradient_accumulation_steps"
)
TOLD = {  # fault: which rank tells, what
    "bug=0@12": (0, "ValueError: invalid literal"),
    "bug=1@12": (1, "ValueError: invalid literal"),
    "memory=0@12": (0, MEMORY),
    "memory=1@12": (1, MEMORY),
    "exit=0@12": (1, GONE.format(0, 1)),
    "exit=1@12": (0, GONE.format(1, 0)),
    "vanish=0@12": (1, GONE.format(0, 1)),
    "vanish=1@12": (0, GONE.format(1, 0)),
}
QUICK = ("bug=0@12", "memory=1@12", "exit=1@12", "vanish=0@12")
CODES = {"exit": 0, "vanish": -9}  # of the rank at fault


@pytest.mark.parametrize(
    "faults", [QUICK, pytest.param(tuple(set(TOLD) - set(QUICK)), marks=pytest.mark.slow)]
)
def test_the_rank_that_fails_tells_and_all_end(faults, sample, tmp_path, run_command):
    gpt = {
        "data_root": str(sample),
        "max_train_steps": 1000,
        "log_ckpt_every": 5,
        "log_terminal_every": 0,
        "step_timeout": 8,
    }
    config = write_run(tmp_path, gpt=gpt)
    program = ROOT / "tests/support/failing_run.py"
    command = [sys.executable, program, ",".join(faults), "--ds_config", config]
    done = run_command(
        command, tmp_path, timeout=600, OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR"
    )
    ends = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert set(ends) == set(faults), done.stdout + done.stderr
    for fault in faults:
        speaker, sentence = TOLD[fault]
        stderr = (tmp_path / fault / str(speaker)).read_text()
        assert stderr.startswith(f"[rank {speaker}] ") and sentence in stderr, stderr
        # only what nobody foresaw has a traceback
        assert stderr.count("\n") == 1 or "bug" in fault
        assert (tmp_path / fault / str(1 - speaker)).read_text() == ""
        name, _, at_fault = fault.removesuffix("@12").partition("=")
        codes = [1, 1]
        codes[int(at_fault)] = CODES.get(name, 1)
        assert [code for code, _ in ends[fault]] == codes
        if name == "vanish":
            assert abs(ends[fault][0][1] - ends[fault][1][1]) < 10
        assert folders.newest_good(tmp_path / fault / "run/checkpoints", []) in (
            "global_step5",
            "global_step10",
        )
    seconds = {
        fault: round(abs(first[1] - second[1]), 1) for fault, (first, second) in ends.items()
    }
    print("seconds between the ranks' ends:", seconds)


CLOSED = "[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:23. This is typically …"
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "
REMOTE = NCCL + "remote process exited or there was a network error, NCCL version 2.26.2"


@pytest.mark.parametrize(
    "error, size, reason",
    [
        (RuntimeError(CLOSED), 2, "Connection closed by peer [::1]:23"),
        (
            torch.distributed.DistNetworkError("The client socket has failed\nmore"),
            2,
            "The client socket has failed",
        ),
        (torch.distributed.DistBackendError(REMOTE + "\nmore"), 2, REMOTE),
        (
            torch.distributed.DistBackendError(NCCL + "invalid usage\nDuplicate GPU detected"),
            2,
            None,
        ),
        (torch.distributed.DistBackendError(NCCL + "unhandled cuda error\nout of memory"), 2, None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2, None),
        (ValueError(), 2, None),
        (torch.distributed.DistNetworkError("The client socket has failed"), 1, None),
    ],
)
def test_which_errors_are_lost_ranks(error, size, reason):
    assert World(0, size, torch.device("cpu")).lost(error) == reason


@pytest.mark.parametrize(
    "launcher", ["deepspeed", pytest.param("torchrun", marks=pytest.mark.slow)]
)
def test_under_a_launcher(launcher, sample, tmp_path, run_command):
    config = write_run(
        tmp_path, gpt={"data_root": str(sample), "max_train_steps": 1000, "log_terminal_every": 0}
    )
    start = {
        "deepspeed": ["deepspeed", "-q", "--num_gpus", 2, "--master_port", 29851],
        "torchrun": ["torchrun", "--nproc_per_node", 2, "--master_port", 29852],
    }[launcher]
    command = [*start, ROOT / "tests/support/planted.py", "bug=1@3", "--ds_config", config]
    done = run_command(command, tmp_path, timeout=600, OMP_NUM_THREADS="1")
    assert done.returncode != 0
    sentence = "[rank 1] error: unforeseen at planted.py"
    assert (
        done.stderr.count("ValueError: invalid literal") == 1 and done.stderr.count(sentence) == 1
    ), done.stderr
    # torchrun has its own
    assert done.stderr.count("Traceback") == done.stderr.count("ChildFailedError:")
    (report,) = (tmp_path / "runs").rglob("gpt-error-*.txt")
    assert "a planted fault" in report.read_text().splitlines()[-1]
    end = time.monotonic() + 30
    while processes := processes_with(str(config)):
        assert time.monotonic() < end, processes
        time.sleep(0.2)


def processes_with(word):
    """Numbers of processes on whose command line a word stands."""
    processes = psutil.process_iter(["cmdline"])
    return [process.pid for process in processes if word in (process.info["cmdline"] or [])]


@pytest.mark.slow
@pytest.mark.skipif(Path("/usr/include/libaio.h").exists(), reason="it can be compiled here")
def test_nvme_where_it_cannot_be_compiled(sample, tmp_path, run_command):
    offload = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}}
    config = write_run(tmp_path, zero_optimization=offload, gpt={"data_root": str(sample)})
    done = run_command([sys.executable, ROOT / "gpt/train.py", "--ds_config", config], tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert (
        "error: zero_optimization.offload_optimizer.device is nvme, which DeepSpeed's async_io"
        " operator serves, and it cannot be compiled here: install a C++ compiler and libaio"
        in done.stderr
    )

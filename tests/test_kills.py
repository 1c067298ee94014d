"""A run of two ranks that is killed again and again ends where an undisturbed one does, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, read_metrics, write_run
from safetensors.torch import load_file

from gpt import checkpoint
from gpt.consolidate import consolidate

TRAIN = ROOT / "gpt" / "train.py"
STEPS = 60


def start(folder, sample):
    """Two ranks without a launcher that would notice a death: a checkpoint at every second step, so that much of the
    time goes into saves."""
    gpt = {"data_root": str(sample), "max_train_steps": STEPS, "log_ckpt_every": 2, "log_terminal_every": 0}
    config = write_run(folder, gpt=gpt)
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29681", "OMP_NUM_THREADS": "1"}
    with open(folder / "out", "a") as out:
        return [subprocess.Popen([sys.executable, TRAIN, "--ds_config", config], cwd=folder, stdout=out, stderr=out,
                                 env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]  # fmt: skip


def kill(processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def weights(folder, name):
    consolidate(folder / "runs/tiny/checkpoints", folder / name)
    return load_file(folder / name / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, sample):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert [process.wait(120) for process in start(folder, sample)] == [0, 0], (folder / "out").read_text()
    return weights(folder, "export"), [event["loss"] for event in read_metrics(folder / "runs/tiny", "train")]


def check(kills, undisturbed, sample, folder):
    run_dir, chance, begun = folder / "runs/tiny", random.Random(kills), 0
    for _ in range(kills):
        processes, before = start(folder, sample), len(read_metrics(run_dir)) if run_dir.exists() else 0
        end = time.monotonic() + 60
        while time.monotonic() < end and not ((run_dir / "metrics.jsonl").exists() and len(read_metrics(run_dir)) > before):
            time.sleep(0.02)  # until it trains; killing it while it starts would prove less
        time.sleep(chance.random() * 0.4)
        kill(processes)
        notices = []
        tag = checkpoint.newest_good(run_dir / "checkpoints", notices) if (run_dir / "checkpoints").exists() else None
        assert not [notice for notice in notices if "NOT USED" in notice]
        reached = int(tag.removeprefix("global_step")) if tag else 0
        assert reached >= begun  # nothing that was committed is ever lost
        begun = reached
    assert [process.wait(120) for process in start(folder, sample)] == [0, 0], (folder / "out").read_text()
    last = {event["step"]: event["loss"] for event in read_metrics(run_dir, "train")}
    wanted, losses = undisturbed
    assert [last[step] for step in range(1, STEPS + 1)] == losses
    found = weights(folder, "export")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list(Path(run_dir / "checkpoints").glob(".*"))


def test_two_kills(undisturbed, sample, tmp_path):
    check(2, undisturbed, sample, tmp_path)


@pytest.mark.slow
def test_forty_kills(undisturbed, sample, tmp_path):
    check(40, undisturbed, sample, tmp_path)

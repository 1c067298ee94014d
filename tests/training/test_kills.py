"""A run of two ranks that is killed again and again ends where an undisturbed one does, to the last
bit."""

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

from gpt.checkpoint import folders
from gpt.checkpoint.manifest import Manifest
from gpt.checkpoint.weights import consolidate

TRAIN = ROOT / "gpt" / "train.py"
PLANTED = ROOT / "tests" / "support" / "planted.py"
PATIENCE = 600  # seconds; a machine that does other things beside takes its time


def start(folder, sample, steps, fault=None):
    """Two ranks without a launcher that would notice a death: a checkpoint at every second step, so
    that much of the time goes into saves. fault: planted in both, see planted.py."""
    gpt = {
        "data_root": str(sample),
        "max_train_steps": steps,
        "log_ckpt_every": 2,
        "log_terminal_every": 0,
    }
    config = write_run(folder, gpt=gpt)
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29681",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *([PLANTED, fault] if fault else [TRAIN]), "--ds_config", config]
    with open(folder / "out", "a") as out:
        processes = []
        for rank in range(2):  # in one process group, so that a rank can take the other along
            group = processes[0].pid if processes else 0
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    stdout=out,
                    stderr=out,
                    preexec_fn=lambda: os.setpgid(0, group),
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )
        return processes


def kill_at_random(processes, run_dir, before, chance):
    """Kill both ranks a while after their first step; while they start it would prove less."""
    end = time.monotonic() + PATIENCE
    while not ((run_dir / "metrics.jsonl").exists() and len(read_metrics(run_dir)) > before):
        assert time.monotonic() < end and all(process.poll() is None for process in processes), (
            "no step to kill"
        )
        time.sleep(0.02)
    time.sleep(chance.random() * 0.4)
    kill(processes)


def kill(processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def weights(folder, name):
    consolidate(folder / "runs/tiny/checkpoints", folder / name)
    return load_file(folder / name / "model.safetensors")


def undisturbed(folder, sample, steps):
    folder.mkdir()
    assert [process.wait(PATIENCE) for process in start(folder, sample, steps)] == [0, 0], (
        folder / "out"
    ).read_text()
    return weights(folder, "export"), [
        event["loss"] for event in read_metrics(folder / "runs/tiny", "train")
    ]


def check(kills, steps, sample, folder):
    """steps: enough for a run that is killed so often to be on its way still."""
    expected, losses = undisturbed(folder / "undisturbed", sample, steps)
    run_dir = folder / "runs/tiny"
    chance = random.Random(kills)
    begun = 0
    for number in range(kills):
        before = len(read_metrics(run_dir)) if run_dir.exists() else 0
        if number % 2:
            kill_at_random(start(folder, sample, steps), run_dir, before, chance)
        else:  # inside a save: at a file operation of one of the first checkpoints
            ends = [
                process.wait(PATIENCE)
                for process in start(folder, sample, steps, f"kill={chance.randint(1, 60)}")
            ]
            assert ends == [-signal.SIGKILL] * 2, (folder / "out").read_text()
        notices = []
        tag = (
            folders.newest_good(run_dir / "checkpoints", notices)
            if (run_dir / "checkpoints").exists()
            else None
        )
        assert not [notice for notice in notices if "NOT USED" in notice]
        reached = int(tag.removeprefix("global_step")) if tag else 0
        assert reached >= begun  # nothing that was committed is ever lost
        begun = reached
    assert [process.wait(PATIENCE) for process in start(folder, sample, steps)] == [0, 0], (
        folder / "out"
    ).read_text()
    last = {event["step"]: event["loss"] for event in read_metrics(run_dir, "train")}
    assert [last[step] for step in range(1, steps + 1)] == losses
    final = weights(folder, "export")
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    assert not list(Path(run_dir / "checkpoints").glob(".*"))


def operations_of_a_commit(folder, die_before):
    """Commit the staged checkpoint of step 6 in a process of its own that dies before its n-th file
    operation; returns whether it lived."""
    child = os.fork()
    if child == 0:
        left = [die_before]

        def counting(module, name):
            original = getattr(module, name)

            def counted(*args, **kwargs):
                left[0] -= 1
                return os._exit(9) if left[0] == 0 else original(*args, **kwargs)

            setattr(module, name, counted)

        for module, name in (
            (os, "rename"),
            (os, "replace"),
            (os, "fsync"),
            (os, "unlink"),
            (os, "rmdir"),
            (Path, "write_text"),
        ):
            counting(module, name)
        try:
            folders.clean_up(folder)
            stage(folder, 6)
            files = folders.own_files(folder / folders.staging_tag(6), 0)
            folders.commit(folder, Manifest(step=6, files=files))
            folders.retain(folder, 2, 0)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stage(folder, step):
    staged = folder / folders.staging_tag(step)
    staged.mkdir(parents=True)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        with open(staged / name, "w") as file:
            file.write(f"{name} {step}")


@pytest.mark.parametrize("again", [False, True])
def test_a_commit_that_dies_anywhere_loses_nothing(again, tmp_path):
    for instant in range(1, 100):
        folder = tmp_path / str(instant)
        for step in (2, 4, *([6] if again else [])):
            stage(folder, step)
            files = folders.own_files(folder / folders.staging_tag(step), 0)
            folders.commit(folder, Manifest(step=step, files=files))
        code = operations_of_a_commit(folder, instant)
        assert code in (0, 9)
        folders.clean_up(folder)
        notices = []
        newest = folders.newest_good(folder, notices)
        assert newest == "global_step6" or (newest == "global_step4" and not again and code == 9)
        # at most `latest` is one behind what stands
        assert not notices or newest == "global_step6"
        assert not list(folder.glob(".*"))
        if code == 0:
            assert folders.committed(folder) == ["global_step4", "global_step6"]
            break
    assert 10 < instant < 99


def test_two_kills(sample, tmp_path):
    check(2, 30, sample, tmp_path)


@pytest.mark.slow
def test_forty_kills(sample, tmp_path):
    check(40, 200, sample, tmp_path)

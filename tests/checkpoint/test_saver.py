"""Saves that fail: the training goes on."""

import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_metrics, write_run
from plain_run import PlainEngine, train

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.errors import AgreedError
from gpt.training import start

TRAIN = ROOT / "gpt" / "train.py"


def test_a_save_that_fails_on_one_rank_fails_on_all_and_costs_no_more(
    sample, tmp_path, run_command
):
    gpt = {"data_root": str(sample), "max_train_steps": 5, "log_ckpt_every": 1, "keep_last": 0}
    command = [
        "torchrun",
        "--master_port",
        29722,
        "--nproc_per_node",
        2,
        ROOT / "tests/support/planted.py",
        "unhashed=1@2,uncommitted=2",
        "--ds_config",
        write_run(tmp_path, gpt=gpt),
    ]
    done = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    for step in (2, 3):
        assert (
            f"WARNING: the checkpoint of step {step} could not be written (ValueError: invalid"
            " literal for int() with base 10: 'a planted fault'); training goes on, the latest"
            " checkpoint is that of step 1" in done.stdout
        )
    assert [
        event["step"] for event in read_metrics(tmp_path / "runs/tiny", "checkpoint_failed")
    ] == [2, 3]
    folder = tmp_path / "runs/tiny/checkpoints"
    assert sorted(os.listdir(folder)) == ["global_step1", "global_step4", "global_step5", "latest"]
    for tag in folders.committed(folder):
        files = Checkpoint.open(folder / tag).verify().manifest.files
        assert {folders.rank_of(Path(name)) for name in files} == {0, 1}


def test_an_old_checkpoint_that_cannot_be_removed_costs_no_new_one(sample, tmp_path, run_command):
    gpt = {"data_root": str(sample), "max_train_steps": 3, "log_ckpt_every": 1, "keep_last": 1}
    command = [
        sys.executable,
        ROOT / "tests/support/planted.py",
        "unremoved=global_step1",
        "--ds_config",
        write_run(tmp_path, gpt=gpt),
    ]
    done = run_command(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "WARNING: an old checkpoint in runs/tiny/checkpoints could not be removed: " in done.stdout
    )
    assert [event["step"] for event in read_metrics(tmp_path / "runs/tiny", "checkpoint")] == [
        1,
        2,
        3,
    ]
    assert sorted(os.listdir(tmp_path / "runs/tiny/checkpoints")) == [
        "global_step1",
        "global_step3",
        "latest",
    ]
    assert (tmp_path / "runs/tiny/checkpoints/latest").read_text() == "global_step3\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_does_not_stop_the_training(sample, tmp_path, run_command):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = run_command(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], tmp_path)
    if mounted.returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        options = {
            "data_root": str(sample),
            "log_ckpt_every": 2,
            "keep_last": 5,
            "run_dir": str(disk / "run"),
        }
        config = write_run(tmp_path, gpt=options)
        done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path)
        assert "WARNING: the checkpoint of step 4 could not be written" in done.stdout
        assert "step 6/6" in done.stdout
        assert done.returncode == 1 and "the last checkpoint could not be written" in done.stderr
        assert folders.newest_good(disk / "run/checkpoints", []) == "global_step2"
        assert sorted(os.listdir(disk / "run/checkpoints")) == ["global_step2", "latest"]
        make_room = run_command(["mount", "-o", "remount,size=30m", disk], tmp_path)
        assert make_room.returncode == 0
        done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path)
        assert done.returncode == 0 and "after step 2" in done.stdout
    finally:
        run_command(["umount", disk], tmp_path)


class ForgetfulEngine(PlainEngine):
    """Computes another loss than it did when it saved."""

    def probe(self, tokens):
        return super().probe(tokens) + 0.01 * bool(self._steps)


def test_weights_that_compute_another_loss_are_blamed_on_the_code_where_it_changed(
    sample, tmp_path, monkeypatch
):
    train(tmp_path / "run", sample, gpt={"max_train_steps": 1})
    with pytest.raises(AgreedError, match="nothing was trained; go on from another checkpoint"):
        train(tmp_path / "run", sample, engine=ForgetfulEngine)
    code = start.code_of()
    code["parts"]["model"] = "another hash"
    monkeypatch.setattr(start, "code_of", lambda: code)
    sentence = (
        r"the code has changed since \(model\): go on with the code that trained it, or train the"
        " changed one in another --run_dir"
    )
    with pytest.raises(AgreedError, match=sentence):
        train(tmp_path / "run", sample, engine=ForgetfulEngine)

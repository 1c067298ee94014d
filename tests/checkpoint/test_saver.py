"""Saves that fail: the training goes on."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, read_metrics, write_run
from plain_run import PlainEngine, train

from gpt.checkpoint import folders, manifest
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import read_content
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


class DivergingEngine(PlainEngine):
    """Loses a weight to NaN in step 4: one that no token of the probe batch looks up."""

    def step(self, *arguments):
        result = super().step(*arguments)
        if self._steps >= 4:
            with torch.no_grad():
                self.module.token_embedding.weight[NEVER_USED] = math.nan
        return result


# an id that the sample's texts do not have
NEVER_USED = 1


def test_weights_that_are_no_numbers_push_out_no_good_ones(sample, tmp_path):
    options = {"max_train_steps": 6, "log_ckpt_every": 1, "keep_last": 1}
    with pytest.raises(AgreedError) as error:
        train(tmp_path / "run", sample, engine=DivergingEngine, gpt=options)
    folder = tmp_path / "run/checkpoints"
    reason = "the run has diverged: token_embedding.weight is not finite"
    assert str(error.value).startswith(
        "the run has diverged: after step 6 token_embedding.weight is not finite; the latest"
        " checkpoint is that of step 3: "
    )
    failures = read_metrics(tmp_path / "run", "checkpoint_failed")
    assert {event["step"] for event in failures} == {4, 5, 6}
    assert {event["reason"] for event in failures} == {reason}
    assert sorted(os.listdir(folder)) == ["global_step3", "latest"]
    assert folders.newest_good(folder, []) == "global_step3"


def diverged(folder):
    """What an earlier version committed of a run that had diverged."""
    content = read_content(folder)
    content["probe"]["loss"] = math.nan
    sealed = {**content, "sha256": manifest._seal(content)}
    (folder / "checkpoint.json").write_text(json.dumps(sealed))


def test_a_diverged_checkpoint_of_an_earlier_version_is_passed_over(
    sample, tmp_path, capsys, load_tool
):
    options = {"max_train_steps": 3, "log_ckpt_every": 1}
    train(tmp_path / "run", sample, gpt=options)
    folder = tmp_path / "run/checkpoints"
    diverged(folder / "global_step3")
    notices = []
    assert folders.newest_good(folder, notices) == "global_step2"
    assert notices == [
        f"CHECKPOINT NOT USED: {folder}/global_step3 holds weights of a run that had diverged:"
        " their loss was nan when they were saved: use an earlier checkpoint; going back to an"
        " earlier one"
    ]
    assert [checkpoint.step for checkpoint in folders.whole(folder)] == [2, 1]
    capsys.readouterr()
    assert not load_tool("verify_checkpoint").tell_whether_whole(folder / "global_step3")
    assert "global_step3: NOT WHOLE: " in capsys.readouterr().out
    train(tmp_path / "run", sample, gpt={**options, "max_train_steps": 4})
    assert folders.latest(folder) == "global_step4"


class MovedEngine(PlainEngine):
    """While it computes step 3 the run's folder is renamed, and another run begins in its place."""

    def step(self, *arguments):
        if self._steps == 2:
            os.rename(self.run_dir, self.run_dir.with_name("moved"))
            if self.successor is not None:
                shutil.copytree(self.successor, self.run_dir)
        return super().step(*arguments)


@pytest.mark.parametrize("is_replaced", [True, False])
def test_nothing_is_written_into_a_folder_that_took_the_runs_place(is_replaced, sample, tmp_path):
    options = {"max_train_steps": 5, "log_ckpt_every": 1, "keep_last": 1}
    successor = tmp_path / "successor"
    if is_replaced:
        train(successor, sample, gpt={"max_train_steps": 1, "seed": 5})
    MovedEngine.run_dir = tmp_path / "run"
    MovedEngine.successor = successor if is_replaced else None
    with pytest.raises(AgreedError, match="could not be written to .* that was renamed, removed"):
        train(tmp_path / "run", sample, engine=MovedEngine, gpt=options)
    # the one of step 2 may have been under way
    tags = folders.committed(tmp_path / "moved/checkpoints")
    assert tags in (["global_step1"], ["global_step2"])
    assert folders.newest_good(tmp_path / "moved/checkpoints", []) == tags[0]
    if is_replaced:
        assert content_of(tmp_path / "run") == content_of(successor)
    else:
        assert not (tmp_path / "run").exists()


def content_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


class LinkingEngine(PlainEngine):
    """While it computes step 2 somebody lays a link where its checkpoint will be staged."""

    def step(self, *arguments):
        if self._steps == 1:
            os.symlink(self.target, self.folder / folders.staging_tag(2))
        return super().step(*arguments)


def test_a_checkpoint_is_not_written_through_a_link(sample, tmp_path):
    target = tmp_path / "of somebody"
    target.mkdir()
    (target / "thesis").write_text("precious")
    LinkingEngine.target = target
    LinkingEngine.folder = tmp_path / "run/checkpoints"
    options = {"max_train_steps": 3, "log_ckpt_every": 1}
    train(tmp_path / "run", sample, engine=LinkingEngine, gpt=options)
    assert os.listdir(target) == ["thesis"]
    failures = read_metrics(tmp_path / "run", "checkpoint_failed")
    assert [event["reason"] for event in failures] == [
        f"{LinkingEngine.folder}/.global_step2.staging is a link, where a folder of ours should be"
    ]
    assert sorted(os.listdir(LinkingEngine.folder)) == ["global_step1", "global_step3", "latest"]


class RemovedEngine(PlainEngine):
    """While it computes step 3 somebody removes the checkpoints for room."""

    def step(self, *arguments):
        if self._steps == 2:
            shutil.rmtree(self.folder)
        return super().step(*arguments)


def test_a_run_whose_checkpoints_are_removed_keeps_its_next_ones(sample, tmp_path):
    RemovedEngine.folder = tmp_path / "run/checkpoints"
    options = {"max_train_steps": 5, "log_ckpt_every": 2}
    train(tmp_path / "run", sample, engine=RemovedEngine, gpt=options)
    assert folders.newest_good(RemovedEngine.folder, []) == "global_step5"

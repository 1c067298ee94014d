"""Checkpoints that are damaged, missing or too many."""

import errno
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from finished_run import damage

from gpt.checkpoint import checkpoint, folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.weights import consolidate
from gpt.errors import UserError

FILES = [
    "checkpoint.json",
    "config.yaml",
    "mp_rank_00_model_states.pt",
    "tokenizer.model",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
]


def test_a_checkpoint_tells_what_it_is(run):
    folder = run / "runs/tiny/checkpoints"
    assert folders.committed(folder) == ["global_step4", "global_step5", "global_step6"]
    assert (folder / "latest").read_text() == "global_step6\n"
    assert sorted(os.listdir(folder / "global_step6")) == FILES
    manifest = Checkpoint.open(folder / "global_step6").verify().manifest
    assert (manifest.step, manifest.tokens, manifest.ranks) == (6, 6 * 256, 1)
    assert sorted([*manifest.files, "checkpoint.json"]) == FILES
    assert 6 < manifest.probe.loss < 8


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_is_found_named_and_walked_back_from(name, how, run):
    folder = run / "runs/tiny/checkpoints"
    damage(folder / "global_step6" / name, how)
    with pytest.raises(UserError):
        consolidate(folder, run / "out")
    notices = []
    assert folders.newest_good(folder, notices) == "global_step5"
    assert name in notices[0] and len(notices) == 1


def test_a_disk_that_cannot_be_read_is_walked_back_from(run, monkeypatch):
    folder = run / "runs/tiny/checkpoints"
    read = checkpoint.hash_file
    notices = []

    def hash_file(path):
        if "global_step6/mp_rank" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(checkpoint, "hash_file", hash_file)
    assert folders.newest_good(folder, notices) == "global_step5"
    assert notices == [
        f"CHECKPOINT NOT USED: {folder}/global_step6/mp_rank_00_model_states.pt: Input/output"
        " error: use another checkpoint; going back to an earlier one"
    ]


@pytest.mark.parametrize("content", [None, "", "..", "global_step99", "x" * 400])
def test_a_lost_pointer_loses_nothing(content, run):
    folder = run / "runs/tiny/checkpoints"
    (folder / "latest").unlink() if content is None else (folder / "latest").write_text(content)
    notices = []
    assert folders.newest_good(folder, notices) == "global_step6"
    assert "does not name a checkpoint that is there: taking global_step6" in notices[0]


def test_what_a_crash_leaves_is_put_right(run):
    folder = run / "runs/tiny/checkpoints"
    # killed between setting aside and renaming
    os.rename(folder / "global_step6", folder / ".global_step6.old")
    (folder / ".global_step7.staging").mkdir()
    leftover = folder / "global_step5/.checkpoint.json.0123abcd.new"
    leftover.touch()
    folders.clean_up(folder)
    assert sorted(os.listdir(folder)) == ["global_step4", "global_step5", "global_step6", "latest"]
    assert not leftover.exists()


def test_what_a_network_disk_hides_is_no_part_of_a_checkpoint(tmp_path):
    for name in ("mp_rank_00_model_states.pt", ".nfs00000001", "._mp_rank_00_model_states.pt"):
        (tmp_path / name).touch()
    assert list(folders.own_files(tmp_path, 0)) == ["mp_rank_00_model_states.pt"]


@pytest.mark.parametrize(
    "name, rank",
    [
        ("mp_rank_00_model_states.pt", 0),
        ("zero_pp_rank_3_mp_rank_00_model_states.pt", 3),
        ("config.yaml", 0),
        ("bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt", 12),
    ],
)
def test_whose_part_a_file_is(name, rank):
    assert folders.rank_of(Path(name)) == rank


def test_retention(tmp_path):
    for step in range(1, 11):
        (tmp_path / f"global_step{step}").mkdir()
    (tmp_path / "latest").write_text("global_step9")
    folders.retain(tmp_path, 2, 4, keep_steps=[3])
    assert folders.committed(tmp_path) == [f"global_step{step}" for step in (3, 4, 8, 9, 10)]
    folders.retain(tmp_path, 2, 4)
    assert folders.committed(tmp_path) == [f"global_step{step}" for step in (4, 8, 9, 10)]
    folders.retain(tmp_path, 0, 0)
    assert len(folders.committed(tmp_path)) == 4


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    for step in (1, 2):
        (tmp_path / f"global_step{step}").mkdir()

    def rmtree(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(folders.shutil, "rmtree", rmtree)
    with pytest.raises(PermissionError) as error:
        folders.retain(tmp_path, 1, 0)
    assert error.value.filename == f"{tmp_path}/.global_step1.staging"


def test_the_tool_names_what_is_damaged(run, run_command):
    tool = [sys.executable, ROOT / "tools/verify_checkpoint.py"]
    done = run_command([*tool, "runs/tiny/checkpoints"], run)
    assert done.returncode == 0 and done.stdout.count("whole, 4 files") == 3
    damage(run / "runs/tiny/checkpoints/global_step5/tokenizer.model", "truncated")
    done = run_command([*tool, "runs/tiny/checkpoints"], run)
    assert done.returncode == 1 and done.stdout.count("whole, 4 files") == 2
    assert (
        "global_step5: NOT WHOLE: runs/tiny/checkpoints/global_step5/tokenizer.model is not as"
        " it was" in done.stdout
    )
    assert run_command([*tool, "runs/tiny"], run).returncode == 2


def test_links_are_removed_as_links(run):
    folder = run / "runs/tiny/checkpoints"
    target = run / "of somebody"
    target.mkdir()
    (target / "thesis").write_text("precious")
    for name in (".global_step7.staging", ".global_step8.old", ".latest.0123abcd.new"):
        (folder / name).symlink_to(target)
    folders.clean_up(folder)
    assert sorted(os.listdir(folder)) == ["global_step4", "global_step5", "global_step6", "latest"]
    assert os.listdir(target) == ["thesis"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_pointer_that_is_no_file_is_told(make, tmp_path):
    (tmp_path / "global_step1").mkdir()
    make(tmp_path / "latest")
    with pytest.raises(OSError) as error:
        folders.latest(tmp_path)
    assert error.value.filename == str(tmp_path / "latest")

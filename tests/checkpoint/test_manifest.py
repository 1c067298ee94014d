"""checkpoint.json: its content field by field, and what older ones lack."""

import json
import os

import pytest

from gpt.checkpoint import manifest
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import (
    Manifest,
    Probe,
    read_content,
    same_loss,
    write_content,
)
from gpt.errors import UserError

FILES = {"config.yaml": {"size": 3, "sha256": "ab"}}
OF_A_RUN = {
    "format": 2,
    "step": 6,
    "evaluated_step": None,
    "evaluated_whole": False,
    "left_out": [3],
    "losses": [7.5, 7.25],
    "seconds": 1.5,
    "tokens": 1536,
    "ranks": 2,
    "precision": "bf16",
    "zero_stage": 1,
    "loss_scale": 1.0,
    "dataset": "cd",
    "probe": {"tokens": [[1, 2, 3]], "loss": 7.5},
    "files": FILES,
}
CONSOLIDATED = {
    "format": 2,
    "step": 6,
    "made_from": {"checkpoint": "global_step6", "sha256": "ef"},
    "files": FILES,
}


def written(folder, content):
    write_content(folder, content)
    return (folder / "checkpoint.json").read_bytes()


@pytest.mark.parametrize("content", [OF_A_RUN, CONSOLIDATED], ids=["of a run", "consolidated"])
def test_a_manifest_is_read_and_written_to_the_same_bytes(content, tmp_path):
    before = written(tmp_path, content)
    read = Manifest.read(tmp_path)
    read.write(tmp_path)
    assert (tmp_path / "checkpoint.json").read_bytes() == before
    assert list(json.loads(before)) == [*content, "sha256"]
    assert read.sha256 == json.loads(before)["sha256"]


def test_a_manifest_has_its_fields(tmp_path):
    written(tmp_path, OF_A_RUN)
    read = Manifest.read(tmp_path)
    assert read.probe == Probe([[1, 2, 3]], 7.5)
    assert (read.step, read.evaluated_step, read.left_out) == (6, None, [3])
    assert read.lacks is None


@pytest.mark.parametrize("name", ["evaluated_step", "left_out", "probe", "seconds"])
@pytest.mark.parametrize("how", ["absent", "of another type"])
def test_what_an_older_one_lacks_is_named(name, how, tmp_path):
    content = {key: value for key, value in OF_A_RUN.items() if key != name}
    if how == "of another type":
        content[name] = "text"
    written(tmp_path, {**content, "of another version": 1})
    assert Manifest.read(tmp_path).lacks == name


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 2}', json.dumps({**OF_A_RUN, "sha256": "00"})]
)
def test_a_damaged_one_is_not_read(text, tmp_path):
    (tmp_path / "checkpoint.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_content(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/checkpoint.json is missing or damaged, so the checkpoint was not committed or"
        " cannot be verified: use another one"
    )


FORGED = [
    ("evaluated_step", -1),
    ("evaluated_step", True),
    ("left_out", [-1]),
    ("left_out", [10**30]),
    ("left_out", ["3"]),
    ("left_out", {"3": 3}),
    ("losses", [None]),
    ("losses", [float("inf")]),
    ("losses", [[7.5]]),
    ("seconds", float("nan")),
    ("seconds", -1),
    ("ranks", 0),
    ("ranks", 2.0),
    ("precision", "fp8"),
    ("precision", ["fp32"]),
    ("zero_stage", 4),
    ("loss_scale", 0),
    ("loss_scale", float("inf")),
    ("probe", {"tokens": [[1, 2], [3]], "loss": 7.5}),
    ("probe", {"tokens": [[1]], "loss": 7.5}),
    ("probe", {"tokens": [[1, -2]], "loss": 7.5}),
    ("probe", {"tokens": [[1, 2.0]], "loss": 7.5}),
    ("probe", {"tokens": [1, 2], "loss": 7.5}),
    ("probe", {"tokens": [[1, 2]], "loss": "7.5"}),
]


def with_seal(folder, content):
    """checkpoint.json as an earlier version, or somebody else, wrote it."""
    sealed = {**content, "sha256": manifest._seal(content)}
    (folder / "checkpoint.json").write_text(json.dumps(sealed))


@pytest.mark.parametrize("name, value", FORGED)
def test_a_value_that_cannot_be_is_lacking(name, value, tmp_path):
    with_seal(tmp_path, {**OF_A_RUN, name: value})
    forged = Manifest.read(tmp_path)
    assert forged.lacks == name
    assert getattr(forged, name) == getattr(Manifest(), name)


BAD_FILES = [
    {"../other": {"size": 3, "sha256": "ab"}},
    {"/etc/passwd": {"size": 3, "sha256": "ab"}},
    {"a\0b": {"size": 3, "sha256": "ab"}},
    {"": {"size": 3, "sha256": "ab"}},
    {"config.yaml": 3},
    {"config.yaml": {"size": "3", "sha256": "ab"}},
    {"config.yaml": {"size": -3, "sha256": "ab"}},
    {"config.yaml": {"size": 3, "sha256": None}},
    {"config.yaml": {"size": 3}},
]


@pytest.mark.parametrize("files", BAD_FILES)
def test_files_that_cannot_be_the_checkpoints_are_damage(files, tmp_path):
    with_seal(tmp_path, {**OF_A_RUN, "files": files})
    with pytest.raises(UserError, match="is missing or damaged"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_waited_for(make, tmp_path):
    make(tmp_path / "checkpoint.json")
    with pytest.raises(UserError, match="is missing or damaged"):
        Manifest.read(tmp_path)


def test_json_never_holds_what_is_no_number(tmp_path):
    with pytest.raises(ValueError):
        write_content(tmp_path, {**OF_A_RUN, "seconds": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_checkpoint_of_a_diverged_run_is_not_whole(loss, tmp_path):
    probe = {"tokens": [[1, 2, 3]], "loss": loss}
    with_seal(tmp_path, {**OF_A_RUN, "files": {}, "probe": probe})
    with pytest.raises(UserError) as error:
        Checkpoint.open(tmp_path).verify()
    assert str(error.value) == (
        f"{tmp_path} holds weights of a run that had diverged: their loss was {loss} when they were"
        " saved: use an earlier checkpoint"
    )


@pytest.mark.parametrize(
    "loss, precisions, times, same",
    [
        (10.00009, ("fp32",), 1, True),
        (10.00011, ("fp32",), 1, False),
        (10.00011, ("fp32", "bf16"), 1, True),
        (10.09, ("fp16",), 1, False),
        (10.09, ("fp16",), 5, True),
        (float("nan"), ("bf16",), 5, False),
    ],
)
def test_a_loss_is_the_same_within_the_coarser_precision(loss, precisions, times, same):
    assert same_loss(loss, 10.0, *precisions, times=times) is same


@pytest.mark.parametrize("change", [{"files": None}, {"files": 3}, {"step": None}, {"step": "6"}])
def test_one_that_does_not_tell_its_files_or_step_is_damaged(change, tmp_path):
    written(tmp_path, {**OF_A_RUN, **change})
    with pytest.raises(UserError, match="is missing or damaged"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("probe", [{}, {"tokens": [[1, 2]]}, {"tokens": 3, "loss": 7.5}, [1]])
def test_a_probe_that_is_none_is_lacking(probe, tmp_path):
    written(tmp_path, {**OF_A_RUN, "probe": probe})
    read = Manifest.read(tmp_path)
    assert (read.lacks, read.probe.tokens) == ("probe", [])

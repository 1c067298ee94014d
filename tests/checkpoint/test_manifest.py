"""checkpoint.json: its content field by field, and what older ones lack."""

import json

import pytest

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
    manifest = Manifest.read(tmp_path)
    manifest.write(tmp_path)
    assert (tmp_path / "checkpoint.json").read_bytes() == before
    assert list(json.loads(before)) == [*content, "sha256"]
    assert manifest.sha256 == json.loads(before)["sha256"]


def test_a_manifest_has_its_fields(tmp_path):
    written(tmp_path, OF_A_RUN)
    manifest = Manifest.read(tmp_path)
    assert manifest.probe == Probe([[1, 2, 3]], 7.5)
    assert (manifest.step, manifest.evaluated_step, manifest.left_out) == (6, None, [3])
    assert manifest.lacks is None


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
    manifest = Manifest.read(tmp_path)
    assert (manifest.lacks, manifest.probe.tokens) == ("probe", [])

"""Evaluations of a run's checkpoints: one that is joined to the run, and all of them."""

import json
import shutil
import sys

import pytest
from conftest import load_command
from finished_run import damage
from synthetic_runs import chain_anew

from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.weights import consolidate, consolidate_mean
from gpt.config.saved import read_config, write_config
from gpt.errors import UserError
from gpt.quantities import contradiction
from gpt.results import evaluations

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def joined(finished):
    """A run's folder with an evaluation of its last weights joined to it, and its file."""
    run = finished / "runs/tiny"
    consolidate(run / "checkpoints", finished / "export")
    weights = finished / "export/model.safetensors"
    evaluate("--checkpoint_file", weights, "--join", run, "--last_n", 32)
    return run, run / "evaluations/test-step6.json"


def evaluate(*options):
    argv = sys.argv
    sys.argv = ["eval.py", *map(str, options)]
    try:
        load_command("eval", "gpt").main()
    finally:
        sys.argv = argv


def test_a_joined_evaluation_is_read_as_the_runs(joined, sample):
    run, file = joined
    config = read_config(run / "config.yaml")
    result = evaluations.read(run, config, "test", 6)
    source = json.loads((sample / "manifest.json").read_text())["splits"]["test"]
    assert (result["tokens"], result["bytes"]) == (source["tokens"], source["bytes"])
    assert contradiction(result) is None and result["step"] == 6
    assert (result["run"]["name"], result["run"]["checkpoint"]) == ("tiny", "global_step6")
    assert evaluations.read(run, config, "python", 6) is None
    assert evaluations.read(run, config, "test", 5) is None
    assert [path.name for path in file.parent.iterdir()] == ["test-step6.json"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"normalised_ppl": 1.5}, "contradicts itself: normalised_ppl is 1.5, and its sums make"),
        ({"split": "python"}, "is of another split or step than its name says"),
        ({"step": 5}, "is of another split or step than its name says"),
        ({"of_tokens": 10**9}, "is not of the whole split"),
        ({"documents": "x"}, "is of other documents than the run's own evaluations"),
        ({"run": {"curve": "x"}}, "is of another run, or of other settings"),
        ({"run": None}, "is not what eval.py --join writes"),
    ],
)
def test_files_that_are_not_the_runs_evaluation(change, sentence, joined, tmp_path):
    run, file = joined
    config = read_config(run / "config.yaml")
    copy = evaluations.file_of(tmp_path, "test", 6)
    copy.parent.mkdir()
    copy.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as error:
        evaluations.read(tmp_path, config, "test", 6)
    assert str(error.value).startswith(f"{copy} {sentence}")
    assert str(error.value).endswith(": remove it, or evaluate again with --join")
    copy.write_text(file.read_text())
    config["run"]["gpt"]["seed"] += 1
    with pytest.raises(UserError, match="is of another run, or of other settings"):
        evaluations.read(tmp_path, config, "test", 6)


def test_weights_that_are_not_the_runs_are_not_joined(joined, tmp_path):
    run, _ = joined
    weights = run.parents[1] / "export/model.safetensors"
    other = shutil.copytree(run, tmp_path / "other")
    config = read_config(other / "config.yaml")
    config["run"]["gpt"]["seed"] = 5
    write_config(other / "config.yaml", config)
    with pytest.raises(UserError, match="was not trained by .*: seed is 5 in the run, and 0 in"):
        evaluate("--checkpoint_file", weights, "--join", other)
    shutil.copy(run / "config.yaml", other / "config.yaml")
    again = other / "checkpoints/global_step6"
    shutil.rmtree(again)
    shutil.copytree(other / "checkpoints/global_step5", again)
    with pytest.raises(UserError, match="is made from another global_step6 than"):
        evaluate("--checkpoint_file", weights, "--join", other)
    consolidate_mean(run / "checkpoints", tmp_path / "mean", 2)
    with pytest.raises(UserError, match="is not made from one checkpoint of a run: join the"):
        evaluate("--checkpoint_file", tmp_path / "mean/model.safetensors", "--join", run)


def test_what_would_not_be_read_as_the_runs_is_not_joined(joined, capsys):
    run, file = joined
    before = file.read_bytes()
    weights = run.parents[1] / "export/model.safetensors"
    with pytest.raises(UserError) as error:
        evaluate("--checkpoint_file", weights, "--join", run, "--seq_len", 16)
    assert str(error.value) == (
        f"--join {run}: this evaluation of 'test' is with another seq_len than the model's: give"
        " the dataset that the run was trained on, and no --seq_len"
    )
    result = json.loads(before)
    with pytest.raises(UserError, match="'test' is of other documents than the run's own eval"):
        evaluations.require_same_measure(run, {**result, "documents": "x"})
    checkpoint = Checkpoint.open(weights.parent)
    for change, mistake in (
        ({"documents": "x"}, "is of other documents than the run's own evaluations"),
        ({"of_tokens": 10**9}, "is not of the whole split"),
        ({"loss": 1.0}, "contradicts itself: loss is 1, and its sums make it"),
    ):
        with pytest.raises(UserError, match=f"nothing is joined to {run}: this .* {mistake}"):
            evaluations.join(run, {**result, **change}, checkpoint)
    assert file.read_bytes() == before
    # another context is another measure, which a reader of runs sees to
    capsys.readouterr()
    evaluate("--checkpoint_file", weights, "--join", run, "--last_n", 16)
    replaced = f"joined: {file} (last_n 16; replaces the one with last_n 32)\n"
    assert capsys.readouterr().out.endswith(replaced)
    file.write_bytes(before)


def test_every_checkpoint_of_a_run(joined, tmp_path, capsys):
    run, file = joined
    copy = shutil.copytree(run, tmp_path / "run")
    damage(next((copy / "checkpoints/global_step5").glob("*_optim_states.pt")), "flipped")
    evaluate("--checkpoints", copy, "--last_n", 32, "--json", tmp_path / "curve.json")
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert [result["step"] for result in curve] == [4, 6]
    # the same as of the file that was made of the checkpoint
    names = ("total_loss", "text_nats", "tokens", "bytes", "top1")
    alone = json.loads(file.read_text())
    assert {name: curve[1][name] for name in names} == {name: alone[name] for name in names}
    said = capsys.readouterr()
    assert "notice: left out: " in said.err and "global_step5" in said.err
    steps = [line.split()[1] for line in said.out.splitlines() if line.startswith("test ")]
    assert steps == ["4", "6"]
    with pytest.raises(UserError, match="holds no checkpoints: give the folder of a run"):
        evaluate("--checkpoints", tmp_path)


def test_weights_that_other_code_trained(joined, tmp_path, capsys):
    run, _ = joined
    export = shutil.copytree(run.parents[1] / "export", tmp_path / "export")
    (export / "checkpoint.json").unlink()
    config = read_config(export / "config.yaml")
    config["code"]["parts"]["model"] = "0" * 12
    config["code"]["commit"] = "abc"
    write_config(export / "config.yaml", config)
    (tmp_path / "a.txt").write_text("Seven breads later, nobody asks.")
    options = ["--checkpoint_file", export / "model.safetensors", "--text", tmp_path / "a.txt"]
    evaluate(*options)
    assert capsys.readouterr().err == (
        "notice: the model was trained by other code than is here (model; commit abc): its figures"
        " here need not be those of its run\n"
    )
    with pytest.raises(UserError, match="export has no checkpoint.json, which tells what its"):
        evaluate(*options[:2], "--join", run)


def test_a_leaderboard_of_another_split(joined, finished, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        shutil.copytree(joined[0], tmp_path / name, ignore=shutil.ignore_patterns("*.pt"))
    metrics = tmp_path / "b/metrics.jsonl"  # of a run on another host, which is no copy
    metrics.write_text(metrics.read_text().replace('"host": "', '"host": "other-'))
    chain_anew(metrics)
    weights = finished / "export/model.safetensors"
    evaluate("--checkpoint_file", weights, "--eval_data_split", "python", "--join", tmp_path / "a")
    told = json.loads((tmp_path / "a/evaluations/python-step6.json").read_text())
    capsys.readouterr()
    argv = ["compare.py", str(tmp_path), "--over", "tokens", "--split"]
    monkeypatch.setattr(sys, "argv", [*argv, "python"])
    load_command("compare").main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("Final evaluation on 'python': the whole split, ")
    assert f"{told['bytes']:,} bytes" in first
    (row,) = [line for line in lines if line.startswith("| 1 ")]
    assert f"| {told['normalised_ppl']:.4f} | {told['bits_per_byte']:.4f} |" in row
    notices = [line for line in lines if line.startswith("notice")]
    assert notices == ["notice: b is left out: no evaluation of 'python' is joined to it"]
    monkeypatch.setattr(sys, "argv", [*argv, "java"])
    with pytest.raises(UserError) as error:
        load_command("compare").main()
    assert str(error.value) == (
        "no run has an evaluation of the split 'java': make them with `python gpt/eval.py --join"
        " RUN`"
    )

"""Runs that branch off from another's checkpoint."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from conftest import ROOT, read_metrics, tiny_run, write_run
from plain_run import WEIGHTS, train
from synthetic_runs import chain_anew

from gpt.checkpoint.zero_files import read_state
from gpt.config.identity import first_weights_of, identity
from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.metrics.runs import read_run
from gpt.training.branch import on_paper

TRAIN = ROOT / "gpt" / "train.py"

STEPS = 6
FIRST = 4  # steps of the trunk
TRUNK = {"max_train_steps": STEPS, "log_ckpt_every": 2, "keep_last": 0}


def schedule(kind="LinearCooldownLR", **params):
    common = {"max_lr": 3e-3, "min_lr": 1e-4, "warmup_steps": 2, "decay_steps": STEPS}
    return {"scheduler": {"type": kind, "params": {**common, **params}}}


CONSTANT = schedule(cooldown_share=0.0)
COOLING = schedule(cooldown_share=1 / 3)


@pytest.fixture(scope="module")
def trunk(sample, tmp_path_factory):
    """A run of six steps at a constant rate, with checkpoints after every second."""
    run_dir = tmp_path_factory.mktemp("trunk") / "trunk"
    train(run_dir, sample, gpt={**TRUNK, "eval_every": 2}, **CONSTANT)
    return run_dir


def branch(run_dir, sample, trunk, step=FIRST, allowed=(), gpt=(), **options):
    gpt = {
        "max_train_steps": STEPS,
        "branch_from": str(trunk / "checkpoints" / f"global_step{step}"),
        **dict(gpt),
    }
    return train(run_dir, sample, allowed, gpt=gpt, **{**COOLING, **options})


def weights(run_dir, step=STEPS):
    path = run_dir / "checkpoints" / f"global_step{step}" / WEIGHTS
    return torch.load(path, weights_only=True)


def config_of(run_dir):
    return yaml.safe_load((run_dir / "config.yaml").read_text())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(a, other[k]) for k, a in tensors(one))


def tensors(state):
    return [(name, value) for name, value in state.items() if torch.is_tensor(value)]


def test_a_branch_is_the_run_that_was_trained_straight_bit_for_bit(trunk, sample, tmp_path):
    branch(tmp_path / "branch", sample, trunk)
    train(tmp_path / "straight", sample, gpt={"max_train_steps": STEPS}, **COOLING)
    assert same(weights(tmp_path / "branch"), weights(tmp_path / "straight"))
    assert not same(weights(tmp_path / "branch"), weights(trunk))
    straight, branched = config_of(tmp_path / "straight"), config_of(tmp_path / "branch")
    assert identity(branched) == identity(straight)
    lines = {line["step"]: line for line in read_metrics(tmp_path / "straight", "train")}
    own = read_metrics(tmp_path / "branch", "train")
    assert [line["step"] for line in own] == [5, 6]
    for line in own:
        for name in ("loss", "lr", "train_tokens", "flops"):
            assert line[name] == lines[line["step"]][name], name
    hours = read_metrics(trunk, "train")[FIRST - 1]["hours"]
    assert all(line["hours"] >= hours for line in own)


def test_where_a_branch_began_stands_in_its_config(trunk, sample, tmp_path):
    branch(tmp_path / "branch", sample, trunk)
    began_from = config_of(tmp_path / "branch")["began_from"]
    assert began_from["branch"] == str(trunk / "checkpoints" / "global_step4")
    assert began_from["step"] == FIRST and len(began_from["sha256"]) == 64
    run = read_run(tmp_path / "branch")
    assert run.finished and run.first_step == FIRST
    # none of its steps was due for a line
    gpt = {"log_metrics_every": 4}
    branch(tmp_path / "mute", sample, trunk, gpt=gpt)
    assert not read_metrics(tmp_path / "mute", "train")
    assert config_of(tmp_path / "mute")["began_from"] == began_from


def test_the_folder_of_checkpoints_stands_for_the_latest(trunk, sample, tmp_path):
    gpt = {"branch_from": str(trunk / "checkpoints"), "max_train_steps": 8}
    branch(tmp_path / "run", sample, trunk, gpt=gpt, **schedule(decay_steps=8, cooldown_share=0.25))
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [7, 8]


def test_a_stopped_branch_goes_on_and_without_its_trunk(trunk, sample, tmp_path):
    copy = tmp_path / "moved"
    copy.symlink_to(trunk)
    gpt = {"branch_from": str(copy / "checkpoints" / "global_step2"), "log_ckpt_every": 1}
    run_dir = tmp_path / "run"
    branch(run_dir, sample, trunk, gpt={**gpt, "max_train_steps": 5})
    copy.unlink()
    branch(run_dir, sample, trunk, gpt=gpt)
    assert [line["step"] for line in read_metrics(run_dir, "train")] == [3, 4, 5, 6]
    assert config_of(run_dir)["began_from"]["step"] == 2
    branch(tmp_path / "whole", sample, trunk, step=2)
    assert same(weights(run_dir), weights(tmp_path / "whole"))
    # the same checkpoint by another name is the same beginning, another one is not
    branch(run_dir, sample, trunk, step=2)
    with pytest.raises(UserError) as caught:
        branch(run_dir, sample, trunk, step=4)
    assert f"{run_dir} holds a run with other settings (branch_from was" in str(caught.value)
    with pytest.raises(UserError) as caught:
        train(run_dir, sample, gpt={"max_train_steps": STEPS}, **COOLING)
    assert "is not set)" in str(caught.value)


def test_a_branch_whose_rate_was_another_on_the_way_tells_so_in_its_identity(
    trunk, sample, tmp_path, capsys
):
    other = schedule(max_lr=1e-3, cooldown_share=1 / 3)
    for name in ("one", "two"):
        branch(tmp_path / name, sample, trunk, **other)
    assert (
        "notice: the learning rate leaps where the branch begins: the trunk's step 4 was made at"
        " 0.003, where the branch's schedule has 0.001" in capsys.readouterr().out
    )
    train(tmp_path / "straight", sample, gpt={"max_train_steps": STEPS}, **other)
    one, two, straight = (
        identity(config_of(tmp_path / name)) for name in ("one", "two", "straight")
    )
    assert one == two
    assert one != straight
    assert "scheduler.params.max_lr 0.003 -> 0.001 at step 4" in one["changes"]


def test_a_branch_of_a_rate_on_its_way_is_told(sample, tmp_path, trunk, capsys):
    branch(tmp_path / "one", sample, trunk, gpt={"max_train_steps": 7})
    branch(
        tmp_path / "two",
        sample,
        tmp_path / "one",
        step=7,
        gpt={"max_train_steps": 8},
    )
    assert "the trunk's learning rate is 0.0001, on its way from or to max_lr 0.003" in (
        capsys.readouterr().out
    )


def test_a_branch_of_a_cosine_is_one_with_another_schedule(sample, tmp_path):
    train(tmp_path / "cosine", sample, gpt=TRUNK, **schedule("LanguiniCosineLR"))
    branch(tmp_path / "branch", sample, tmp_path / "cosine")
    changes = identity(config_of(tmp_path / "branch"))["changes"]
    assert "scheduler.type LanguiniCosineLR -> LinearCooldownLR at step 4" in changes


def test_what_is_measured_may_be_another(trunk, sample, tmp_path):
    gpt = {"eval_every": 4, "max_eval_steps": 1, "last_n": 8}
    branch(tmp_path / "branch", sample, trunk, gpt=gpt)
    # its own measure of the weights that it begins with
    assert [line["step"] for line in read_metrics(tmp_path / "branch", "eval")] == [4, 6]


def test_settings_may_change_with_leave(trunk, sample, tmp_path):
    with pytest.raises(UserError):
        branch(tmp_path / "branch", sample, trunk, gradient_clipping=1.0)
    branch(tmp_path / "branch", sample, trunk, allowed=["gradient_clipping"], gradient_clipping=1.0)
    changes = config_of(tmp_path / "branch")["changes"]
    assert changes == [{"step": 4, "setting": "gradient_clipping", "was": 0, "is": 1}]


MISTAKES = [
    (
        {"gpt": {"seed": 1}},
        "--branch_from: {trunk}/checkpoints/global_step4 is of a run with other settings (seed was"
        " 0, is 1): a branch has a schedule and a length of its own, and all else as its trunk;"
        " --allow_change seed allows the change on purpose",
    ),
    (
        {"gpt": {"mlp_dim": 48}},
        "(model.mlp_dim was 64, is 48): a branch has a schedule and a length of its own, and all"
        " else as its trunk (model.mlp_dim cannot change within a run)",
    ),
    (
        {"gpt": {"branch_from": "{trunk}/checkpoints/global_step5"}},
        "--branch_from: {trunk}/checkpoints/global_step5 is not a folder: give a run's checkpoints"
        " folder, such as runs/quickstart/checkpoints",
    ),
    (
        {"gpt": {"branch_from": "{trunk}"}},
        "--branch_from: {trunk} has no checkpoint: give {trunk}/checkpoints",
    ),
    (
        {"gpt": {"max_train_steps": 4}},
        "--branch_from: {trunk}/checkpoints/global_step4 is of step 4, and the branch ends at step"
        " 4: give more --max_train_steps, or an earlier checkpoint",
    ),
    (
        {"gpt": {"run_dir": "{trunk}", "branch_from": "{trunk}/checkpoints/global_step4"}},
        "--branch_from: {trunk}/checkpoints/global_step4 is in {trunk}, the run's own folder: name"
        " another --run_dir for the branch, or leave the option out to go on with that run",
    ),
    (
        {"gpt": {"init_from": "weights"}},
        "gpt.branch_from is set beside gpt.init_from, and a branch begins with the weights of its"
        " trunk: leave one of them out",
    ),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}},
        "gpt.branch_from needs a schedule of the trainer's own: set scheduler.type to"
        " LinearCooldownLR or LanguiniCosineLR",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), MISTAKES)
def test_a_mistake_of_a_branch_gets_its_sentence(options, sentence, trunk, sample, tmp_path):
    options = json.loads(json.dumps(options).replace("{trunk}", str(trunk)))
    with pytest.raises(UserError) as caught:
        branch(tmp_path / "branch", sample, trunk, **options)
    assert sentence.replace("{trunk}", str(trunk)) in str(caught.value)
    assert not (tmp_path / "branch").exists()


def test_a_damaged_trunk_is_told(trunk, sample, tmp_path):
    folder = tmp_path / "trunk" / "checkpoints" / "global_step4"
    folder.mkdir(parents=True)
    for path in (trunk / "checkpoints" / "global_step4").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        branch(tmp_path / "branch", sample, tmp_path / "trunk")
    assert str(caught.value) == (
        f"--branch_from: {folder / WEIGHTS} is not as it was written (its size or sha256 differs):"
        " use another checkpoint"
    )


def test_the_dry_run_tells_the_part_that_a_branch_trains_itself(trunk, sample, tmp_path):
    gpt = {"branch_from": str(trunk / "checkpoints/global_step4"), "data_root": str(sample)}
    config = resolve(tiny_run(gpt=gpt, **COOLING), "tiny")
    notices = on_paper(config, Dataset(sample), allowed=()).notices
    assert notices[-1] == (
        f"it begins after step 4 of {trunk}/checkpoints/global_step4, and trains 2 of the 6 steps"
        " itself: 512 tokens, 33% of the figures for the whole run"
    )
    other = resolve(tiny_run(gpt={**gpt, "seed": 1}, **COOLING), "tiny")
    for dataset in (Dataset(sample), None):
        with pytest.raises(UserError) as caught:
            on_paper(other, dataset, allowed=())
        assert "is of a run with other settings (seed was 0, is 1): a" in str(caught.value)
    told = on_paper(other, None, allowed=["gpt.seed"]).notices
    assert "changed on branching off: seed was 0, is 1" in told


def test_the_first_weights_of_a_trunk_are_those_of_its_branches(trunk):
    config = config_of(trunk)
    origin = {"folder": "weights", "step": 1, "sha256": "a" * 64}
    branched = {"branch": "trunk/checkpoints/global_step4", "step": 4, "sha256": "b" * 64}
    straight = identity({**config, "began_from": origin})
    assert identity({**config, "began_from": {**branched, "first_weights": origin}}) == straight
    assert identity({**config, "began_from": branched}) == identity(config) != straight
    assert first_weights_of({"began_from": {**branched, "first_weights": origin}}) == origin
    assert first_weights_of({"began_from": origin}) == origin
    assert first_weights_of({"began_from": branched}) == {}


def test_lines_of_an_attempt_from_an_earlier_checkpoint_are_left_out(trunk, sample, tmp_path):
    run_dir = tmp_path / "run"
    branch(run_dir, sample, trunk, step=2, gpt={"eval_every": 1})
    shutil.rmtree(run_dir / "checkpoints")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    # as a kill before the first checkpoint leaves it
    kept = [line for line in lines if json.loads(line)["event"] != "checkpoint"]
    (run_dir / "metrics.jsonl").write_text("".join(kept))
    chain_anew(run_dir / "metrics.jsonl")
    branch(run_dir, sample, trunk, step=4, gpt={"eval_every": 1})
    run = read_run(run_dir)
    assert [line["step"] for line in run.curve("train")] == [5, 6]
    assert [line["step"] for line in run.curve("eval", "test")] == [4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_branch_on_other_ranks_and_stages_goes_on_as_its_trunk(
    stage, sample, tmp_path, run_command
):
    """With DeepSpeed: on one rank bit for bit the straight run, on two ranks as near as sums in
    another order come."""
    config = write_run(
        tmp_path, gpt={"data_root": str(sample), "max_train_steps": STEPS}, **COOLING
    )
    weights_of = {}
    constant = ["--cooldown_share", 0, "--max_train_steps", FIRST]
    origin = ["--branch_from", "trunk/checkpoints"]
    for name, ranks, options in (
        ("straight", 1, []),
        ("trunk", 1, constant),
        ("branch", 1, origin),
        ("other", 2, [*origin, "--zero_optimization.stage", stage]),
    ):
        launcher = [sys.executable] if ranks == 1 else ["deepspeed", "-q", "--num_gpus", 2]
        port = ["--master_port", 29641] if ranks == 2 else []
        command = [*launcher, *port, TRAIN, "--ds_config", config, "--run_dir", name, *options]
        done = run_command(command, tmp_path, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = tmp_path / name / "checkpoints" / f"global_step{STEPS if name != 'trunk' else 4}"
        weights_of[name] = read_state(folder).weights
    for name, values in weights_of["straight"].items():
        assert torch.equal(values, weights_of["branch"][name]), name
        assert torch.allclose(values, weights_of["other"][name], atol=1e-6), name

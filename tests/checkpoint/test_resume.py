"""Going on from a checkpoint: which one, and with which settings."""

import shutil
import sys

import pytest
from conftest import ROOT, read_metrics, tiny_run, write_run
from finished_run import damage, go_on
from safetensors.torch import load_file

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import read_content, write_content
from gpt.checkpoint.weights import consolidate
from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.training.trainer import Trainer

TRAIN = ROOT / "gpt" / "train.py"


def test_a_resumed_run_says_loudly_what_it_did_not_use(run, run_command):
    damage(run / "runs/tiny/checkpoints/global_step6/mp_rank_00_model_states.pt", "flipped")
    done = go_on(run, run_command)
    assert done.returncode == 0, done.stderr
    assert (
        "notice: CHECKPOINT NOT USED: runs/tiny/checkpoints/global_step6/mp_rank_00_model_states.pt"
        " is not as it was" in (done.stdout)
    )
    assert "resuming runs/tiny after step 5" in done.stdout
    by_step = {}
    for event in read_metrics(run / "runs/tiny", "train"):
        by_step.setdefault(event["step"], []).append(event["loss"])
    assert by_step[6][0] == by_step[6][1]
    # written again, whole
    assert Checkpoint.open(run / "runs/tiny/checkpoints/global_step6").verify().step == 6


def test_no_whole_checkpoint_is_an_error_that_overwrites_nothing(run, run_command):
    folder = run / "runs/tiny/checkpoints"
    for tag in folders.committed(folder):
        damage(folder / tag / "config.yaml", "truncated")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = go_on(run, run_command)
    assert done.returncode == 2
    assert "error: no checkpoint in runs/tiny/checkpoints is whole" in done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_checkpoint_by_name(run, run_command):
    done = go_on(run, run_command, "--resume", "global_step4")
    assert done.returncode == 0 and "resuming runs/tiny after step 4" in done.stdout, done.stderr
    done = go_on(run, run_command, "--resume", "global_step7000")
    assert (
        done.returncode == 2
        and "has no checkpoint 'global_step7000': it has global_step" in done.stderr
    )


def test_a_change_must_be_allowed(run, run_command):
    refused = go_on(run, run_command, "--max_lr", "0.002")
    assert (
        refused.returncode == 2
        and "(scheduler.params.max_lr was 0.003, is 0.002)" in refused.stderr
    )
    wrong = go_on(run, run_command, "--max_lr", "0.002", "--allow_change", "params.max_lr")
    assert (
        wrong.returncode == 2
        and (
            "--allow_change params.max_lr: no setting that makes a curve is called so (did you mean"
            " 'scheduler.params.max_lr'?); what differs from the checkpoint:"
            " scheduler.params.max_lr"
        )
        in wrong.stderr
    )
    allow = ("--max_lr", "0.002", "--allow_change", "scheduler.params.max_lr")
    allowed = go_on(run, run_command, *allow)
    again = go_on(run, run_command, *allow, steps=9)
    assert allowed.returncode == again.returncode == 0, allowed.stderr + again.stderr
    assert (
        "notice: changed on resuming: scheduler.params.max_lr was 0.003, is 0.002" in allowed.stdout
    )
    assert "changed on resuming: scheduler" not in again.stdout


@pytest.mark.parametrize(
    "key, options",
    [
        ("model.n_layers", {"gpt": {"n_layers": 3}}),
        ("optimizer.type", {"optimizer": {"type": "SGD"}}),
        ("scheduler.type", {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}}),
    ],
)
def test_what_cannot_change_is_told_before_a_device_is_taken(key, options, run, sample):
    gpt = {"data_root": str(sample), "run_dir": str(run / "runs/tiny"), **options.pop("gpt", {})}
    config = resolve(tiny_run(gpt=gpt, **options), "tiny")
    with pytest.raises(
        UserError,
        match=(
            f"--allow_change {key}: {key} was .*, is .*, and that cannot change within a run: name"
        ),
    ):
        Trainer(config, Dataset(sample), 0, 1, ("torch", ""), allowed=[key])


@pytest.mark.parametrize(
    "stage", [1, pytest.param(0, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_an_allowed_change_is_in_force(stage, sample, tmp_path, run_command):
    """SGD without momentum: weights change by lr * (clipped gradient + weight_decay * weights), and
    the first of the two is as long as the clipping says."""

    def train(steps, changed=(), **options):
        config = write_run(
            tmp_path,
            zero_optimization={"stage": stage},
            gpt={"data_root": str(sample), "log_ckpt_every": 1},
            **options,
        )
        allowed = [word for key in changed for word in ("--allow_change", key)]
        done = run_command(
            [sys.executable, TRAIN, "--ds_config", config, "--max_train_steps", steps, *allowed],
            tmp_path,
        )
        assert done.returncode == 0, done.stderr

    train(2, optimizer={"type": "SGD", "params": {"momentum": 0.9}})
    schedule = {
        "type": "LanguiniCosineLR",
        "params": {"max_lr": 2e-3, "warmup_steps": 2, "decay_steps": 6},
    }
    changed = [
        "gradient_clipping",
        "scheduler.params.max_lr",
        "optimizer.params.momentum",
        "optimizer.params.weight_decay",
    ]
    train(
        3,
        changed,
        optimizer={"type": "SGD", "params": {"weight_decay": 0.5}},
        gradient_clipping=0.25,
        scheduler=schedule,
    )
    for step in (2, 3):
        consolidate(tmp_path / "runs/tiny/checkpoints", tmp_path / str(step), f"global_step{step}")
    before, after = (load_file(tmp_path / str(step) / "model.safetensors") for step in (2, 3))
    lr = 6e-6 + (2e-3 - 6e-6) / 2  # half of six steps are done
    assert read_metrics(tmp_path / "runs/tiny", "train")[2]["lr"] == pytest.approx(lr, rel=1e-12)
    gradient = [(before[name] - after[name]).double() / lr - 0.5 * before[name] for name in before]
    assert sum(part.square().sum().item() for part in gradient) ** 0.5 == pytest.approx(
        0.25, rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_loss_scale_goes_on_by_the_rules_of_the_present_configuration(
    stage, sample, tmp_path, run_command
):
    gpt = {"data_root": str(sample), "seq_len": 16}
    # 2^3 until then, and twice as much after every further step
    for steps, window in ((2, 2000), (4, 1)):
        fp16 = {"enabled": True, "initial_scale_power": 3, "loss_scale_window": window}
        config = write_run(tmp_path, zero_optimization={"stage": stage}, fp16=fp16, gpt=gpt)
        command = [
            sys.executable,
            ROOT / "tests/support/planted.py",
            "fp16",
            "--ds_config",
            config,
            "--max_train_steps",
            steps,
        ]
        done = run_command(command, tmp_path)
        assert done.returncode == 0, done.stderr
    assert [event["loss_scale"] for event in read_metrics(tmp_path / "runs/tiny", "train")] == [
        8,
        8,
        16,
        32,
    ]


def test_weights_that_are_not_those_that_were_saved_are_noticed(run, run_command):
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    manifest["probe"]["loss"] *= 1.001
    write_content(folder, manifest)
    done = go_on(run, run_command)
    assert done.returncode == 1
    assert "its weights give the loss" in done.stderr and "nothing was trained" in done.stderr


def test_facts_that_are_missing_are_named(run, run_command):
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    del manifest["left_out"]
    write_content(folder, manifest)
    done = go_on(run, run_command)
    assert (
        done.returncode == 2
        and "checkpoint.json does not tell left_out: another version" in done.stderr
    )


def test_checkpoints_that_are_gone_are_no_fresh_start(run, run_command):
    folder = run / "runs/tiny/checkpoints"
    for tag in folders.committed(folder):
        shutil.rmtree(folder / tag)
    done = go_on(run, run_command)
    assert done.returncode == 2
    assert "its checkpoints are gone: nothing can go on from it: bring one back" in done.stderr

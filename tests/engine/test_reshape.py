"""Going on with other ranks or another ZeRO stage."""

import sys

import numpy as np
import pytest
from conftest import ROOT, read_metrics, write_run

TRAIN = ROOT / "gpt" / "train.py"
QUICK = [((1, 2), (3, 1))]
SLOW = [
    ((1, 2), (2, 1)),
    ((1, 1), (3, 2)),
    ((3, 2), (1, 1)),
    ((2, 1), (3, 2)),
    ((3, 2), (3, 1)),
    ((3, 1), (2, 2)),
    ((0, 1), (2, 2)),
    ((2, 2), (0, 1)),
    ((1, 2), (1, 1)),
    ((1, 1), (1, 2)),
    ((0, 1), (3, 1)),
]


def launch(run_command, folder, stage, ranks, steps, sample, *options):
    gpt = {"data_root": str(sample), "log_ckpt_every": 0, "eval_every": 0}
    config = write_run(folder, zero_optimization={"stage": stage}, gpt=gpt)
    start = (
        ["torchrun", "--master_port", 29671, "--nproc_per_node", ranks]
        if ranks > 1
        else [sys.executable]
    )
    command = [*start, TRAIN, "--ds_config", config, "--max_train_steps", steps, *options]
    done = run_command(command, folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, sample, run_command):
    folder = tmp_path_factory.mktemp("undisturbed")
    launch(run_command, folder, 1, 1, 6, sample)
    return [event["loss"] for event in read_metrics(folder / "runs/tiny", "train")]


def check(before, after, undisturbed, sample, folder, run_command):
    launch(run_command, folder, *before, 3, sample)
    output = launch(run_command, folder, *after, 6, sample)
    how = []
    for stage, ranks in (before, after):
        how.append(f"{ranks} rank{'s' if ranks > 1 else ''} at ZeRO stage {stage} in fp32")
    assert f"notice: the checkpoint was written by {how[0]}, and goes on with {how[1]}" in output
    assert "resuming runs/tiny after step 3" in output
    losses = [event["loss"] for event in read_metrics(folder / "runs/tiny", "train")]
    assert len(losses) == 6
    assert losses == pytest.approx(undisturbed, abs=1e-4)
    # Fresh moments would show in the sixth loss: Adam's first steps are as large as the learning
    # rate.
    assert np.abs(np.diff(losses)).min() > 1e-4


@pytest.mark.parametrize("before, after", QUICK)
def test_the_curve_goes_on(before, after, undisturbed, sample, tmp_path, run_command):
    check(before, after, undisturbed, sample, tmp_path, run_command)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", SLOW)
def test_the_curve_goes_on_however(before, after, undisturbed, sample, tmp_path, run_command):
    check(before, after, undisturbed, sample, tmp_path, run_command)

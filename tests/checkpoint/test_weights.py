"""Consolidated weights: checked, and put together in little memory."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_run
from finished_run import damage
from safetensors.torch import load_file

from gpt.checkpoint.manifest import read_content, write_content
from gpt.checkpoint.weights import consolidate, consolidate_mean, load_model, open_folder
from gpt.config.saved import read_config
from gpt.errors import UserError
from gpt.kernels import heads

TRAIN = ROOT / "gpt" / "train.py"


CONSOLIDATE = """
import sys
from gpt.architecture.architecture import Architecture
from gpt.checkpoint.weights import consolidate
from gpt.config.shape import ModelConfig
Architecture(ModelConfig(1, 2, 2, 1, 2, 2, 2)).shapes()  # what torch imports for it is not at issue
print("ready", flush=True)
sys.stdin.readline()
consolidate(*sys.argv[1:])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("stage", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_consolidation_needs_little_memory(stage, sample, tmp_path, run_command):
    gpt = {
        "data_root": str(sample),
        "n_layers": 24,
        "h_dim": 256,
        "mlp_dim": 1024,
        "n_heads": 4,
        "head_dim": 64,
        "max_train_steps": 1,
    }
    config = write_run(tmp_path, zero_optimization={"stage": stage}, gpt=gpt)
    command = [
        "torchrun",
        "--master_port",
        29721,
        "--nproc_per_node",
        2,
        TRAIN,
        "--ds_config",
        config,
    ]
    done = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLIDATE, tmp_path / "runs/tiny/checkpoints", tmp_path / "out"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def anonymous():  # pages of mapped files can be dropped at any time, and do not count
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0  # it has ended

    process.stdout.readline()
    before = peak = anonymous()
    process.stdin.write("go\n")
    process.stdin.flush()
    while process.poll() is None:
        peak = max(peak, anonymous())
        time.sleep(0.002)
    assert process.returncode == 0
    weights = (tmp_path / "out/model.safetensors").stat().st_size
    # the largest tensor takes 2 MB, the probe's pass a few
    assert weights > 75e6 and peak - before < 30e6


def test_consolidated_weights_are_verified_too(run, run_command):
    consolidate(run / "runs/tiny/checkpoints", run / "out")
    tool = [sys.executable, ROOT / "tools/verify_checkpoint.py", "out"]
    assert run_command(tool, run).stdout.startswith("out: whole, 3 files, ")
    evaluate = [sys.executable, ROOT / "gpt/eval.py", "--checkpoint_file", "out/model.safetensors"]
    damage(run / "out/model.safetensors", "flipped")
    done = run_command(tool, run)
    assert done.returncode == 1 and "out/model.safetensors is not as it was written" in done.stdout
    done = run_command(evaluate, run)
    assert done.returncode == 2 and "out/model.safetensors is not as it was written" in done.stderr


def test_the_mean_of_the_last_checkpoints(run, run_command):
    checkpoints = run / "runs/tiny/checkpoints"
    command = [sys.executable, ROOT / "tools/zero_to_fp32.py", checkpoints, "mean", "--average", 3]
    done = run_command(command, run, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    assert "torch.nn" in done.stderr and "torch._dynamo" not in done.stderr
    assert "parameters that are the mean of those after the steps 4, 5, 6, from" in done.stdout
    assert "the loss of averaged weights on the last probe batch is 7." in done.stdout
    assert "verified; the loss" in done.stdout
    parts = []
    for step in (4, 5, 6):
        consolidate(checkpoints, run / f"out{step}", f"global_step{step}")
        parts.append(load_file(run / f"out{step}/model.safetensors"))
    mean = load_file(run / "mean/model.safetensors")
    assert mean.keys() == parts[0].keys()
    for name, weight in mean.items():
        exact = np.mean([part[name].numpy().astype(np.float64) for part in parts], axis=0)
        assert np.array_equal(weight.numpy(), exact.astype(np.float32)), name
    folder = open_folder(run / "mean")
    assert folder.manifest.made_from["checkpoint"] == [
        "global_step4",
        "global_step5",
        "global_step6",
    ]
    assert folder.config["mean_of_steps"] == [4, 5, 6] and folder.step == 6
    consolidate_mean(checkpoints, run / "two", 2, "global_step5")
    assert open_folder(run / "two").config["mean_of_steps"] == [4, 5]


def test_means_that_cannot_be_had(run, load_tool):
    checkpoints = run / "runs/tiny/checkpoints"
    tool = load_tool("zero_to_fp32")
    assert tool.mistake(checkpoints, run / "out", "--average", 4) == (
        f"{checkpoints} has 3 checkpoint(s) up to global_step6, not 4: give --average 3 at most;"
        " a run keeps as many as its keep_last says"
    )
    assert tool.mistake(checkpoints, run / "out", "--average", 1) == (
        "--average 1: give a number from 2 on"
    )
    file = next((checkpoints / "global_step5").glob("*_optim_states.pt"))
    damage(file, "flipped")
    assert "is not as it was written" in tool.mistake(checkpoints, run / "out", "--average", 2)
    assert not (run / "out").exists()


def test_without_a_probe_no_loss_is_called_verified(run, load_tool, monkeypatch, capsys):
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    write_content(folder, {**manifest, "probe": {"tokens": [], "loss": 0.0}})
    tool = load_tool("zero_to_fp32")
    monkeypatch.setattr(sys, "argv", ["zero_to_fp32.py", str(folder), str(run / "out")])
    tool.main()
    said = capsys.readouterr().out
    assert "verified" not in said
    assert "names, shapes and values checked; no probe batch is kept with the checkpoint" in said


def test_consolidated_weights_must_give_the_probes_loss(run):
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    manifest["probe"]["loss"] *= 1.001
    write_content(folder, manifest)
    with pytest.raises(
        UserError, match="the consolidated weights give the loss .* where training had"
    ):
        consolidate(folder, run / "out")
    assert not (run / "out").exists()


def test_a_loss_in_16_bits_may_be_doubtful(run, run_command):
    """A GPU's own kernels and rounded weights may take it further than they usually do."""
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    true = manifest["probe"]["loss"]
    for factor, said in (
        (1.001, None),
        (1.008, "compare gpt/eval.py's loss"),
        (1.02, "use another checkpoint"),
    ):
        manifest |= {"precision": "fp16", "probe": {**manifest["probe"], "loss": true * factor}}
        write_content(folder, manifest)
        command = [sys.executable, ROOT / "tools/zero_to_fp32.py", folder, run / f"out-{factor}"]
        done = run_command(command, run)
        assert (
            (done.returncode == 0)
            == (factor < 1.01)
            == (run / f"out-{factor}/model.safetensors").exists()
        )
        assert done.stderr == "" if said is None else said in done.stderr


def test_weights_that_another_models_code_trained_are_not_used(finished, tmp_path, monkeypatch):
    folder = tmp_path / "export"
    consolidate(finished / "runs/tiny/checkpoints", folder)
    config = read_config(folder / "config.yaml")
    load_model(folder / "model.safetensors", config, folder)
    split_heads = heads.split_heads

    def hotter(*arguments):
        q, k, v = split_heads(*arguments)
        return 5 * q, k, v

    monkeypatch.setattr(heads, "split_heads", hotter)
    with pytest.raises(UserError, match="when they were consolidated: the model's code has chang"):
        load_model(folder / "model.safetensors", config, folder)

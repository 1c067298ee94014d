"""Consolidated weights: checked, and put together in little memory."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, write_run
from finished_run import damage

from gpt.checkpoint.manifest import read_content, write_content
from gpt.checkpoint.weights import consolidate
from gpt.errors import UserError

TRAIN = ROOT / "gpt" / "train.py"


CONSOLIDATE = """
import sys
from gpt.checkpoint.weights import consolidate, expected_shapes
from gpt.config.shape import ModelConfig
expected_shapes(ModelConfig(1, 2, 2, 1, 2, 2, 2))  # what torch imports for it is not at issue
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

"""What only whole runs on a GPU can show, beside `python tools/gpu_check.py`. Skipped elsewhere.

    python -m pytest -m gpu -k curve            precisions, stages, going on, consolidating
    python -m pytest -m gpu -k "not curve"      signals, overflows, refused batches, compilers

Each call should end within five minutes, and needs nothing of the other. With packages that lie in
a folder of their own: `PYTHONPATH=.site PATH=.site/bin:$PATH python -m pytest -m gpu …`.
"""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, environment, read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

PRESET, STEPS = "tiny", 50
TRAIN = ROOT / "gpt/train.py"
PLANTED = ROOT / "tests/support/planted.py"
# Each differs from the first in one thing.
RUNS = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True}},
    "stage3": {"fp16": {"enabled": True}, "zero_optimization": {"stage": 3}},
}


def write_config(folder, name, sample, gpt=(), **options):
    tree = {
        "train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 1},
        "fp16": {"enabled": False},
        "scheduler": {
            "type": "LanguiniCosineLR",
            "params": {"warmup_steps": 10, "decay_steps": STEPS},
        },
        **options,
        "gpt": {
            "preset": PRESET,
            "vocab_size": 2048,
            "seq_len": 256,
            "data_root": str(sample),
            "max_train_steps": STEPS,
            "eval_every": 0,
            "log_ckpt_every": 0,
            "log_grads_every": 25,
            "max_eval_steps": -1,
            "last_n": 256,
            **dict(gpt),
        },
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def losses(folder):
    return np.array([event["loss"] for event in read_metrics(folder, "train")])


# ---- Curves


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sample, run_command):
    """runs(name): (folder, output) of that run, which ended well; in fp16 under the launcher."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def finished(name):
        if name not in done:
            config = write_config(
                folder, name, sample, {"eval_every": STEPS, "log_ckpt_every": 25}, **RUNS[name]
            )
            launcher = (
                ["deepspeed", "--num_gpus", 1, "--master_port", 29691]
                if name == "fp16"
                else [sys.executable]
            )
            done[name] = run_command([*launcher, TRAIN, "--ds_config", config], folder, timeout=200)
        assert done[name].returncode == 0, done[name].stdout + done[name].stderr
        return folder / "runs" / name, done[name].stdout

    return finished


@pytest.mark.parametrize("name, apart", [("bf16", 0.1), ("fp16", 0.05), ("stage3", 0.05)])
def test_a_curve_follows_the_one_in_fp32(name, apart, runs):
    exact = losses(runs("fp32")[0])
    curve = losses(runs(name)[0])
    assert len(curve) == len(exact) == STEPS and curve[-1] < curve[0] - 0.5
    assert np.abs(curve - exact).max() < apart
    scales = [event["loss_scale"] for event in read_metrics(runs(name)[0], "train")]
    assert set(scales) == {1.0} if name == "bf16" else min(scales) >= 256
    assert "kernels: triton (" in runs(name)[1] and "attention: math" not in runs(name)[1]


def test_a_curve_that_goes_on_in_fp32(runs, sample, run_command):
    """How far a resumed run is from the undisturbed one, which it equals on CPUs: told, small."""
    folder, _ = runs("fp32")
    before = losses(folder)[25:]
    command = [sys.executable, TRAIN, "--ds_config", "fp32.json", "--resume", "global_step25"]
    done = run_command(command, folder.parents[1], timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    again = {event["step"]: event["loss"] for event in read_metrics(folder, "train")}
    apart = np.abs(np.array([again[step] for step in range(26, STEPS + 1)]) - before)
    print(
        f"\nresumed in fp32: {(apart == 0).sum()} of {len(apart)} losses equal to the last bit, "
        f"{apart.max():.2e} nats apart at most"
    )
    assert apart.max() < 0.01


@pytest.mark.parametrize("name, close", [("fp32", 1e-3), ("stage3", 1e-2)])
def test_the_end_of_a_curve_consolidated_and_scored_on_the_cpu(
    name, close, runs, tmp_path, run_command
):
    folder, _ = runs(name)
    done = run_command(
        [
            sys.executable,
            ROOT / "tools/zero_to_fp32.py",
            folder / "checkpoints",
            tmp_path / "export",
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    options = [
        "--checkpoint_file",
        tmp_path / "export/model.safetensors",
        "--device",
        "cpu",
        "--json",
        "out.json",
    ]
    done = run_command(
        [sys.executable, ROOT / "gpt/eval.py", *options],
        tmp_path,
        timeout=200,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "out.json").read_text())
    last = read_metrics(folder, "eval")[-1]
    assert again["tokens"] == last["tokens"] and again["normalised_ppl"] == pytest.approx(
        last["normalised_ppl"], rel=close
    )


# ---- Trouble


def short(folder, sample, name, gpt=(), **options):
    """The config of a run of `nano` in fp16, for what does not depend on the model."""
    return write_config(
        folder,
        name,
        sample,
        {"preset": "nano", **dict(gpt)},
        **{"fp16": {"enabled": True}, **options},
    )


def test_a_stop_while_the_gpu_works(tmp_path, sample, run_command):
    config = short(tmp_path, sample, "stopped", {"max_train_steps": 1_000_000})
    with open(tmp_path / "out", "w") as out:
        run = subprocess.Popen(
            [sys.executable, TRAIN, "--ds_config", config],
            cwd=tmp_path,
            stdout=out,
            stderr=out,
            env=environment(),
        )
    metrics = tmp_path / "runs/stopped/metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.exists() and len(read_metrics(metrics.parent, "train")) > 20):
        assert time.monotonic() < end and run.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert run.wait(60) == 0, (tmp_path / "out").read_text()
    print(f"\nsaved and ended {time.monotonic() - began:.1f} s after SIGTERM")
    step = read_metrics(metrics.parent, "train")[-1]["step"]
    assert (metrics.parent / "checkpoints/latest").read_text().strip() == f"global_step{step}"
    # The same command goes on: to the end of the step after it, here.
    command = [
        sys.executable,
        TRAIN,
        "--ds_config",
        config,
        "--resume",
        "must",
        "--max_train_steps",
        step + 5,
    ]
    done = run_command(command, tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event["step"] for event in read_metrics(metrics.parent, "train")] == list(
        range(1, step + 6)
    )


def test_overflows_from_the_highest_loss_scale(tmp_path, sample, run_command):
    config = short(
        tmp_path,
        sample,
        "overflow",
        {"max_train_steps": 10},
        fp16={"enabled": True, "initial_scale_power": 32},
    )
    done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs/overflow"
    overflows = read_metrics(folder, "overflow")
    curve = losses(folder)
    assert len(overflows) >= 5 and all(
        event["step"] == 1 for event in overflows
    )  # the first batch, again and again
    assert len(curve) == 10 and np.isfinite(curve).all() and curve[-1] < curve[0]


def test_a_batch_that_is_refused(tmp_path, sample, run_command):
    """A run whose batch 30 gives NaN goes on as one that never saw that batch."""
    events_of = {}
    for fault in ("nan=30", "without=30"):
        config = short(tmp_path, sample, fault[:3], {"spike_policy": "skip"})
        command = [sys.executable, PLANTED, fault, "--ds_config", config]
        done = run_command(command, tmp_path, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        events_of[fault] = read_metrics(tmp_path / "runs" / fault[:3])
    skips = [event for event in events_of["nan=30"] if event["event"] == "skip"]
    assert [event["batch"] for event in skips] == [30]
    ours, theirs = (
        [(event["loss"], event["loss_scale"]) for event in events if event["event"] == "train"]
        for events in events_of.values()
    )
    assert len(ours) == len(theirs) == STEPS
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_a_run_without_a_compiler(tmp_path, sample, run_command):
    """Triton compiles C at its first launch. Where it cannot, `auto` takes torch's and says why."""
    (tmp_path / "bin").mkdir()
    config = short(tmp_path, sample, "bare", {"max_train_steps": 5})
    done = run_command(
        [sys.executable, TRAIN, "--ds_config", config],
        tmp_path,
        timeout=120,
        PATH=str(tmp_path / "bin"),
        CC="",
        CXX="",
        TRITON_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "kernels: torch (" in done.stdout
        and "ompiler" in done.stdout
        and len(losses(tmp_path / "runs/bare")) == 5
    )


def test_compiled_blocks(tmp_path, sample, run_command):
    curves = {}
    for name, compile in (("eager", "none"), ("compiled", "default")):
        config = short(tmp_path, sample, name, {"compile": compile, "eval_every": STEPS})
        done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path, timeout=250)
        assert done.returncode == 0 and f"compile: {compile}" in done.stdout, (
            done.stdout + done.stderr
        )
        curves[name] = losses(tmp_path / "runs" / name)
    assert np.abs(curves["eager"] - curves["compiled"]).max() < 0.05

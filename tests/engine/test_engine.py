"""The engine against plain torch: the same steps without DeepSpeed, in one process, on the whole
batch."""

import math
import shutil
import signal
import sys

import pytest
import torch
from conftest import ROOT, write_run
from forked import fork_ranks
from plain_torch import plain_torch
from safetensors.torch import load_file

from gpt.checkpoint.weights import consolidate
from gpt.checkpoint.zero_files import read_state
from gpt.cluster.launch import Launch
from gpt.config.resolve import load
from gpt.engine import boundary
from gpt.errors import UserError


def test_an_engine_that_does_otherwise_is_an_error(sample, tmp_path, run_command):
    config = write_run(tmp_path)
    done = run_command(
        [sys.executable, ROOT / "tests/support/engine_run.py", config, tmp_path, sample, "plant"],
        tmp_path,
    )
    assert (
        "DeepSpeed would run something else than the config says, so nothing was trained:"
        " train_batch_size is 4, the config says 8; gradient_accumulation_steps is 1, the config"
        " says 2; gradient_clipping is 1.0, the config says 0.0" in done.stderr
    )
    assert done.returncode != 0


def test_a_schedule_that_is_late_is_an_error(sample, tmp_path, run_command):
    config = write_run(tmp_path)
    done = run_command(
        [sys.executable, ROOT / "tests/support/engine_run.py", config, tmp_path, sample, "late"],
        tmp_path,
    )
    assert done.returncode != 0
    for step in (1, 2, 6):
        assert f"learning rate of step {step} is " in done.stderr


def test_more_ranks_than_devices_are_refused(monkeypatch):
    class Accelerator:
        device_name = staticmethod(lambda: "cuda")
        device_count = staticmethod(lambda: 4)

    monkeypatch.setattr(boundary.deepspeed.accelerator, "get_accelerator", Accelerator)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(
        UserError,
        match=(
            r"^rank 12 has the local rank 4 on \S+, where it sees 4 device\(s\): start at most so"
            r" many"
        ),
    ):
        boundary.connect(launch=Launch(12, 16))


def test_a_run_that_is_over_waits_for_nobody(tmp_path, monkeypatch):
    """Where the others are gone by then, or hang."""
    monkeypatch.setattr(boundary, "LEAVE_SECONDS", 0.1)
    monkeypatch.setattr(boundary.torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(boundary.torch.distributed, "destroy_process_group", signal.pause)

    def leave():
        monkeypatch.setattr(sys, "stderr", open(tmp_path / "err", "w"))
        boundary.disconnect()

    ((code, _),) = fork_ranks(1, leave)
    assert code == 0
    assert (tmp_path / "err").read_text().startswith("notice: the run is over; other ranks do not")


def run_engine(run_command, folder, config, sample, ranks, *flags):
    command = [
        "torchrun",
        "--master_port",
        29621,
        "--nproc_per_node",
        ranks,
        ROOT / "tests/support/engine_run.py",
        config,
        folder,
        sample,
        *flags,
    ]
    done = run_command(command, folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize(
    "stage, ranks, clip",
    [
        (1, 2, 0.25),
        (3, 2, 0.0),
        pytest.param(0, 2, 0.0, marks=pytest.mark.slow),
        pytest.param(2, 2, 0.0, marks=pytest.mark.slow),
        pytest.param(3, 2, 0.25, marks=pytest.mark.slow),
        pytest.param(1, 1, 0.0, marks=pytest.mark.slow),
    ],
)
def test_the_engine_does_what_plain_torch_does(stage, ranks, clip, sample, tmp_path, run_command):
    # Adam hardly sees the gradient's size, so clipping is tried with SGD.
    optimizer = {"optimizer": {"type": "SGD"}} if clip else {}
    config = write_run(
        tmp_path, zero_optimization={"stage": stage}, gradient_clipping=clip, **optimizer
    )
    run = run_engine(run_command, tmp_path, config, sample, ranks)
    losses, norms, _, weights = plain_torch(config, sample)
    assert run["loss"] == pytest.approx(losses, abs=1e-5)
    for mine, group in zip(norms, run["norms"]):
        assert math.sqrt(sum(value**2 for value in group["gradient"].values())) == pytest.approx(
            mine, rel=1e-4
        )
    assert run["grad_norm"] == pytest.approx(norms, rel=1e-4)
    assert run["clipping"] == clip  # 0.0 is off, where DeepSpeed's default is 1.0
    assert run["skipped"] == 0 and set(run["scale"]) == {1.0}
    # Adam's first steps are as large as lr whatever the gradient's size
    for name, weight in weights.items():
        assert (run["weights"][name] - weight).abs().mean() < 2e-5, name
    stored = read_state(tmp_path / "global_step6")
    assert (stored.step, stored.stage) == (6, stage)
    assert all(torch.equal(stored.weights[name], run["weights"][name]) for name in weights)
    consolidate(tmp_path / "global_step6", tmp_path / "export")
    written = load_file(tmp_path / "export/model.safetensors")
    assert all(torch.equal(written[name], run["weights"][name]) for name in weights)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed compiles it on first use")
def test_deepspeeds_own_adam_in_host_memory(sample, tmp_path, run_command):
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    config = write_run(
        tmp_path,
        zero_optimization=zero,
        optimizer={"type": "Adam", "params": {"torch_adam": False}},
    )
    command = [sys.executable, ROOT / "tests/support/engine_run.py", config, tmp_path, sample]
    done = run_command(command, tmp_path, timeout=900, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    run = torch.load(tmp_path / "result.pt", weights_only=True)
    losses, norms, _, _ = plain_torch(config, sample)
    assert run["loss"] == pytest.approx(losses, abs=1e-5)
    assert run["grad_norm"] == pytest.approx(norms, rel=1e-4)


def test_fp16_skips_overflows_and_repeats_the_batch(sample, tmp_path, run_command):
    fp16 = {"enabled": True, "initial_scale_power": 32, "hysteresis": 1}
    config = write_run(tmp_path, fp16=fp16, gpt={"max_train_steps": 3})
    run = run_engine(run_command, tmp_path, config, sample, 1, "fp16")
    losses, norms, _, _ = plain_torch(config, sample)
    assert run["skipped"] >= 1
    assert run["scale"][-1] == 2.0 ** (32 - run["skipped"])
    # the loss scale is taken out of both
    for whole, groups in zip(run["grad_norm"], run["norms"]):
        assert math.sqrt(sum(norm**2 for norm in groups["gradient"].values())) == pytest.approx(
            whole, rel=1e-3
        )
    assert run["loss"] == pytest.approx(losses, abs=5e-3)
    assert run["grad_norm"] == pytest.approx(norms, rel=2e-2)
    assert run["lr"] == [load(config).schedule.lr(step) for step in (1, 2, 3)]
    assert read_state(tmp_path / "global_step3").weights["head.weight"].dtype == torch.float32

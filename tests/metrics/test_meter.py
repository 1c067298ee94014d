"""What a run says of its own cost: axes, time by part, activations; over ranks, ZeRO stages and
resumes."""

import math
import mmap
import shutil
import sys

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, read_metrics, write_run

from gpt.checkpoint.manifest import Manifest
from gpt.cluster.world import World
from gpt.compute import hardware
from gpt.config.resolve import load
from gpt.config.shape import ModelConfig
from gpt.metrics import meter
from gpt.metrics.activations import ActivationStatistics
from gpt.model import GPT
from tools.benchmarks.plain_gpt import PlainGPT

TRAIN = ROOT / "gpt" / "train.py"
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sample, run_command):
    """(six steps of one rank at ZeRO stage 1, the same from step 4 on with two ranks at
    stage 3)."""
    folder = tmp_path_factory.mktemp("runs")
    options = {
        "data_root": str(sample),
        "eval_every": 3,
        "log_activations_every": 3,
        "log_ckpt_every": 4,
        "tokens_per_second": 64,
        "activation_checkpointing": True,
    }
    config = write_run(folder, gpt=options)
    done = run_command([sys.executable, TRAIN, "--ds_config", config], folder)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "runs/tiny", folder / "runs/again")
    write_run(folder, zero_optimization={"stage": 3}, gpt=options)
    command = [
        "torchrun",
        "--master_port",
        29901,
        "--nproc_per_node",
        2,
        TRAIN,
        "--ds_config",
        config,
        "--run_dir",
        "runs/again",
        "--resume",
        "global_step4",
    ]
    done = run_command(command, folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return folder / "runs/tiny", folder / "runs/again"


def test_every_line_has_all_axes(runs):
    model = load(runs[0].parents[1] / "tiny.json").model
    for event in read_metrics(runs[1], "train") + read_metrics(runs[1], "eval"):
        tokens = event["step"] * 8 * 32
        assert (
            event["train_tokens"] == tokens
            and event["flops"] == tokens * model.matmul_flops_per_token()
        )
        assert event["reference_hours"] == pytest.approx(tokens / 64 / 3600, rel=1e-12)
        assert event.get("mfu") is None
    train, evaluations = (read_metrics(runs[0], kind) for kind in ("train", "eval"))
    assert [event["tokens"] for event in evaluations] == [529] * 3  # those that were scored
    assert all(event["memory"] > 10**8 for event in train)
    assert [event["hours"] for event in train] == sorted(event["hours"] for event in train)
    assert evaluations[0]["hours"] < train[0]["hours"] < evaluations[1]["hours"]


def test_hours_go_on_over_a_resume(runs):
    spent = Manifest.read(runs[0] / "checkpoints/global_step4").seconds / 3600
    train = read_metrics(runs[1], "train")
    assert [event["step"] for event in train] == [1, 2, 3, 4, 5, 6, 5, 6]
    assert train[3]["hours"] <= spent < train[6]["hours"] < train[7]["hours"]
    starts = read_metrics(runs[1], "start")
    assert [(event["step"], event["ranks"], event["zero_stage"]) for event in starts] == [
        (0, 1, 1),
        (4, 2, 3),
    ]
    assert starts[0]["parameters"] == load(runs[0].parents[1] / "tiny.json").model.parameters()
    assert starts[0]["versions"]["torch"] == torch.__version__ and starts[0]["device"].startswith(
        "cpu ("
    )


def test_parts_add_up_to_the_clock(runs):
    parts = [event["seconds"] for event in read_metrics(runs[0], "train")]
    assert all(set(part) == set(meter.PARTS) and min(part.values()) >= 0 for part in parts)
    assert all(part[name] > 0 for part in parts for name in ("data", "forward", "backward", "step"))
    # after the steps 0 and 3
    assert [part["eval"] > 0 for part in parts] == [True, False, False, True, False, False]
    assert [part["checkpoint"] > 0 for part in parts] == [False] * 4 + [True, False]
    training = sum(
        value
        for part in parts
        for name, value in part.items()
        if name not in ("eval", "checkpoint")
    )
    assert training == pytest.approx(3600 * read_metrics(runs[0], "train")[-1]["hours"], rel=0.2)


def test_activations_are_the_same_on_other_ranks_and_stages(runs):
    (one,) = [event for event in read_metrics(runs[0], "activations") if event["step"] == 6]
    whole, again = read_metrics(runs[1], "activations")[-2:]
    assert one == whole and again["step"] == 6 and len(one["rms"]) == 2 * 3 + 1
    for kind in ("rms", "max_abs"):
        assert again[kind] == pytest.approx(one[kind], rel=1e-4)


def test_activations_against_float64(one_thread):
    model = GPT(ModelConfig(2, 16, 32, 2, 4, 50, 8), seed=3)
    batches = torch.randint(50, (3, 4, 9), generator=torch.Generator().manual_seed(1))
    statistics = ActivationStatistics(model)
    for batch in batches:
        with statistics:
            loss = model(batch[:, :-1], batch[:, 1:])
        model(batch[:, :-1], batch[:, 1:])  # outside of it, and so not counted
        loss.backward()
    summary = statistics.summary(ALONE)
    assert not any(module._forward_hooks for module in model.modules())
    plain, streams = PlainGPT(model).double(), {}
    tokens = batches[:, :, :-1].flatten(0, 1)
    stream = (
        plain.weights["token_embedding/weight"][tokens] * 4
        + plain.weights["position_embedding/weight"]
    )
    for index in range(2):
        block = f"blocks/{index}"
        streams[f"blocks.{index}.stream"] = stream
        attn = streams[f"blocks.{index}.attn"] = plain._attention(
            plain._norm(stream, f"{block}/ln1"), f"{block}/attn"
        )
        hidden = plain._linear(plain._norm(stream + attn, f"{block}/ln2"), f"{block}/mlp/c_fc")
        mlp = plain._linear(
            torch.nn.functional.gelu(hidden, approximate="tanh"), f"{block}/mlp/c_proj"
        )
        streams[f"blocks.{index}.mlp"] = mlp
        stream = stream + attn + mlp
    streams["ln_f.stream"] = stream
    values = {name: value.detach().numpy() for name, value in streams.items()}
    assert summary["rms"] == pytest.approx(
        {name: np.sqrt(np.mean(value**2)) for name, value in values.items()}, rel=1e-5
    )
    assert summary["max_abs"] == pytest.approx(
        {name: np.abs(value).max() for name, value in values.items()}, rel=1e-5
    )


@pytest.mark.slow
def test_a_compiled_model_is_seen_as_well(one_thread):
    model = GPT(ModelConfig(2, 16, 32, 2, 4, 50, 8), seed=3)
    tokens = torch.arange(16).view(2, 8)
    statistics = []
    for compiled in (False, True):
        if compiled:
            model.compile(backend="eager")
            model(tokens)
        seen = ActivationStatistics(model)
        with seen:
            model(tokens)
        statistics.append(seen.summary(ALONE))
    assert statistics[0] == statistics[1]


def test_activations_that_are_not_finite_are_seen(one_thread):
    model = GPT(ModelConfig(2, 16, 32, 2, 4, 50, 8), seed=3)
    with torch.no_grad():
        model.blocks[1].mlp.c_proj.bias[3] = math.nan
    statistics = ActivationStatistics(model)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with statistics:
        model(tokens)
    summary = statistics.summary(ALONE)
    bad = {name for name, value in summary["max_abs"].items() if not math.isfinite(value)}
    assert (
        bad
        == {"blocks.1.mlp", "ln_f.stream"}
        == {name for name, value in summary["rms"].items() if not math.isfinite(value)}
    )


def test_time_goes_to_the_part_that_is_marked(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    split = meter.TimeSplit(torch.device("cpu"))
    for seconds, part in ((2, "data"), (3, "forward"), (5, "backward"), (0.5, "forward")):
        now[0] += seconds
        split.mark(part)
    now[0] += 1
    assert split.take() == {
        "data": 2,
        "forward": 3.5,
        "backward": 5,
        "step": 0,
        "eval": 0,
        "checkpoint": 0,
        "other": 1,
    }
    assert set(split.take().values()) == {0}


def test_on_cuda_time_is_taken_between_events_and_nobody_waits(monkeypatch):
    events = []
    reached = []  # by the device

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            events.append(self)

        def record(self):
            self.milliseconds = 1000 * len(events) ** 2

        def query(self):
            return self in reached

        def elapsed_time(self, later):
            assert self in reached and later in reached
            return later.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    split = meter.TimeSplit(torch.device("cuda"))
    split.mark("forward")
    split.mark("backward")
    reached += events[:2]  # as far as the end of the forward pass
    taken = split.take()
    assert (taken["forward"], taken["backward"], taken["other"]) == (3, 0, 0)
    reached += events[2:]
    taken = split.take()  # whose own mark the device has not come to
    assert (taken["forward"], taken["backward"], taken["other"]) == (0, 5, 7)


def test_peaks_give_the_published_utilisation():
    """The Languini Kitchen's figures count all of attention's scores: 50% of a 3090, 28% of an
    A100."""
    small = load(ROOT / "ds_configs/24h.json").model
    for device, speed, published in (
        ("NVIDIA GeForce RTX 3090", 55416, 0.50),
        ("NVIDIA A100-SXM4-80GB", 135107, 0.28),
    ):
        utilisation = (
            speed * small.matmul_flops_per_token(causal=False) / hardware.peak_flops(device, "fp16")
        )
        assert round(utilisation, 2) == published


@pytest.mark.parametrize(
    "name, precision, peak",
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA A10G", "bf16", 70e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "fp16", None),
        ("Tesla T4", "bf16", None),
        ("Tesla T4", "fp16", 65e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "fp16", None),
        ("cpu (x86_64, 2 threads)", "fp32", None),
    ],
)
def test_peak_of_a_device(name, precision, peak):
    assert hardware.peak_flops(name, precision) == peak


def test_peak_memory_stays_when_memory_is_given_back():
    before = hardware.peak_memory(torch.device("cpu"))
    resident = psutil.Process().memory_info().rss
    # new pages, whatever malloc has kept
    ballast = mmap.mmap(-1, before - resident + 8 * 10**7)
    np.frombuffer(ballast, np.uint8)[:] = 1
    assert hardware.peak_memory(torch.device("cpu")) >= before + 0.9 * 8e7
    del ballast
    assert hardware.peak_memory(torch.device("cpu")) >= before + 0.9 * 8e7

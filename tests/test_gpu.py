"""What only a GPU can show: `python -m pytest -m gpu`, under ten minutes on one. Skipped where there is none."""

import json
import math
import os
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, read_metrics

from gpt.kernels import attention, choose
from gpt.kernels.cross_entropy import score_logits
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm, layer_norm
from gpt.kernels.linear_cross_entropy import linear_cross_entropy
from gpt.plan import ModelConfig

DEVICE, KERNELS = "cuda", "triton"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # half the distance from 1 to the next number


def values(*shape, seed=0, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset


def compare(function, reference, inputs, dtype, factor):
    """Results and gradients of `function` in `dtype` on the GPU against `reference` in float64 on the CPU, for the same
    rounded inputs: no further apart than `factor` roundings of the largest value."""
    rounded = [value.to(dtype) for value in inputs]
    here = [value.to(DEVICE).requires_grad_() for value in rounded]
    there = [value.double().requires_grad_() for value in rounded]
    found, wanted = function(*here), reference(*there)
    found, wanted = (result if isinstance(result, tuple) else (result,) for result in (found, wanted))
    upstream = [values(*result.shape, seed=9 + index).to(dtype) for index, result in enumerate(wanted)]
    found_gradients = torch.autograd.grad(found, here, [g.to(DEVICE, r.dtype) for g, r in zip(upstream, found)])
    wanted_gradients = torch.autograd.grad(wanted, there, [g.double() for g in upstream])
    for got, exact in zip((*found, *found_gradients), (*wanted, *wanted_gradients)):
        error = (got.double().cpu() - exact).abs().max().item()
        assert error <= factor * UNIT[dtype] * exact.abs().max().item(), (error, exact.abs().max().item())


@half
@pytest.mark.parametrize("width", [768, 1025, 2048])
@pytest.mark.parametrize("rows", [1, 1000])
def test_layer_norm(rows, width, dtype):
    inputs = [values(rows, width, scale=3, offset=5), values(rows, width, seed=1), values(width, seed=2, offset=1), values(width, seed=3)]
    compare(lambda *a: add_layer_norm(*a, kernels=KERNELS), add_layer_norm_float64, inputs, dtype, 8)
    compare(lambda *a: layer_norm(*a, kernels=KERNELS), layer_norm_float64, inputs[1:], dtype, 8)


def layer_norm_float64(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def add_layer_norm_float64(x, residual, weight, bias):
    return layer_norm_float64(x + residual, weight, bias), x + residual


@half
@pytest.mark.parametrize("rows, width", [(1, 3072), (1000, 3072), (77, 1025)])
def test_gelu(rows, width, dtype):
    def exact(x, bias):
        z = x + bias
        return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    compare(lambda *a: bias_gelu(*a, kernels=KERNELS), exact, [values(rows, width, scale=3), values(width, seed=1)], dtype, 8)


@half
@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_head_and_cross_entropy(scale, dtype):
    """Under the loss scale of a run's first step, which must neither overflow nor flush gradients to zero."""
    hidden, weight = values(2048, 768).to(dtype), values(16384, 768, seed=1, scale=0.02).to(dtype)
    targets = torch.randint(16384, (2048,), generator=torch.Generator().manual_seed(2))
    here = [tensor.to(DEVICE, copy=True).requires_grad_() for tensor in (hidden, weight)]
    there = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    loss = linear_cross_entropy(*here, targets.to(DEVICE), KERNELS)
    exact = torch.nn.functional.cross_entropy(there[0] @ there[1].t(), targets)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=4 * UNIT[dtype])
    (loss * scale).backward()
    (exact * scale).backward()
    for got, wanted in zip(here, there):
        error = (got.grad.double().cpu() - wanted.grad).abs().max().item()
        assert error <= 16 * UNIT[dtype] * wanted.grad.abs().max().item()


@half
def test_ranks_of_targets(dtype):
    logits, targets = values(100, 5000).to(dtype), torch.randint(5000, (100,), generator=torch.Generator().manual_seed(1))
    nats, rank = score_logits(logits.to(DEVICE), targets.to(DEVICE), KERNELS)
    own = logits.gather(1, targets[:, None])
    ahead = (logits > own) | ((logits == own) & (torch.arange(5000) < targets[:, None]))
    assert torch.equal(rank.cpu(), ahead.sum(1))
    exact = -logits.double().log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(nats.double().cpu(), exact, rtol=1e-5, atol=1e-5)


@half
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
def test_attention_takes_a_fused_backend_and_is_right(head_dim, dtype):
    assert attention.backend((4, 12, 512, head_dim), dtype, torch.device(DEVICE)) in ("flash", "cudnn")

    def exact(q, k, v):
        length = q.shape[2]
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[3])).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    compare(attention.causal_attention, exact, [values(2, 3, 300, head_dim, seed=s) for s in range(3)], dtype, 8)


SHAPE = ModelConfig(n_layers=2, h_dim=64, mlp_dim=256, n_heads=2, head_dim=32, vocab_size=1024, seq_len=64)


def test_auto_takes_triton():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the kernels are for compute capability 8.0 and later")
    assert choose("auto", torch.device("cuda", 0), SHAPE, torch.float16)[0] == "triton"


# Whole runs: `tiny` on the sample's vocabulary, 50 steps. Each differs from the first in one thing.
RUNS = {
    "fp32": [],
    "fp16": [("fp16", {"enabled": True})],
    "bf16": [("bf16", {"enabled": True})],
    "torch": [("fp16", {"enabled": True}), ("gpt.kernels", "torch")],
    "compile": [("fp16", {"enabled": True}), ("gpt.compile", "default")],
    "stage2": [("fp16", {"enabled": True}), ("zero_optimization", {"stage": 2})],
    "stage3": [("fp16", {"enabled": True}), ("zero_optimization", {"stage": 3})],
}
STEPS, PRESET = 50, "tiny"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sample, run_command):
    """runs(name): the folder in which that run ended well."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def finished(name):
        if name not in done:
            gpt = {"preset": PRESET, "vocab_size": 2048, "seq_len": 256, "data_root": str(sample), "max_train_steps": STEPS,
                   "eval_every": STEPS, "log_ckpt_every": 25, "log_grads_every": 25, "max_eval_steps": -1}
            tree = {"train_batch_size": 16, "gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1}, "gpt": gpt,
                    "scheduler": {"type": "LanguiniCosineLR", "params": {"warmup_steps": 10, "decay_steps": STEPS}}}  # fmt: skip
            for key, value in RUNS[name]:
                block, key = (gpt, key.removeprefix("gpt.")) if key.startswith("gpt.") else (tree, key)
                block[key] = value
            (folder / f"{name}.json").write_text(json.dumps(tree))
            command = ["deepspeed", "--num_gpus", 1, "--master_port", 29691, ROOT / "gpt/train.py", "--ds_config", f"{name}.json"]
            done[name] = run_command(command, folder, timeout=500)
        assert done[name].returncode == 0, done[name].stdout + done[name].stderr
        return folder / "runs" / name, done[name].stdout

    return finished


def losses(folder):
    return np.array([event["loss"] for event in read_metrics(folder, "train")])


@pytest.mark.parametrize("name", [name for name in RUNS if name != "fp32"])
def test_a_run_follows_the_fp32_one(name, runs):
    exact, found = losses(runs("fp32")[0]), losses(runs(name)[0])
    assert len(found) == len(exact) == STEPS and found[-1] < found[0] - 1
    assert np.abs(found - exact).max() < 0.05
    scales = [event["loss_scale"] for event in read_metrics(runs(name)[0], "train")]
    assert min(scales) == max(scales) == 1 if name == "bf16" else min(scales) >= 256


def test_what_is_said_of_kernels(runs):
    said = runs("fp16")[1]
    assert f"kernels: {choose('auto', torch.device('cuda', 0), SHAPE, torch.float16)[0]} (" in said and "attention: " in said
    assert "kernels: torch (as asked for)" in runs("torch")[1] and "compile: default" in runs("compile")[1]


@pytest.mark.parametrize("name", ["fp16", "stage3"])
def test_checkpoint_consolidation_and_evaluation(name, runs, tmp_path, run_command):
    folder, _ = runs(name)
    done = run_command([sys.executable, ROOT / "tools/zero_to_fp32.py", folder / "checkpoints", tmp_path / "export"], tmp_path)
    assert done.returncode == 0, done.stderr
    options = ["--checkpoint_file", tmp_path / "export/model.safetensors", "--json", "out.json"]
    done = run_command([sys.executable, ROOT / "gpt/eval.py", *options], tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    last = read_metrics(folder, "eval")[-1]
    assert json.loads((tmp_path / "out.json").read_text())["normalised_ppl"] == pytest.approx(last["normalised_ppl"], rel=0.01)


def test_going_on_after_a_checkpoint(runs, run_command):
    folder, _ = runs("fp16")
    command = ["deepspeed", "--num_gpus", 1, "--master_port", 29692, ROOT / "gpt/train.py", "--ds_config", "fp16.json",
               "--resume", "global_step25"]  # fmt: skip
    before = losses(folder)
    done = run_command(command, folder.parents[1], timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    again = {event["step"]: event["loss"] for event in read_metrics(folder, "train")}
    assert np.abs(np.array([again[step] for step in range(26, STEPS + 1)]) - before[25:]).max() < 0.05


def test_the_bench_needs_no_arguments(tmp_path, run_command):
    done = run_command([sys.executable, ROOT / "tools/bench.py", "--rounds", 2, "--json", "out.json"], tmp_path, timeout=580,
                       PYTHONPATH=os.environ.get("PYTHONPATH", ""))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["step"] and found["kernels"] and found["eval"]

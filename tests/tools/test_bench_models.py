"""The models that `tools/bench.py step` compares ours with, and its rows in bf16 on a CPU."""

import pytest
import torch

from gpt.config.shape import ModelConfig
from gpt.model import GPT
from tools.benchmarks import device as bench_device
from tools.benchmarks import step
from tools.benchmarks.device import Device, Work
from tools.benchmarks.plain_gpt import MixedGPT, PlainGPT, UsualGPT

TINY = ModelConfig(2, 32, 64, 2, 16, vocab_size=96, seq_len=16)
pytestmark = pytest.mark.usefixtures("one_thread")


def loss_and_gradient(model, tokens):
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    gradient = next(g for name, g in gradients(model) if name.endswith("0/attn/qkv/weight"))
    return loss.item(), gradient


def gradients(model):
    for name, parameter in model.named_parameters():
        yield name.replace(".", "/"), parameter.grad


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("written", [UsualGPT, PlainGPT])
def test_all_are_the_same_model(written, dtype, near):
    """In bf16 as nanoGPT trains: weights, gradients and loss in fp32."""
    ours = GPT(TINY)
    tokens = torch.randint(96, (2, 17), generator=torch.Generator().manual_seed(0))
    other = MixedGPT(written(ours), dtype)
    loss, gradient = loss_and_gradient(other, tokens)
    expected_loss, expected = loss_and_gradient(ours, tokens)
    assert loss == pytest.approx(expected_loss, abs=near)
    assert gradient.dtype == torch.float32
    assert (gradient - expected).norm() <= near * expected.norm()


def test_in_bf16_a_cpu_is_measured_beside_its_own_fp32(monkeypatch, capsys):
    monkeypatch.setattr(bench_device, "COPIED_BYTES", 1 << 12)
    monkeypatch.setattr(Device, "matmul_rate", lambda self: 1e9)
    monkeypatch.setattr(step, "_cpu_bytes", lambda *arguments: None)
    monkeypatch.setattr(step, "have_transformers", lambda: False)
    device = Device("bf16")
    if device.on_gpu:
        pytest.skip("there is a GPU")
    (group,) = step.measure(device, TINY, Work(2, 1, 1, False))
    assert list(group["models"]) == ["ours", "plain", "nanoGPT-like, eager", "ours, fp32"]
    row = next(line for line in capsys.readouterr().out.splitlines() if "ours, fp32" in line)
    assert "– of the matmul rate" in row and "x ours' time" in row

"""Engines whose ranks run Triton's kernels, under its interpreter, as interpreted_kernels.py."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from conftest import tiny_run
from forked import fork_ranks

from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.kernels import triton_shared
from gpt.model import GPT

SHAPE = {"h_dim": 24, "mlp_dim": 40, "vocab_size": 32, "seq_len": 4, "last_n": 4, "n_layers": 1}
# at which no parameter, however small, stays whole between the modules that use it
ZERO_3 = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_model_persistence_threshold": 0,
}
ROWS, MICRO_BATCHES = 4, 2

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not triton_shared.interpreted(), reason="triton is not installed"),
]


def make(ranks, kernels):
    tree = tiny_run(
        zero_optimization=ZERO_3,
        train_batch_size=ROWS,
        gradient_accumulation_steps=MICRO_BATCHES,
        scheduler=None,
        # an update is the gradient
        optimizer={"type": "SGD", "params": {"lr": 1.0}},
        gpt=SHAPE,
    )
    config = resolve(tree, "test", ranks)
    model = GPT(config.model, 0, kernels=kernels)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=generator)
    return config, model


def rows():
    return torch.randint(32, (ROWS, 5), generator=torch.Generator().manual_seed(2))


def train_on_ranks(ranks, path):
    """(mean loss, {name: weights}) of one step, into `path`."""

    def work():
        world = boundary.connect()
        config, model = make(ranks, "triton")
        engine = boundary.Engine(model, config, world)
        assert not any(parameter.numel() for parameter in engine.module.parameters())
        result = engine.step(rows().view(ranks, MICRO_BATCHES, -1, 5)[world.rank].numpy())
        mean_loss = world.sum(result.loss) / ranks
        whole = boundary.deepspeed.utils.safe_get_full_fp32_param
        weights = {name: whole(p).clone() for name, p in engine.module.named_parameters()}
        if world.rank == 0:
            torch.save((mean_loss, weights), path)
        boundary.disconnect()

    assert [code for code, _ in fork_ranks(ranks, work)] == [0] * ranks


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_branchs_bias_outlives_its_parameter(ranks, tmp_path):
    """At ZeRO 3, where a layer's weights are taken away before the next LayerNorm adds its bias and
    hands back the bias's gradient: the loss and the gradients of torch's kernels and autograd."""
    train_on_ranks(ranks, tmp_path / "results.pt")
    mean_loss, weights = torch.load(tmp_path / "results.pt")
    _, model = make(ranks, "torch")
    loss = model(rows()[:, :-1], rows()[:, 1:])
    loss.backward()
    torch.testing.assert_close(mean_loss.item(), loss.item())
    assert set(weights) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        update = weights[name] - parameter.detach()
        torch.testing.assert_close(update, -parameter.grad, rtol=1e-4, atol=1e-6)

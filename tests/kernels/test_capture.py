"""A CUDA graph can hold a micro-batch by Triton's kernels: nothing in it, not in the bodies of
gpt/kernels either, waits for the device, has a shape that depends on data or reads host memory."""

import pytest
import torch
from fake_graph import NOT_CAPTURED
from torch.utils._pytree import tree_leaves

import gpt.model
from gpt.config.shape import ModelConfig
from gpt.kernels import linear_cross_entropy
from gpt.kernels.compiler import DispatchMode
from tools.benchmarks import launches

pytest.importorskip("triton")

SHAPE = ModelConfig(2, 64, 256, 4, 16, vocab_size=128, seq_len=32)
ROWS = 4


class Hindrances(DispatchMode):
    """What would end a capture, of operations on the meta device, which stands for a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        tensors = [value for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)]
        on_host = any(tensor.device.type == "cpu" for tensor in tensors)
        if name in NOT_CAPTURED or on_host:
            self.names.append(name)
        return function(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_micro_batch_can_be_captured(dtype, chunks, monkeypatch):
    elements = -(-ROWS * SHAPE.seq_len // chunks) * SHAPE.vocab_size
    monkeypatch.setitem(linear_cross_entropy.CHUNK_ELEMENTS, "default", elements)
    with Hindrances() as hindrances:
        passes = launches.micro_batch(SHAPE, ROWS, dtype)
    ran = [launch.name for launch in passes.forward + passes.backward]
    assert ran.count("cross_entropy") == chunks
    assert hindrances.names == []


def waiting(x):
    return x * x.sum().item()


def of_another_shape(x):
    return x * x[x.nonzero()[:, 0]].sum()


def from_the_host(x):
    return x * torch.tensor(2.0)


@pytest.mark.parametrize(
    "work, name",
    [
        (waiting, "_local_scalar_dense"),
        (of_another_shape, "nonzero"),
        (from_the_host, "mul"),
    ],
)
def test_what_a_graph_cannot_hold_is_seen(work, name, monkeypatch):
    attention = gpt.model.causal_attention
    monkeypatch.setattr(gpt.model, "causal_attention", lambda q, k, v: attention(work(q), k, v))
    with Hindrances() as hindrances:
        try:
            launches.micro_batch(SHAPE, ROWS)
        except (RuntimeError, NotImplementedError):  # of the meta device, which has no numbers
            pass
    assert name in hindrances.names

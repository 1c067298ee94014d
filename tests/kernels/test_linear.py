"""Linear layers and matrix products against float64, by oneDNN and by torch's own way."""

import numpy as np
import pytest
import torch
from dispatched import Dispatched

from gpt.config.shape import ModelConfig
from gpt.kernels import linear as module
from gpt.kernels.linear import by_onednn, linear, matmul
from gpt.model import GPT


@pytest.fixture(params=["onednn", "torch"])
def way(request, monkeypatch):
    monkeypatch.setattr(module, "_WIDE", request.param == "onednn")
    if request.param == "onednn" and not by_onednn(torch.empty(1)):
        pytest.skip("this torch has no oneDNN")
    return request.param


def values(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def close(result, exact, terms):
    """Sums of `terms` products, each of about 1: as far off as fp32 sums in any order may be."""
    assert result.dtype == torch.float32 and result.shape == exact.shape
    np.testing.assert_allclose(
        result.detach().numpy(), exact, rtol=0, atol=8 * 2.0**-24 * max(terms, 16)
    )


SHAPES = [(0, 8, 8), (1, 7, 5), (3, 64, 192), (130, 100, 1025), (257, 513, 31)]


@pytest.mark.parametrize("rows, inner, width", SHAPES)
def test_linear_and_its_gradients(way, rows, inner, width):
    x = values(rows, inner)
    weight = values(width, inner, seed=1)
    bias = values(width, seed=2)
    grad = values(rows, width, seed=3)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    result = linear(*inputs)
    gradients = torch.autograd.grad(result, inputs, grad)
    x, weight, bias, grad = (
        tensor.detach().numpy().astype(np.float64) for tensor in (x, weight, bias, grad)
    )
    close(result, x @ weight.T + bias, inner)
    for gradient, exact, terms in zip(
        gradients, (grad @ weight, grad.T @ x, grad.sum(0)), (width, rows, rows)
    ):
        close(gradient, exact, terms)


def test_leading_dimensions_strides_and_no_bias(way):
    storage = values(4, 6, 2, 32)
    # strided, column by column
    x = storage[:, :, 1]
    weight = values(24, 16, seed=1).repeat(1, 2)[:, ::2].t().contiguous().t()
    weight = torch.cat([weight, weight], 1)
    x.requires_grad_()
    result = linear(x, weight)
    (gradient,) = torch.autograd.grad(result, x, values(4, 6, 24, seed=3))
    exact = x.detach().numpy().astype(np.float64) @ weight.numpy().astype(np.float64).T
    close(result, exact, 32)
    close(
        gradient,
        values(4, 6, 24, seed=3).numpy().astype(np.float64) @ weight.numpy().astype(np.float64),
        24,
    )


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_transposed_matrices(way, transposed):
    a, b = values(33, 65), values(65, 130, seed=1)
    exact = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64)
    a, b = (m.t().contiguous().t() if turned else m for m, turned in zip((a, b), transposed))
    close(matmul(a, b), exact, 65)


def test_only_what_is_wanted_is_computed(way):
    x = values(3, 4)
    weight = values(5, 4, seed=1).requires_grad_()
    result = linear(x, weight)
    result.sum().backward()
    assert x.grad is None and weight.grad.shape == weight.shape and weight.grad.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_numbers_go_torchs_way(dtype, monkeypatch):
    monkeypatch.setattr(module, "_WIDE", True)
    x = values(3, 4).to(dtype)
    weight = values(5, 4, seed=1).to(dtype)
    assert not by_onednn(x) and torch.equal(
        linear(x, weight), torch.nn.functional.linear(x, weight)
    )
    assert matmul(x, weight.t()).dtype == dtype


COPIES = ("clone", "copy_", "contiguous", "_reshape_copy", "add_")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_product_adds_the_bias_under_zero_3(dtype, monkeypatch):
    """DeepSpeed's zero.Init puts a linear layer of its own in torch's place."""
    zero = pytest.importorskip("deepspeed.runtime.zero.linear")
    monkeypatch.setattr(module, "_WIDE", False)
    config = ModelConfig(
        n_layers=3, h_dim=24, mlp_dim=40, n_heads=2, head_dim=8, vocab_size=37, seq_len=6
    )
    tokens = torch.randint(37, (2, 6), generator=torch.Generator().manual_seed(1))
    results = []
    for function in (torch.nn.functional.linear, zero.zero3_linear_wrap):
        monkeypatch.setattr(torch.nn.functional, "linear", function)
        model = GPT(config, seed=3).to(dtype)
        for name, parameter in model.named_parameters():
            parameter.data += 0.1 * name.endswith("bias")
        with Dispatched() as forward:
            logits = model(tokens)
        with Dispatched() as backward:
            logits.square().mean().backward()
        assert forward.names["addmm"] == 4 * config.n_layers and not any(
            forward.names[name] for name in COPIES
        )
        assert not any(backward.names[name] for name in COPIES[:-1])
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert all(map(torch.equal, *results))  # ZeRO's stages agree to the last bit


def test_no_rows_of_three_dimensions():
    assert linear(torch.empty(2, 0, 4), torch.ones(5, 4), torch.ones(5)).shape == (2, 0, 5)

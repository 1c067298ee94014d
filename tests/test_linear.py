"""Linear layers and matrix products against float64, by oneDNN and by torch's own way."""

import numpy as np
import pytest
import torch

from gpt.kernels import linear as module
from gpt.kernels.linear import by_onednn, linear, matmul


@pytest.fixture(params=["onednn", "torch"])
def way(request, monkeypatch):
    monkeypatch.setattr(module, "_WIDE", request.param == "onednn")
    if request.param == "onednn" and not by_onednn(torch.empty(1)):
        pytest.skip("this torch has no oneDNN")
    return request.param


def values(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def close(found, exact, terms):
    """Sums of `terms` products, each of about 1: as far off as fp32 sums in any order may be."""
    assert found.dtype == torch.float32 and found.shape == exact.shape
    np.testing.assert_allclose(found.detach().numpy(), exact, rtol=0, atol=8 * 2.0**-24 * max(terms, 16))


SHAPES = [(0, 8, 8), (1, 7, 5), (3, 64, 192), (130, 100, 1025), (257, 513, 31)]


@pytest.mark.parametrize("rows, inner, width", SHAPES)
def test_linear_and_its_gradients(way, rows, inner, width):
    x, weight, bias, grad = values(rows, inner), values(width, inner, seed=1), values(width, seed=2), values(rows, width, seed=3)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    result = linear(*inputs)
    gradients = torch.autograd.grad(result, inputs, grad)
    x, weight, bias, grad = (tensor.detach().numpy().astype(np.float64) for tensor in (x, weight, bias, grad))
    close(result, x @ weight.T + bias, inner)
    for found, exact, terms in zip(gradients, (grad @ weight, grad.T @ x, grad.sum(0)), (width, rows, rows)):
        close(found, exact, terms)


def test_leading_dimensions_strides_and_no_bias(way):
    storage = values(4, 6, 2, 32)
    x, weight = storage[:, :, 1], values(24, 16, seed=1).repeat(1, 2)[:, ::2].t().contiguous().t()  # strided, column by column
    weight = torch.cat([weight, weight], 1)
    x.requires_grad_()
    result = linear(x, weight)
    (found,) = torch.autograd.grad(result, x, values(4, 6, 24, seed=3))
    exact = x.detach().numpy().astype(np.float64) @ weight.numpy().astype(np.float64).T
    close(result, exact, 32)
    close(found, values(4, 6, 24, seed=3).numpy().astype(np.float64) @ weight.numpy().astype(np.float64), 24)


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_transposed_matrices(way, transposed):
    a, b = values(33, 65), values(65, 130, seed=1)
    exact = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64)
    a, b = (m.t().contiguous().t() if turned else m for m, turned in zip((a, b), transposed))
    close(matmul(a, b), exact, 65)


def test_only_what_is_wanted_is_computed(way):
    x, weight = values(3, 4), values(5, 4, seed=1).requires_grad_()
    result = linear(x, weight)
    result.sum().backward()
    assert x.grad is None and weight.grad.shape == weight.shape and weight.grad.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_numbers_go_torchs_way(dtype, monkeypatch):
    monkeypatch.setattr(module, "_WIDE", True)
    x, weight = values(3, 4).to(dtype), values(5, 4, seed=1).to(dtype)
    assert not by_onednn(x) and torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
    assert matmul(x, weight.t()).dtype == dtype

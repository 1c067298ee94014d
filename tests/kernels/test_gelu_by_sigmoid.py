"""tanh-GELU on CPUs against its definition in float64."""

import numpy as np
import pytest
import torch
from dispatched import Dispatched
from live_storages import LiveStorages

from gpt.kernels import gelu_by_sigmoid as module
from gpt.kernels.gelu import linear_gelu
from gpt.kernels.gelu_by_sigmoid import gelu_

pytestmark = pytest.mark.usefixtures("one_thread")


def exact(x):
    """(gelu, its derivative), by numbers of more digits: 1 + tanh is 0 in float64 long before gelu
    is."""
    x = x.astype(np.longdouble)
    u = np.sqrt(2 / np.longdouble(np.pi)) * (x + 0.044715 * x**3)
    slope_of_u = np.sqrt(2 / np.longdouble(np.pi)) * (1 + 3 * 0.044715 * x**2)
    with np.errstate(over="ignore"):
        half = 1 / (1 + np.exp(-2 * u))  # (1 + tanh u) / 2
        return x * half, half + 2 * x * half / (1 + np.exp(2 * u)) * slope_of_u


def activated(x):
    """(gelu_, its derivative) of a leaf's copy."""
    leaf = x.clone().requires_grad_()
    result = gelu_(leaf * 1)
    (gradient,) = torch.autograd.grad(result, leaf, torch.ones_like(x))
    return result.detach(), gradient


# errors: of the value, relative beside the smallest normal number, and of the derivative
ERRORS = {
    torch.float64: (1e-13, 1.2e-14),
    torch.float32: (2e-5, 3e-6),
    torch.bfloat16: (2.0**-8, 1.2 * 2.0**-8),
}


@pytest.mark.parametrize("dtype", ERRORS)
def test_values_and_derivatives(dtype):
    x = torch.cat([torch.linspace(-40, 40, 20011), torch.tensor([0.0, -0.0, 1e4, -1e4, 1e-30])])
    x = x.to(dtype)
    values, gradients = exact(x.double().numpy())
    result, gradient = activated(x)
    assert result.dtype == gradient.dtype == dtype
    relative, absolute = ERRORS[dtype]
    np.testing.assert_allclose(result.double().numpy(), values, rtol=relative, atol=1e-37)
    np.testing.assert_allclose(gradient.double().numpy(), gradients, rtol=0, atol=absolute)


@pytest.mark.parametrize("per_thread", [1, 7, 24, 100])
def test_numbers_at_a_time_change_nothing(monkeypatch, per_thread):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = activated(x)
    monkeypatch.setattr(module, "PER_THREAD", per_thread)
    assert all(map(torch.equal, activated(x), expected))
    assert torch.equal(gelu_(x.clone()), expected[0])


def inputs(rows, inner, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = (rows, inner), (width, inner), (width,)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    ]


def test_gradients_of_the_layer_agree_with_finite_differences():
    assert torch.autograd.gradcheck(linear_gelu, inputs(3, 4, 5, torch.float64))


def test_the_layer_takes_no_tanh_and_keeps_one_tensor_for_the_backward_pass():
    x, weight, bias = inputs(64, 2, 256)
    size = 64 * 256 * 4
    with Dispatched() as forward, LiveStorages() as storages:
        result = linear_gelu(x, weight, bias)
    assert forward.names["gelu"] == forward.names["tanh"] == 0
    assert 2 * size <= storages.bytes < 3 * size
    with Dispatched() as backward:
        result.sum().backward()
    assert backward.names["gelu_backward"] == 0
    with torch.no_grad(), LiveStorages() as storages:
        assert torch.equal(linear_gelu(x, weight, bias), result)
        assert storages.bytes < 3 * size


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
    x, weight, bias = inputs(rows, 4, 3)
    result = linear_gelu(x, weight, bias)
    result.sum().backward()
    assert result.shape == (rows, 3) and x.grad.shape == x.shape

"""Causal attention on CPUs, in blocks of queries, against float64."""

import numpy as np
import pytest
import torch
from dispatched import Dispatched
from live_storages import LiveStorages

from gpt.kernels.attention import CPU_QUERIES, causal_attention, split_heads

pytestmark = pytest.mark.usefixtures("one_thread")


def values(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def exact(qkv, n_heads, grad):
    """(result, gradient of qkv) by the definition, in float64."""
    batch, length, width = qkv.shape
    heads = qkv.reshape(batch, length, 3, n_heads, -1)
    q, k, v = heads.transpose(2, 0, 3, 1, 4)  # (B, H, T, D) each
    scale = q.shape[-1] ** -0.5
    scores = np.where(np.tri(length, dtype=bool), q @ k.swapaxes(2, 3) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    result = (weights @ v).swapaxes(1, 2).reshape(batch, length, -1)
    grad = grad.reshape(batch, length, n_heads, -1).swapaxes(1, 2)
    of_weights = grad @ v.swapaxes(2, 3)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True)) * scale
    gradients = (of_scores @ k, of_scores.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ grad)
    joined = np.stack(gradients, 2)  # (B, H, 3, T, D)
    return result, joined.transpose(0, 3, 2, 1, 4).reshape(qkv.shape)


LENGTHS = [1, CPU_QUERIES, CPU_QUERIES + 1, 2 * CPU_QUERIES, 3 * CPU_QUERIES - 1]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.3}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients(length, dtype):
    shape = (2, length, 3 * 3 * 5)
    qkv = (2 * values(*shape)).to(dtype).requires_grad_()
    grad = values(2, length, 15, seed=1).to(dtype)
    result = causal_attention(*split_heads(qkv, 3))
    (gradient,) = torch.autograd.grad(result, qkv, grad)
    expected = exact(qkv.detach().double().numpy(), 3, grad.double().numpy())
    assert result.dtype == gradient.dtype == dtype
    for mine, reference in zip((result, gradient), expected):
        np.testing.assert_allclose(
            mine.detach().double().numpy(), reference, rtol=0, atol=TOLERANCES[dtype]
        )
    with torch.no_grad():
        assert torch.equal(causal_attention(*split_heads(qkv, 3)), result)


def test_strides_of_no_common_matrix():
    """q, k and v of three storages, each laid out in its own way."""
    length = CPU_QUERIES + 9
    q = values(2, 3, length, 4).requires_grad_()
    k = values(length, 3, 2, 8, seed=1)[..., 2:6].permute(2, 1, 0, 3).requires_grad_()
    v = values(2, length, 3, 4, seed=2).transpose(1, 2).requires_grad_()
    grad = values(2, length, 12, seed=3)
    result = causal_attention(q, k, v)
    gradients = torch.autograd.grad(result, (q, k, v), grad)
    qkv = torch.cat([tensor.detach().transpose(1, 2).flatten(2) for tensor in (q, k, v)], 2)
    expected, of_qkv = exact(qkv.numpy(), 3, grad.numpy())
    joined = torch.cat([tensor.transpose(1, 2).flatten(2) for tensor in gradients], 2)
    np.testing.assert_allclose(result.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(joined.numpy(), of_qkv, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_second_channel_and_the_last_two_dimensions_swapped(dtype):
    """What a model of the user's own may give: no last dimension is contiguous."""
    length = CPU_QUERIES + 9
    q = values(2, 3, length, 10).to(dtype)[..., ::2]
    k = values(2, 3, 5, length, seed=1).to(dtype).transpose(2, 3)
    v = values(2, 3, length, 10, seed=2).to(dtype)[..., 1::2]
    qkv = torch.cat([tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v)], 2)
    expected, _ = exact(qkv.double().numpy(), 3, np.zeros((2, length, 15)))
    result = causal_attention(q, k, v).double().numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_values_may_be_wider_than_queries():
    length = CPU_QUERIES + 9
    q, k = (values(1, 2, length, 4, seed=seed).float() for seed in range(2))
    v = values(1, 2, length, 8, seed=2).float()
    halves = [causal_attention(q, k, part).unflatten(2, (2, 4)) for part in v.split(4, 3)]
    result = causal_attention(q, k, v).unflatten(2, (2, 8))
    torch.testing.assert_close(result, torch.cat(halves, 3))


def test_no_query_sees_what_comes_after_it():
    length = 2 * CPU_QUERIES + 3
    qkv = values(1, length, 24).float()
    result = causal_attention(*split_heads(qkv, 2))
    for seen in (1, CPU_QUERIES, CPU_QUERIES + 1, length - 1):
        later = qkv.clone()
        later[:, seen:] += 9
        assert torch.equal(causal_attention(*split_heads(later, 2))[:, :seen], result[:, :seen])


def test_gradients_are_added_where_they_belong():
    """No zeros as long as the keys for every block."""
    qkv = values(1, 4 * CPU_QUERIES, 24).float().requires_grad_()
    result = causal_attention(*split_heads(qkv, 2))
    with Dispatched() as backward:
        result.sum().backward()
    assert not any(backward.names[name] for name in ("slice_backward", "zeros", "add"))
    assert backward.names["add_"] == 2 * 3


def test_memory_grows_as_the_length_does():
    """Of 16 blocks of queries: no mask or weights of T x T."""
    length = 16 * CPU_QUERIES
    qkv = values(1, length, 12).float().requires_grad_()
    with LiveStorages() as storages:
        causal_attention(*split_heads(qkv, 2)).sum().backward()
    mask = 4 * CPU_QUERIES * length
    assert storages.peak < mask + 8 * qkv.nbytes < 4 * length**2 / 8

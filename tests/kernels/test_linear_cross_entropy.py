"""The loss of the output layer, in chunks and in 16 bits, against float64 and PyTorch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dispatched import Dispatched
from float64_references import numpy_cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt.kernels import linear as linear_module
from gpt.kernels import linear_cross_entropy as kernel
from gpt.kernels.linear_cross_entropy import linear_cross_entropy, score_tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def random_head(rows, vocab_size, width=6, dtype=torch.float64, seed=3):
    """(hidden, weight, targets), both leaves of autograd."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (
        torch.randn(rows, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
    )
    weight = (
        torch.randn(vocab_size, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
    )
    return hidden, weight, torch.randint(vocab_size, (rows,), generator=generator)


def test_gradients_of_linear_cross_entropy_agree_with_finite_differences(monkeypatch):
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", 3 * 11)
    assert torch.autograd.gradcheck(linear_cross_entropy, random_head(rows=8, vocab_size=11))


@pytest.mark.parametrize("elements", [1, 53, 7 * 53 + 5, 1 << 22])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_linear_cross_entropy_is_cross_entropy(monkeypatch, elements, dtype, tolerance):
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", elements)
    hidden, weight, targets = random_head(rows=45, vocab_size=53, dtype=dtype)
    expected = F.cross_entropy(hidden @ weight.t(), targets)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == dtype and loss.item() == pytest.approx(expected.item(), rel=tolerance)
    gradients = torch.autograd.grad(2.5 * loss, (hidden, weight))
    references = torch.autograd.grad(2.5 * expected, (hidden, weight))
    for value, reference in zip(gradients, references):
        assert value.dtype == dtype
        torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)


def test_linear_cross_entropy_never_holds_all_logits(monkeypatch):
    rows = 512
    vocab_size = 4096
    width = 8
    chunk = 1 << 15
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", chunk)
    largest = 0

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            largest = max(
                [largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))]
            )
            return result

    hidden, weight, targets = random_head(rows, vocab_size, width, torch.float32)
    with Recorder():
        linear_cross_entropy(hidden, weight, targets).backward()
    assert largest == chunk == weight.numel()
    with Recorder():  # which sees the logits where there are any
        F.cross_entropy(hidden @ weight.t(), targets).backward()
    assert largest == rows * vocab_size


@pytest.fixture
def fp32_results(monkeypatch):
    """A CPU that multiplies 16-bit matrices into fp32 ones, as torch's mm does on CUDA devices."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", lambda a, b, dtype: a.to(dtype) @ b.to(dtype), "CPU")
    monkeypatch.setattr(linear_module, "_WITH_FP32_RESULTS", {"cpu"})
    yield
    library._destroy()


def test_who_multiplies_into_fp32():
    assert linear_module._WITH_FP32_RESULTS == {"cuda"}  # of this torch; CPUs refuse
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert not linear_module.has_fp32_results(torch.empty(1, dtype=dtype))
        assert linear_module.has_fp32_results(FakeCuda(dtype)) == (dtype != torch.float32)


class FakeCuda:
    device = torch.device("cuda")

    def __init__(self, dtype):
        self.dtype = dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunks", [1, 4])
def test_launches_of_the_head(monkeypatch, fp32_results, chunks, dtype):
    """Three products a chunk, its softmax as one kernel, and the sum of its nats; no pass over the
    weight's gradient but to add chunks up and to scale the sum."""
    rows, vocab_size = 64, 37
    for kind in ("cpu", "cpu in bf16"):
        monkeypatch.setitem(kernel.CHUNK_ELEMENTS, kind, rows // chunks * vocab_size)
    monkeypatch.setattr(
        kernel,
        "softmax_gradient_",
        lambda logits, *rest: logits.new_empty(len(logits), dtype=torch.float32),
    )
    hidden, weight, targets = random_head(rows, vocab_size, dtype=dtype)
    with Dispatched() as forward:
        loss = linear_cross_entropy(hidden, weight, targets)
    assert forward.names["mm"] == 3 * chunks
    assert forward.names["add_"] == chunks + (chunks - 1)
    # of targets that count
    assert forward.names["sum"] == chunks + 1 and forward.names["_to_copy"] == 1
    assert not any(
        forward.names[name] for name in ("abs", "amax", "log2", "exp2", "copy_", "clone")
    )
    scale = torch.ones(())
    with Dispatched() as backward:
        loss.backward(scale)
    assert backward.names["mul"] == 2 and backward.names["_to_copy"] == backward.names["clone"] == 0


def test_one_chunk_where_there_is_room_for_it():
    assert len(kernel._chunks(32 * 512, 16384, "cuda")) == 1
    assert len(kernel._chunks(128 * 512, 50304, "cuda")) == 13
    assert len(kernel._chunks(32 * 512, 16384, "cpu")) == 32


@pytest.mark.parametrize("shift", [-3000.0, 0.0, 3000.0])
def test_improbable_targets_in_fp32(shift):
    """Hundreds of nats, where the target's own exponential is 0, at logits of any level."""
    levels = torch.tensor([0.0, 150.0, 400.0, 400.0, 1.0])
    weight = torch.stack([levels, torch.ones(5)], 1).requires_grad_()
    hidden = torch.tensor([[1.0, shift]]).expand(5, 2).clone().requires_grad_()
    nats, gradients = [], []
    for target in range(5):
        loss = linear_cross_entropy(hidden[target : target + 1], weight, torch.tensor([target]))
        nats.append(loss.item())
        gradients.append(torch.autograd.grad(loss, weight)[0][:, 0])
    logits = np.broadcast_to(levels.double().numpy(), (5, 5))
    peak = logits.max() + np.log(2)  # two are as probable
    np.testing.assert_allclose(nats, peak - logits[0], atol=4096 * 2.0**-23)
    expected = np.exp(logits - peak) - np.eye(5)
    np.testing.assert_allclose(torch.stack(gradients).numpy(), expected, atol=1e-3)


FP16_CASES = [
    (8, 1.0, 0.02),
    (8, 1024.0, 0.02),
    (2048, 1.0, 0.02),
    (2048, 2.0**16, 0.02),
    (2048, 1.0, 0.5),
]


@pytest.mark.parametrize("rows, scale, share", FP16_CASES)
def test_fp16_gradients_neither_vanish_nor_overflow(rows, scale, share):
    check_fp16_gradients(rows, scale, share, products=2)


@pytest.mark.parametrize("elements", [1 << 22, 300 * 64])
@pytest.mark.parametrize("rows, scale, share", FP16_CASES)
def test_fp16_gradients_by_products_in_fp32(
    fp32_results, monkeypatch, elements, rows, scale, share
):
    monkeypatch.setattr(kernel, "_safe_factor", None)
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", elements)
    check_fp16_gradients(rows, scale, share, products=1)


def check_fp16_gradients(rows, scale, share, products):
    """Element by element against float64; `share` of the rows have one target, whose gradients add
    up.

    With u = 2**-11, fp16's relative rounding error: logits err by at most u * max|logit|, so that
    softmax - one-hot errs by twice that, relative to itself; it and the `products` (of two) that
    are in fp16 are rounded to it once each. Probabilities below 2**-30 may vanish, and the results
    are multiples of the smallest fp16 number, 2**-24.
    """
    hidden, weight, targets = random_head(rows, vocab_size=64, dtype=torch.float16)
    targets = targets % 48
    targets[: int(share * rows)] = 7
    with torch.no_grad():  # the last 16 tokens are improbable: about 1e-8 each
        hidden[:, 0] = 1
        weight *= 0.5
        weight[:48, 0], weight[48:, 0] = 2, -12
    loss = linear_cross_entropy(hidden, weight, targets)
    h = hidden.detach().double().numpy()
    w = weight.detach().double().numpy()
    expected, gradient = numpy_cross_entropy(h @ w.T, targets)
    u, largest = 2.0**-11, np.abs(h @ w.T).max()
    assert loss.dtype == torch.float32 and abs(loss.item() - expected) <= 2 * u * largest
    (scale * loss).backward()
    factor = scale / rows
    error, fewer = (
        factor * (u * (2 * largest + roundings) * np.abs(gradient) + 2.0**-30)
        for roundings in (4, 2 + products)
    )
    for got, true, bound in [
        (hidden.grad, factor * gradient @ w, error @ np.abs(w)),
        (weight.grad, factor * gradient.T @ h, fewer.T @ np.abs(h)),
    ]:
        assert got.dtype == torch.float16 and np.abs(true).max() < 60000
        got, bound = got.double().numpy(), bound + 2.0**-24
        assert np.isfinite(got).all() and (np.abs(got - true) <= bound).all()
        far_above = np.abs(true) > np.maximum(4 * bound, 2.0**-20)
        assert far_above.mean() > 0.4 and (got[far_above] != 0).all()


def test_equal_logits_rank_by_id():
    weight = torch.tensor([[1.0], [3.0], [2.0], [3.0], [2.0], [2.0]])
    scores = score_tokens(torch.ones(6, 1), weight, torch.arange(6))
    assert scores.rank.tolist() == [5, 0, 2, 1, 3, 4]

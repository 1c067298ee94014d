"""The fused kernels against computations in float64, Triton's under its interpreter and plain
torch's by the same tests.

Run by tests/kernels/test_kernels.py in a process of its own, since TRITON_INTERPRET must be set
before anything imports triton; by hand: `python -m pytest tests/support/interpreted_kernels.py`.
"""

import dataclasses
import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from fences import MARGIN, Outputs, fenced, strided
from variants import EVERY_OPTION, trainable

from gpt.config.shape import ModelConfig
from gpt.errors import UserError
from gpt.kernels import cross_entropy, gelu, layer_norm, partial_sums, trial, triton_shared
from gpt.kernels.choice import choose
from gpt.kernels.cross_entropy import score_logits, softmax_gradient_
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm
from gpt.kernels.partial_sums import COLUMNS, ROWS

TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(not triton_shared.interpreted(), reason="triton is not installed"),
)
both = pytest.mark.parametrize("kernels", ["torch", TRITON])
only_triton = pytest.mark.parametrize("kernels", [TRITON])
# Largest relative error of rounding to the nearest number of a dtype, and half its smallest number.
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}
TINY = {torch.float32: 2.0**-150, torch.float16: 2.0**-25}
WIDTHS = [7, 64, 100, 768, 1025, 1600]
# Every width, and every number of rows, but their product only under the marker `slow`.
SIZES = [(5, width) for width in WIDTHS] + [(1, 7), (3, 100), (1, 1025), (3, 768)]
MATRIX = [
    pytest.param(r, w, marks=pytest.mark.slow)
    for r in (1, 3, 5)
    for w in WIDTHS
    if (r, w) not in SIZES
]

pytestmark = pytest.mark.usefixtures("one_thread", "short_walks")


@pytest.fixture
def short_walks(monkeypatch):
    """Two rows to a program: five rows make three programs, the last with one row; and two of the
    three partial sums to a turn of the loop that joins them."""
    monkeypatch.setattr(triton_shared, "ROWS_PER_PROGRAM", 2)
    monkeypatch.setattr(partial_sums, "ROWS", 2)
    monkeypatch.setattr(partial_sums, "COLUMNS", 1024)


@pytest.fixture
def tiles_of_a_run(short_walks, monkeypatch):
    monkeypatch.setattr(partial_sums, "ROWS", ROWS)
    monkeypatch.setattr(partial_sums, "COLUMNS", COLUMNS)


def random(*shape, seed=0, scale=1.0, offset=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset).to(dtype)


def double(tensor):
    return tensor.detach().double().numpy()


def close(got, expected, bound):
    """got: a tensor; expected, bound: float64. The rounding to got's dtype is allowed on top of
    `bound`."""
    error = np.abs(double(got) - expected)
    allowed = bound + UNIT[got.dtype] * np.abs(expected) + TINY[got.dtype]
    assert (error <= allowed).all(), f"error {np.max(error / allowed):.3g} times the bound"


# ---- Buffers; first, since a stray write in the later tests may end the process


@only_triton
@pytest.mark.parametrize("rows, width", [(1, 7), (5, 100), (3, 1025)])
def test_layer_norm_stays_in_its_buffers(rows, width, kernels):
    x, residual, grad_normed, grad_total = (strided(random(rows, width, seed=s)) for s in range(4))
    weight, bias, x_bias = (fenced(random(width, seed=s)) for s in (5, 6, 7))
    outputs = Outputs()
    for branch_bias, stream, grad_stream, sums in [
        (x_bias, residual, grad_total, 3),
        (None, residual, grad_total, 2),
        (None, None, None, 2),
    ]:
        normed = outputs(rows, width)
        total = outputs(rows, width)
        stats = outputs(2, rows)
        layer_norm.launch_forward(x, branch_bias, stream, weight, bias, normed, total, stats, 1e-5)
        source = total if stream is not None else total.copy_(x)
        programs, per_program = triton_shared.share_rows(rows, 1, x.device)
        grads = outputs(rows, width), outputs(sums, programs, width)
        layer_norm.launch_backward(
            grad_normed, grad_stream, source, weight, stats, *grads, per_program
        )
    outputs.check()


@only_triton
@pytest.mark.parametrize("quantities, programs, width", [(1, 1, 7), (3, 5, 100), (2, 300, 1025)])
def test_partial_sums_stay_in_their_buffers(quantities, programs, width, kernels, tiles_of_a_run):
    partial = fenced(random(quantities, programs, width))
    outputs = Outputs()
    partial_sums.launch(partial, outputs(quantities, width))
    outputs.check()


@only_triton
@pytest.mark.parametrize("rows, width", [(1, 7), (5, 100), (3, 1025)])
def test_gelu_stays_in_its_buffers(rows, width, kernels):
    x = strided(random(rows, width))
    grad = strided(random(rows, width, seed=1))
    bias, outputs = fenced(random(width, seed=2)), Outputs()
    gelu.launch_forward(x, bias, outputs(rows, width))
    programs, per_program = triton_shared.share_rows(rows, 1, x.device)
    gelu.launch_backward(grad, x, bias, outputs(rows, width), outputs(programs, width), per_program)
    outputs.check()


@only_triton
@pytest.mark.parametrize("vocab_size", [5, 1000, 5000])
def test_cross_entropy_stays_in_its_buffers(vocab_size, kernels):
    values = random(3, vocab_size)
    targets = torch.tensor([0, 1, vocab_size - 1])
    outputs = Outputs()
    logits = outputs(3, vocab_size + 9)
    logits[:, 3:-6] = values
    rank = torch.full((2 * MARGIN + 3,), -7)
    view = rank[MARGIN:-MARGIN]
    cross_entropy.launch(logits[:, 3:-6], targets, outputs(3), view, 1.0, True)
    assert (
        (rank == -7).sum() == 2 * MARGIN
        and logits[:, :3].isnan().all()
        and logits[:, -6:].isnan().all()
    )
    logits[:, :3] = logits[:, -6:] = 0
    outputs.check()


# ---- LayerNorm


def numpy_layer_norm(total, weight, bias, grad_normed, grad_total, eps=1e-5):
    """(normed, d total, d weight, d bias) in float64, d total through the Jacobian of each row."""
    centred = total - total.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True) + eps)
    normal, width = centred / deviation, total.shape[1]
    centring = np.eye(width) - 1 / width
    grads = []
    for n, s, g in zip(normal, deviation, grad_normed * weight):
        jacobian = (centring - np.outer(n, n) / width) / s
        grads.append(jacobian @ g)
    return (
        normal * weight + bias,
        np.array(grads) + grad_total,
        (grad_normed * normal).sum(0),
        grad_normed.sum(0),
    )


def layer_norm_bounds(total, weight, grad_normed, kernels):
    """Errors of (normed, d total, d weight, d bias) beside the last rounding, in units of what the
    formulas handle.

    A sum of n numbers in fp32, added in pairs, errs by at most 2**-24 log2(n) of the sum of their
    magnitudes; a dozen further operations are one unit each. Before the mean is subtracted numbers
    are max|total| / deviation times as large as after, and every result depends on the difference;
    torch's backward multiplies such numbers by one another.
    """
    deviation = total.std(1, keepdims=True)
    growth = 1 + np.abs(total).max(1, keepdims=True) / deviation
    unit = 2.0**-24 * (np.log2(total.shape[1]) + 12) * growth
    normal = np.abs(total - total.mean(1, keepdims=True)) / deviation
    if kernels == "torch":
        unit = unit * growth
    incoming = np.abs(grad_normed * weight).max(1, keepdims=True)
    sums = (unit * np.abs(grad_normed) * (1 + normal)).sum(0)
    return (
        unit * (1 + normal) * (np.abs(weight) + 1),
        unit * incoming * (2 + normal.max()) ** 2 / deviation,
        sums,
        sums,
    )


@both
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("rows, width", SIZES + MATRIX)
def test_layer_norm(rows, width, dtype, offset, kernels):
    x, residual = (
        strided(random(rows, width, seed=s, offset=offset / 2, dtype=dtype)) for s in (1, 2)
    )
    grad_normed, grad_total = (strided(random(rows, width, seed=s, dtype=dtype)) for s in (3, 4))
    weight, bias = (fenced(random(width, seed=s, offset=1.0, dtype=dtype)) for s in (5, 6))
    leaves = [tensor.requires_grad_() for tensor in (x, residual, weight, bias)]
    normed, total = add_layer_norm(*leaves, kernels=kernels)
    # Rounded to fp32, then to the dtype. The sum of two fp32 numbers, rounded to float64 first,
    # rounds to the same fp32.
    summed = torch.from_numpy((double(x) + double(residual)).astype(np.float32)).to(dtype)
    assert torch.equal(total, summed)
    bounds = layer_norm_bounds(*map(double, (summed, weight, grad_normed)), kernels)
    expected = numpy_layer_norm(*map(double, (summed, weight, bias, grad_normed, grad_total)))
    close(normed, expected[0], bounds[0])
    if kernels == "torch" and dtype == torch.float16:
        return  # whose backward keeps the mean in fp16 on a CPU
    grad_x, *grads = torch.autograd.grad((normed, total), leaves, (grad_normed, grad_total))
    assert torch.equal(grad_x, grads[0])
    for got, true, bound in zip(grads, expected[1:], bounds[1:]):
        assert got.dtype == dtype
        close(got, true, bound)

    source = strided(summed).requires_grad_()
    alone = layer_norm.layer_norm(source, weight, bias, kernels=kernels)
    grads = torch.autograd.grad(alone, (source, weight, bias), grad_normed)
    for got, true, bound in zip(
        (alone, *grads), (expected[0], expected[1] - double(grad_total), *expected[2:]), bounds
    ):
        close(got, true, bound)


@both
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("rows, width", [(5, 100), (3, 768), (1, 1025)])
def test_layer_norm_of_a_branch_whose_bias_is_still_to_come(rows, width, dtype, offset, kernels):
    """The sum of three carries two additions' errors in fp32 and one rounding, in torch two;
    everything else is computed from the sum as it is. The bias's gradient sums those of the rows,
    before they are rounded or, in torch, after."""
    x, residual = (
        strided(random(rows, width, seed=s, offset=offset / 2, dtype=dtype)) for s in (1, 2)
    )
    grad_normed, grad_total = (strided(random(rows, width, seed=s, dtype=dtype)) for s in (3, 4))
    weight, bias, x_bias = (
        fenced(random(width, seed=s, offset=1.0, dtype=dtype)) for s in (5, 6, 7)
    )
    leaves = [tensor.requires_grad_() for tensor in (x, residual, weight, bias, x_bias)]
    normed, total = add_layer_norm(*leaves[:4], kernels=kernels, x_bias=x_bias)
    sizes = np.abs(double(x)) + np.abs(double(x_bias)) + np.abs(double(residual))
    roundings = 2 * 2.0**-24
    if kernels == "torch":
        roundings += UNIT[dtype]
    close(total, double(x) + double(x_bias) + double(residual), roundings * sizes)
    bounds = layer_norm_bounds(*map(double, (total, weight, grad_normed)), kernels)
    expected = numpy_layer_norm(*map(double, (total, weight, bias, grad_normed, grad_total)))
    close(normed, expected[0], bounds[0])
    if kernels == "torch" and dtype == torch.float16:
        return  # whose backward keeps the mean in fp16 on a CPU
    grad_x, *grads, grad_x_bias = torch.autograd.grad(
        (normed, total), leaves, (grad_normed, grad_total)
    )
    assert torch.equal(grad_x, grads[0]) and grad_x_bias.dtype == dtype
    for gradient, exact, bound in zip(grads, expected[1:], bounds[1:]):
        close(gradient, exact, bound)
    each = bounds[1] + 2.0**-24 * rows * np.abs(expected[1])
    close(grad_x_bias, expected[1].sum(0), each.sum(0))


@only_triton
def test_a_bias_whose_gradient_only_comes_from_the_stream(kernels):
    leaves = [random(3, 7, seed=s).requires_grad_() for s in (1, 2)] + [
        random(7, seed=s).requires_grad_() for s in (3, 4, 5)
    ]
    *others, x_bias = leaves
    _, total = add_layer_norm(*others, kernels=kernels, x_bias=x_bias)
    weights = random(3, 7, seed=6)
    (grad_x_bias,) = torch.autograd.grad((total * weights).sum(), x_bias)
    torch.testing.assert_close(grad_x_bias, weights.sum(0))


@only_triton
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize(
    "quantities, programs, width", [(1, 0, 5), (1, 1, 7), (3, 300, 100), (2, 513, 64)]
)
def test_partial_sums(quantities, programs, width, dtype, kernels, tiles_of_a_run):
    partial = random(quantities, programs, width, dtype=torch.promote_types(dtype, torch.float32))
    result = partial_sums.finish(partial, dtype)
    assert result.dtype == dtype
    unit = torch.finfo(partial.dtype).eps * (np.log2(programs + 1) + 2)
    close(result, double(partial).sum(1), unit * np.abs(double(partial)).sum(1))


@both
def test_residual_stream_wider_than_the_weights(kernels):
    # whose rows have no common stride
    x = random(3, 2, 64, dtype=torch.float16).transpose(0, 1).requires_grad_()
    residual = random(2, 3, 64, seed=1).requires_grad_()
    weight, bias = (random(64, seed=s, dtype=torch.float16).requires_grad_() for s in (2, 3))
    normed, total = add_layer_norm(x, residual, weight, bias, kernels=kernels)
    assert (normed.dtype, total.dtype, total.shape) == (torch.float16, torch.float32, (2, 3, 64))
    assert torch.equal(total, residual + x.float())
    (normed.float().square().sum() + total.sum()).backward()
    assert [t.grad.dtype for t in (x, residual, weight)] == [
        torch.float16,
        torch.float32,
        torch.float16,
    ]
    assert torch.equal(x.grad, residual.grad.half())


@both
def test_layer_norm_whose_results_are_used_in_part(kernels):
    leaves = [random(3, 7, seed=s).requires_grad_() for s in (1, 2)] + [
        random(7, seed=3),
        random(7, seed=4),
    ]
    normed, total = add_layer_norm(*leaves, kernels=kernels)
    (only_total,) = torch.autograd.grad(total, leaves[0], torch.ones(3, 7), retain_graph=True)
    assert (only_total == 1).all()
    only_normed = torch.autograd.grad(normed, leaves[:2], torch.ones(3, 7))
    _, expected, _, _ = numpy_layer_norm(
        *map(double, (total, leaves[2], leaves[3])), np.ones((3, 7)), 0
    )
    # a hundred times fp32's unit, of numbers about 1
    assert np.abs(double(only_normed[0]) - expected).max() < 1e-5


@only_triton
def test_layer_norm_beyond_the_widest(kernels):
    with pytest.raises(UserError, match='8193 numbers.*8192.*kernels to "torch"'):
        layer_norm.layer_norm(
            torch.zeros(1, 8193), torch.ones(8193), torch.zeros(8193), kernels=kernels
        )


# ---- GELU


def numpy_gelu(z):
    """(gelu, its derivative) in float64."""
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (z + 0.044715 * z**3))
    return 0.5 * z * (1 + t), 0.5 * (1 + t) + 0.5 * z * (1 - t**2) * c * (1 + 3 * 0.044715 * z**2)


@both
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("rows, width", SIZES + MATRIX)
def test_bias_gelu(rows, width, dtype, kernels):
    """z = x + bias carries a relative error of one unit (torch: the dtype's), times the slope of
    gelu, at most 1.13, or of its derivative, at most 0.8. Beyond that sigmoid's argument, below 20
    where sigmoid(-2u) matters, and a dozen operations: 40 units of fp32. The sums over rows add the
    errors of their terms, in torch after rounding each."""
    x, grad = (strided(random(rows, width, seed=s, scale=3, dtype=dtype)) for s in (1, 2))
    bias = fenced(random(width, seed=3, dtype=dtype))
    x, bias = x.requires_grad_(), bias.requires_grad_()
    result = bias_gelu(x, bias, kernels=kernels)
    grad_x, grad_bias = torch.autograd.grad(result, (x, bias), grad)
    z = double(x) + double(bias)
    value, slope = numpy_gelu(z)
    unit = (UNIT[dtype] if kernels == "torch" else 2.0**-24) * np.abs(z)
    close(result, value, 1.13 * unit + 40 * 2.0**-24 * (1 + np.abs(z)))
    expected = double(grad) * slope
    bound = np.abs(double(grad)) * (unit + 40 * 2.0**-24 * (1 + np.abs(z)))
    close(grad_x, expected, bound)
    each = bound + (UNIT[dtype] * np.abs(expected) if kernels == "torch" else 0)
    close(grad_bias, expected.sum(0), each.sum(0) + rows * 2.0**-24 * np.abs(expected).sum(0))


@only_triton
def test_gelu_keeps_its_tail(kernels):
    """Relative error far below zero, where 1 + tanh(u) has no digits left: the units of exp's
    argument, at most 90."""
    x = torch.linspace(-10, -3, 64)[None]
    value = double(x) / (
        1 + np.exp(-2 * np.sqrt(2 / np.pi) * (double(x) + 0.044715 * double(x) ** 3))
    )
    close(bias_gelu(x, torch.zeros(64), kernels), value, 120 * 2.0**-24 * np.abs(value))


@only_triton
@pytest.mark.parametrize(
    "dtype, large", [(torch.float32, 1e30), (torch.float16, 6e4), (torch.float32, 30.0)]
)
def test_gelu_of_extreme_numbers(dtype, large, kernels):
    x = torch.tensor([[large, -large, 0.0, large]], dtype=dtype, requires_grad=True)
    result = bias_gelu(x, torch.zeros(4, dtype=dtype), kernels)
    result.sum().backward()
    assert torch.equal(result, torch.tensor([[large, 0, 0, large]], dtype=dtype))
    # 1e-35: the slope at -10, beyond which it stays
    np.testing.assert_allclose(x.grad, [[1, 0, 0.5, 1]], rtol=2.0**-22, atol=1e-35)


# ---- Cross-entropy


def numpy_cross_entropy(logits, targets):
    """(nats, d nats / d logits, rank) in float64; rank by sorting, which keeps equal logits in the
    order of their ids."""
    rows = np.arange(len(logits))
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    gradient = np.exp(log_p)
    gradient[rows, targets] -= 1
    order = np.argsort(-logits, axis=1, kind="stable")
    return -log_p[rows, targets], gradient, (order == targets[:, None]).argmax(1)


def check_cross_entropy(values, targets, scale, kernels):
    """nats err by a unit of the logits' differences and of log(sum), p = exp(x - max) / sum by the
    units of exp's argument, at most 90 where p does not vanish, and of a sum in pairs; all in fp32,
    then one rounding."""
    nats, gradient, rank = numpy_cross_entropy(double(values), targets.numpy())
    unit = 2.0**-24 * (np.log2(values.shape[1]) + 12)
    logits = strided(values)
    assert score_logits(logits, targets, kernels)[1].tolist() == rank.tolist()
    before = logits.clone()
    got = softmax_gradient_(logits, targets, scale, want_gradient=False, kernels=kernels)
    assert got.dtype == torch.float32 and torch.equal(logits, before)
    close(got, nats, unit)
    assert torch.equal(softmax_gradient_(logits, targets, scale, kernels=kernels), got)
    close(
        logits,
        scale * gradient,
        scale * (unit + 90 * 2.0**-24) * (np.abs(gradient) + (gradient < 0)),
    )
    return logits


@both
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("vocab_size", [5, 128, 1000, 5000])
@pytest.mark.parametrize("rows", [1, 5])
def test_cross_entropy(rows, vocab_size, dtype, kernels):
    values = random(rows, vocab_size, scale=4, dtype=dtype)
    targets = torch.tensor([vocab_size - 1, 0, vocab_size // 2, 4, 3])[:rows]
    check_cross_entropy(values, targets, 1024.0, kernels)


@both
@pytest.mark.parametrize(
    "dtype, large", [(torch.float16, 6e4), (torch.float32, 6e4), (torch.float32, 1e30)]
)
def test_cross_entropy_of_extreme_logits(dtype, large, kernels):
    values = torch.full((6, 300), -large)
    values[1] = large
    values[2, 7] = values[3, 8] = large  # 2: on the target; 3: beside it
    values[4] = random(300) + (large if large < 1e5 else 0)  # close together and far from zero
    values[5, ::2] = large
    check_cross_entropy(values.to(dtype), torch.full((6,), 7), 1.0, kernels)


@both
@pytest.mark.parametrize(
    "dtype, scale", [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.float16, 32768.0)]
)
def test_scale_of_the_gradient(dtype, scale, kernels):
    values = torch.zeros(2, 4000, dtype=dtype)
    values[:, 100:] = -12  # each about 6e-8: beneath fp16 without the scale
    gradient = check_cross_entropy(values, torch.tensor([3, 3999]), scale, kernels)
    assert (gradient != 0).all()


@both
def test_ranks_of_equal_logits(kernels):
    values = torch.tensor([[1.0, 3, 2, 3, 2, 2]]).repeat(6, 1)
    assert score_logits(values, torch.arange(6), kernels)[1].tolist() == [5, 0, 2, 1, 3, 4]


@both
def test_ignored_targets(kernels):
    values = random(4, 128, scale=4)
    targets = torch.tensor([5, -100, 9, -100])
    expected, gradient, _ = numpy_cross_entropy(double(values), np.array([5, 0, 9, 0]))
    nats, rank = score_logits(values, targets, kernels)
    assert nats[[1, 3]].tolist() == rank[[1, 3]].tolist() == [0, 0]
    assert torch.equal(softmax_gradient_(values, targets, 1.0, kernels=kernels), nats)
    assert (values[[1, 3]] == 0).all()
    assert np.abs(double(nats)[::2] - expected[::2]).max() < 1e-5
    assert np.abs(double(values)[::2] - gradient[::2]).max() < 1e-6


@only_triton
@pytest.mark.parametrize("target", [-1, 128, 10**9])
def test_targets_outside_the_vocabulary_are_not_numbers(target, kernels):
    nats = softmax_gradient_(random(2, 128), torch.tensor([target, 3]), 1.0, kernels=kernels)
    assert nats.isnan().tolist() == [True, False]


# ---- What torch asks of an operation


def leaves64(*shapes):
    return [
        random(*shape, seed=s, dtype=torch.float64).requires_grad_()
        for s, shape in enumerate(shapes)
    ]


@only_triton
def test_gradients_agree_with_finite_differences(kernels):
    inputs = leaves64((3, 5), (3, 5), (5,), (5,))
    assert torch.autograd.gradcheck(lambda *args: add_layer_norm(*args, kernels=kernels), inputs)
    assert torch.autograd.gradcheck(
        lambda x_bias, *args: add_layer_norm(*args, kernels=kernels, x_bias=x_bias),
        leaves64((3,), (3, 3), (3, 3), (3,), (3,)),
    )
    assert torch.autograd.gradcheck(
        lambda *args: layer_norm.layer_norm(*args, kernels=kernels), inputs[1:]
    )
    assert torch.autograd.gradcheck(lambda *args: bias_gelu(*args, kernels=kernels), inputs[1:3])


@only_triton
def test_operations_are_registered_soundly(kernels):
    x, residual, weight, bias = leaves64((2, 3, 5), (2, 3, 5), (5,), (5,))
    stats = torch.ones(2, 6, dtype=torch.float64)
    detached = [tensor.detach() for tensor in (x, residual, x, weight)]
    logits = random(2, 9)
    targets = torch.tensor([3, -100])
    for name, *args in [
        ("layer_norm", x, bias, residual, weight, bias, 1e-5),
        ("layer_norm", x, None, residual, weight, bias, 1e-5),
        ("layer_norm", x, None, None, weight, bias, 1e-5),
        ("layer_norm_backward", *detached, stats, 2),
        ("layer_norm_backward", *detached, stats, 3),
        ("bias_gelu", x, bias),
        ("bias_gelu_backward", *(t.detach() for t in (x, residual, bias))),
        ("softmax_gradient_", logits, targets, 1.0, True),
        ("score_logits", logits, targets),
    ]:
        torch.library.opcheck(getattr(torch.ops.gpt, name).default, tuple(args))


# ---- The trial before a run


MODEL = ModelConfig(
    n_layers=2, h_dim=24, mlp_dim=40, n_heads=2, head_dim=8, vocab_size=37, seq_len=6
)
CPU = torch.device("cpu")


@pytest.mark.skipif(not triton_shared.interpreted(), reason="triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "widths", [(24, 40, 37), (768, 3072, 16384), (1000, 1025, 5000), (1, 1, 2), (2, 3, 3)]
)
def test_right_kernels_pass_the_trial(widths, dtype):
    model = dataclasses.replace(MODEL, **dict(zip(("h_dim", "mlp_dim", "vocab_size"), widths)))
    assert choose("triton", CPU, model, dtype) == ("triton", "as asked for")


# launcher, place of the result that is spoilt among its arguments, what the trial says
WRONG = [
    (layer_norm, "launch_forward", 5, "LayerNorm kernels give a wrong result"),
    (layer_norm, "launch_forward", 6, "LayerNorm kernels give a wrong sum with the stream"),
    # mean and rstd
    (layer_norm, "launch_forward", 7, "LayerNorm kernels give a wrong gradient"),
    (layer_norm, "launch_backward", 5, "LayerNorm kernels give a wrong gradient"),
    (layer_norm, "launch_backward", 6, "LayerNorm kernels give a wrong gradient of the weight"),
    (partial_sums, "launch", 1, "LayerNorm kernels give a wrong gradient of the weight"),
    (gelu, "launch_forward", 2, "GELU kernels give a wrong result"),
    (gelu, "launch_backward", 3, "GELU kernels give a wrong gradient"),
    (gelu, "launch_backward", 4, "GELU kernels give a wrong gradient of the bias"),
    (cross_entropy, "launch", 0, "cross-entropy kernels give a wrong gradient"),
    (cross_entropy, "launch", 2, "cross-entropy kernels give a wrong loss"),
    (cross_entropy, "launch", 3, "cross-entropy kernels give a wrong rank"),
]


def spoil_one(tensor):
    """One number of a result is 3% off; of whole numbers 1."""
    last = tensor.view(-1, tensor.shape[-1])[0, -1:]
    last += 1 if last.dtype == torch.int64 else 0.03 * last.abs() + 0.03


@only_triton
@pytest.mark.parametrize("spoil", [spoil_one, lambda tensor: tensor.zero_()])
@pytest.mark.parametrize("module, launcher, place, words", WRONG)
def test_wrong_kernels_are_found(module, launcher, place, words, spoil, kernels, monkeypatch):
    right = getattr(module, launcher)

    def wrong(*args):
        right(*args)
        reads_only = module is cross_entropy and place == 0 and not args[-1]
        if args[place] is not None and not reads_only:
            spoil(args[place])

    monkeypatch.setattr(module, launcher, wrong)
    with pytest.raises(UserError) as caught:
        choose("triton", CPU, MODEL, torch.float16)
    assert str(caught.value).startswith(f'kernels is "triton", but Triton\'s {words}')
    # as if compiled, on a GPU whose tensors lie here
    monkeypatch.setattr(triton_shared, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    problem = trial.problem
    monkeypatch.setattr(trial, "problem", lambda device, *rest: problem(CPU, *rest))
    choice, reason = choose("auto", torch.device("cuda", 0), MODEL, torch.float16)
    assert choice == "torch" and reason.startswith(f"Triton's {words}")


def forgets_the_bias(launch, x, x_bias, *others):
    launch(x, None, *others)


def sums_too_little(launch, *args):
    launch(*args)
    *_, partial, _ = args
    partial[2:, 0] = 0


@only_triton
@pytest.mark.parametrize(
    "launcher, wrong, words",
    [
        ("launch_forward", forgets_the_bias, "a wrong sum with the stream"),
        ("launch_backward", sums_too_little, "a wrong gradient of the branch's bias"),
    ],
)
def test_wrong_only_where_a_branch_hands_on_its_bias(launcher, wrong, words, kernels, monkeypatch):
    right = getattr(layer_norm, launcher)
    monkeypatch.setattr(layer_norm, launcher, lambda *args: wrong(right, *args))
    with pytest.raises(UserError, match=f"Triton's LayerNorm kernels give {words} here"):
        choose("triton", CPU, MODEL, torch.float16)


@only_triton
def test_kernels_that_fail_are_named(kernels, monkeypatch):
    def fails(*args):
        raise RuntimeError("out of shared memory\nand more")

    monkeypatch.setattr(gelu, "launch_backward", fails)
    with pytest.raises(
        UserError,
        match=r"Triton's GELU kernels fail here \(RuntimeError: out of shared memory\): update",
    ):
        choose("triton", CPU, MODEL, torch.float32)


@pytest.mark.skipif(not triton_shared.interpreted(), reason="triton is not installed")
@pytest.mark.parametrize(
    "variant, options",
    [
        (None, {}),
        ("modern", {}),
        ("modern", {"bias": False}),
        ("modern", EVERY_OPTION),
        ("lstm", {}),
    ],
)
def test_a_whole_model_with_the_kernels(variant, options):
    """The fp32 model by Triton and by torch: losses and gradients differ by the order of sums
    alone."""
    config = ModelConfig(
        n_layers=2, h_dim=24, mlp_dim=40, n_heads=2, head_dim=8, vocab_size=37, seq_len=6
    )
    tokens = torch.randint(37, (2, 7), generator=torch.Generator().manual_seed(1))
    found = {}
    for kernels in ("torch", "triton"):
        model = trainable(variant, shape=config, kernels=kernels, spread=0.02, **options)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        scores = model(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 6, dtype=torch.bool))
        found[kernels] = [
            loss,
            scores.nats,
            scores.rank,
            *(parameter.grad for parameter in model.parameters()),
        ]
    for one, other in zip(*found.values()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

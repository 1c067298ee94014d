"""The embedding's kernels against computations in float64, under Triton's interpreter, and plain
torch's by the same tests.

Run by tests/kernels/test_kernels.py, together with interpreted_kernels.py.
"""

import numpy as np
import pytest
import torch
from fences import MARGIN, Outputs, fenced, strided
from interpreted_kernels import (
    CPU,
    MODEL,
    UNIT,
    both,
    close,
    double,
    only_triton,
    random,
    spoil_one,
)

from gpt.errors import UserError
from gpt.kernels import embedding, trial
from gpt.kernels.choice import choose
from gpt.kernels.embedding import embed

pytestmark = pytest.mark.usefixtures("one_thread")
SCALE = 2.75
WIDTHS = [7, 100, 1025]


@pytest.fixture
def short_chunks(monkeypatch):
    """Four sorted tokens to a chunk, and two ids to a program that looks for runs."""
    monkeypatch.setattr(embedding, "CHUNK", 4)
    monkeypatch.setattr(embedding, "IDS", 2)


def numpy_embedding(tokens, weight, positions, grad):
    """(result, d weight, d positions) in float64, the gradients through one-hot rows."""
    one_hot = np.eye(len(weight))[tokens.numpy()]  # (B, T, V)
    result = SCALE * one_hot @ double(weight) + double(positions)
    grad = double(grad)
    return result, SCALE * np.einsum("btv,btc->vc", one_hot, grad), grad.sum(0)


# ---- Buffers; first, since a stray write in the later tests may end the process


@only_triton
@pytest.mark.parametrize("rows, width", [(1, 7), (11, 100), (6, 1025)])
def test_embedding_stays_in_its_buffers(rows, width, kernels, short_chunks):
    vocab_size = 5
    tokens = torch.tensor([4, 0, 4, 4, 4, 4, 9, 4, -1, 4, 4])[:rows]
    padded = torch.full((2, rows + 3), 10**12)
    padded[:, :rows] = tokens
    weight = fenced(random(vocab_size, width))
    outputs = Outputs()
    keys_buffer = torch.full((2 * MARGIN + 2 * rows,), -7, dtype=torch.int16)
    keys = keys_buffer[MARGIN:-MARGIN]
    result = outputs(2 * rows, width)
    positions = strided(random(rows, width, seed=1))
    embedding.launch_forward(padded[:, :rows], weight, positions, SCALE, result, keys)
    unknown = (tokens < 0) | (tokens >= vocab_size)
    assert keys.tolist() == tokens.masked_fill(unknown, vocab_size).tolist() * 2
    assert (keys_buffer == -7).sum() == 2 * MARGIN
    assert torch.equal(result.isnan().all(1), unknown.repeat(2))
    result[unknown.repeat(2)] = 0
    grad = strided(random(2 * rows, width, seed=2))
    embedding.launch_positions_backward(grad, outputs(rows, width))
    keys, order = fenced_order(keys)
    first_buffer = torch.full((2 * MARGIN + vocab_size + 1,), -7, dtype=torch.int32)
    first = first_buffer[MARGIN:-MARGIN]
    sums = outputs(2 * rows // embedding.CHUNK, width)
    embedding.launch_runs(grad, keys, order, first, sums)
    assert (first_buffer == -7).sum() == 2 * MARGIN
    assert first.tolist() == [(keys < id).sum() for id in range(vocab_size + 1)]
    embedding.launch_weight_backward(grad, order, first, sums, SCALE, outputs(vocab_size, width))
    # of chunks with unlike keys nothing is written
    sums[[not (part == part[0]).all() for part in keys.split(embedding.CHUNK)][: len(sums)]] = 0
    outputs.check()


def fenced_order(keys):
    """(sorted keys, their rows), each between numbers that would lead out of every buffer."""
    fenced_values = []
    for values in torch.sort(keys, stable=True):
        whole = torch.full((len(values) + 2 * MARGIN,), torch.iinfo(values.dtype).max)
        whole = whole.to(values.dtype)
        whole[MARGIN:-MARGIN] = values
        fenced_values.append(whole[MARGIN:-MARGIN])
    return fenced_values


# ---- Against float64


def check_embedding(tokens, vocab_size, width, dtype, kernels, positions=None):
    """The product and the sum of a row err by a unit each (torch rounds the product); a gradient,
    by a unit of each term that is added."""
    weight = random(vocab_size, width, dtype=dtype).requires_grad_()
    if positions is None:
        positions = random(tokens.shape[1], width, seed=1, dtype=dtype).requires_grad_()
    grad = strided(random(tokens.numel(), width, seed=2, dtype=dtype))
    grad = grad.unflatten(0, tokens.shape)
    result = embed(tokens, weight, positions, SCALE, kernels)
    assert result.dtype == dtype and result.shape == grad.shape
    gradients = torch.autograd.grad(result, (weight, positions), grad)
    expected = numpy_embedding(tokens, weight, positions, grad)
    sizes = numpy_embedding(tokens, weight.abs(), positions.abs(), grad.abs())
    unit = UNIT[dtype] if kernels == "torch" else 2.0**-24
    close(result, expected[0], 2 * unit * sizes[0])
    frequent = max(2, tokens.flatten().bincount().max().item())
    close(gradients[0], expected[1], frequent * unit * sizes[1])
    close(gradients[1], expected[2], max(2, len(tokens)) * unit * sizes[2])


@both
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("width", WIDTHS)
def test_embedding(width, dtype, kernels, short_chunks):
    # an id in a run over several chunks, ids within one, ids without a token at both ends
    tokens = torch.tensor([[3, 1, 3, 3, 5], [3, 3, 5, 3, 4], [3, 3, 3, 1, 3]])
    check_embedding(tokens, 8, width, dtype, kernels)


@only_triton
@pytest.mark.parametrize("sequences, length", [(1, 1), (7, 1), (1, 13), (5, 8)])
def test_embedding_of_any_batch(sequences, length, kernels, short_chunks):
    drawn = torch.Generator().manual_seed(3)
    tokens = torch.randint(6, (sequences, length + 1), generator=drawn)[:, :-1]
    table = random(length + 9, 12, seed=4)
    # a table of more rows than there are positions
    positions = table[3 : 3 + length].requires_grad_()
    check_embedding(tokens, 6, 12, torch.float32, kernels, positions)
    check_embedding(tokens.t().contiguous().t(), 6, 12, torch.float32, kernels, positions)
    check_embedding(tokens * 0 + 5, 6, 12, torch.float32, kernels, positions)


@only_triton
def test_embedding_with_long_chunks(kernels):
    """As a run has them: one frequent id, of 70 tokens, among 100."""
    tokens = torch.arange(100).clamp(max=30).view(4, 25)
    check_embedding(tokens, 40, 9, torch.float32, kernels)


@only_triton
@pytest.mark.parametrize("vocab_size", [32767, 32768])
def test_the_last_id_of_a_large_vocabulary(vocab_size, kernels, monkeypatch):
    """Keys of 16 bits and of 32."""
    arguments = []
    monkeypatch.setattr(embedding, "IDS", 8192)
    monkeypatch.setattr(embedding, "launch_weight_backward", lambda *args: arguments.extend(args))
    weight = random(vocab_size, 1).requires_grad_()
    tokens = torch.tensor([[vocab_size - 1, vocab_size, vocab_size - 1]])
    result = embed(tokens, weight, torch.zeros(3, 1), SCALE, kernels)
    assert result.isnan().flatten().tolist() == [False, True, False]
    result.sum().backward()
    _, order, first, *_ = arguments
    assert order.tolist() == [0, 2, 1]
    assert first[-3:].tolist() == [0, 0, 2]


@only_triton
@pytest.mark.parametrize("wrong", [-1, 4, 2**16, 2**31 + 1, -(2**40)])
def test_tokens_outside_the_vocabulary(wrong, kernels):
    """Theirs are rows of NaN, and no id's gradient, not even of an id with the same last bits."""
    weight = random(4, 5).requires_grad_()
    positions = random(3, 5, seed=1).requires_grad_()
    result = embed(torch.tensor([[1, wrong, 1]]), weight, positions, SCALE, kernels)
    assert result.isnan().all(2).tolist() == [[False, True, False]]
    assert not result[0, ::2].isnan().any()
    result.backward(torch.ones_like(result))
    assert weight.grad.tolist() == [[0] * 5, [2 * SCALE] * 5, [0] * 5, [0] * 5]
    assert (positions.grad == 1).all()


@only_triton
@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (3, 0)])
def test_no_tokens(shape, kernels):
    weight = random(4, 5).requires_grad_()
    positions = random(shape[1], 5, seed=1).requires_grad_()
    result = embed(torch.zeros(shape, dtype=torch.int64), weight, positions, SCALE, kernels)
    assert result.shape == (*shape, 5)
    result.sum().backward()
    assert (weight.grad == 0).all() and (positions.grad == 0).all()


@both
@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_needed(needs, kernels, monkeypatch):
    names = ["launch_runs", "launch_weight_backward", "launch_positions_backward"]
    started = []
    for name in names:
        right = getattr(embedding, name)
        monkeypatch.setattr(
            embedding, name, lambda *args, n=name, r=right: (started.append(n), r(*args))
        )
    leaves = [random(n, 5, seed=n).requires_grad_(need) for n, need in zip((4, 3), needs)]
    result = embed(torch.tensor([[1, 3, 1]]), *leaves, SCALE, kernels)
    assert result.requires_grad == any(needs)
    if result.requires_grad:
        result.sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == list(needs)
    if kernels == "triton":
        assert started == names[:2] * needs[0] + names[2:] * needs[1]


@both
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_beyond_the_dtype(dtype, kernels):
    """Infinite where torch's are; a NaN stays in its row."""
    top = torch.finfo(dtype).max
    weight = torch.tensor([[top, 1.0], [float("nan"), 1.0]], dtype=dtype).requires_grad_()
    positions = torch.zeros(3, 2, dtype=dtype)
    result = embed(torch.tensor([[0, 1, 0]]), weight, positions, SCALE, kernels)
    assert result[0, 0].tolist() == [float("inf"), SCALE]
    assert result[0, 1].isnan().tolist() == [True, False]
    grad = torch.tensor([[[top, 1], [float("nan"), 1], [top, -1]]], dtype=dtype)
    result.backward(grad)
    assert weight.grad[0].tolist() == [float("inf"), 0]
    assert weight.grad[1].isnan().tolist() == [True, False]


# ---- What torch asks of an operation


@only_triton
def test_embedding_agrees_with_finite_differences(kernels, short_chunks):
    tokens = torch.tensor([[1, 2, 1, 1], [1, 1, 1, 0]])
    leaves = [random(n, 3, seed=n, dtype=torch.float64).requires_grad_() for n in (4, 4)]
    assert torch.autograd.gradcheck(
        lambda *args: embed(tokens, *args, SCALE, kernels), leaves, fast_mode=True
    )


@only_triton
def test_embedding_is_registered_soundly(kernels):
    tokens = torch.tensor([[1, 3, 1], [0, 1, 2]])
    weight, positions = (random(n, 5, seed=n).requires_grad_() for n in (4, 3))
    grad = random(6, 5).view(2, 3, 5)
    keys = tokens.flatten().short()
    torch.library.opcheck(torch.ops.gpt.embed.default, (tokens, weight, positions, SCALE))
    # operations that have no gradient
    for name, *args in [
        ("embed_backward_weight", grad, keys, 4, SCALE),
        ("embed_backward_positions", grad),
    ]:
        operation = getattr(torch.ops.gpt, name).default
        torch.library.opcheck(operation, tuple(args), test_utils=("test_schema", "test_faketensor"))


# ---- The trial before a run


@pytest.fixture
def only_its_trial(monkeypatch):
    monkeypatch.setattr(trial, "_TRIALS", {"embedding": trial._TRIALS["embedding"]})


# launcher, place of the result that is spoilt among its arguments, what the trial says
WRONG = [
    ("launch_forward", 4, "result"),
    ("launch_positions_backward", 1, "gradient of the positions"),
    ("launch_runs", 4, "gradient of the weight"),
    ("launch_weight_backward", 5, "gradient of the weight"),
]


@only_triton
@pytest.mark.parametrize("spoil", [spoil_one, lambda tensor: tensor.zero_()])
@pytest.mark.parametrize("launcher, place, quantity", WRONG)
def test_wrong_embeddings_are_found(
    launcher, place, quantity, spoil, kernels, only_its_trial, monkeypatch
):
    right = getattr(embedding, launcher)

    def wrong(*args):
        right(*args)
        spoil(args[place])

    monkeypatch.setattr(embedding, launcher, wrong)
    with pytest.raises(UserError, match=f"Triton's embedding kernels give a wrong {quantity} here"):
        choose("triton", CPU, MODEL, torch.float16)


@only_triton
def test_rows_of_ids_without_a_token_are_tried(kernels, only_its_trial, monkeypatch):
    right = embedding.launch_weight_backward

    def wrong(*args):
        right(*args)
        args[5][-2] = 1

    monkeypatch.setattr(embedding, "launch_weight_backward", wrong)
    with pytest.raises(UserError, match="give a wrong gradient of ids without a token here"):
        choose("triton", CPU, MODEL, torch.float16)

"""The linear layer of queries, keys and values by Triton under its interpreter, against float64.

Run by tests/kernels/test_kernels.py, together with interpreted_kernels.py.
"""

import dataclasses

import numpy as np
import pytest
import torch
from dispatched import Dispatched
from fences import Outputs, strided
from interpreted_kernels import double, random
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.config.shape import ModelConfig
from gpt.errors import UserError
from gpt.kernels import gelu, heads, partial_sums, triton_shared
from gpt.kernels.choice import choose
from gpt.kernels.heads import linear_heads, pack_heads
from gpt.model import GPT

pytestmark = [
    pytest.mark.usefixtures("one_thread", "short_walks"),
    pytest.mark.skipif(not triton_shared.interpreted(), reason="triton is not installed"),
]
MODEL = ModelConfig(
    n_layers=2, h_dim=24, mlp_dim=40, n_heads=2, head_dim=8, vocab_size=37, seq_len=6
)


@pytest.fixture
def short_walks(monkeypatch):
    """Ten rows to a program: a tile of eight, and two rows of another."""
    monkeypatch.setattr(triton_shared, "ROWS_PER_PROGRAM", 10)


# (B, H, T, D) in memory, by what lays the gradients out so
LAYOUTS = {
    "flash": lambda grad: grad.transpose(1, 2).contiguous().transpose(1, 2),
    "math": lambda grad: grad.contiguous(),
    "last dimension not contiguous": lambda grad: grad.mT.contiguous().mT,
    "same number everywhere": lambda grad: grad[:1, :1, :1, :1].expand(grad.shape),
    "a third of a row": lambda grad: (
        torch.cat([grad.transpose(1, 2)] * 3, 2).split(grad.shape[1], 2)[1].transpose(1, 2)
    ),
}
# batch, n_heads, length, head_dim
SHAPES = [(1, 1, 1, 1), (2, 3, 7, 80), (3, 2, 4, 1), (1, 1, 2, 256)]


@pytest.mark.parametrize("batch, n_heads, length, head_dim", SHAPES)
def test_heads_stay_in_their_buffers(batch, n_heads, length, head_dim):
    rows, width = batch * length, n_heads * head_dim
    grads = [
        strided(random(rows, width, seed=s), gap=9 + s).unflatten(1, (n_heads, head_dim))
        for s in range(3)
    ]
    programs, per_program = triton_shared.share_rows(rows, 1, torch.device("cpu"))
    outputs = Outputs()
    packed, partial = outputs(rows, 3 * width), outputs(programs, 3 * width)
    heads.launch(grads, packed, partial, per_program)
    outputs.check()
    assert torch.equal(packed, torch.cat([grad.flatten(1) for grad in grads], 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_packed_and_summed(layout, dtype=torch.float16):
    for batch, n_heads, length, head_dim in SHAPES:
        grads = [
            LAYOUTS[layout](random(batch, n_heads, length, head_dim, seed=s, dtype=dtype))
            for s in range(3)
        ]
        if layout == "flash":
            assert heads._heads_as_rows(grads[0]).data_ptr() == grads[0].data_ptr()  # not copied
        packed, sums = pack_heads(*grads)
        columns = np.concatenate(
            [double(grad).transpose(0, 2, 1, 3).reshape(batch * length, -1) for grad in grads], 1
        )
        assert packed.shape == (batch, length, 3 * n_heads * head_dim)
        assert np.array_equal(double(packed).reshape(columns.shape), columns)
        assert sums.dtype == packed.dtype == dtype
        # each term's rounding in fp32, and the last one to the dtype
        bound = batch * length * 2.0**-24 * np.abs(columns).sum(0)
        bound += torch.finfo(dtype).eps / 2 * np.abs(columns.sum(0))
        assert (np.abs(double(sums) - columns.sum(0)) <= bound).all()


@pytest.mark.parametrize("batch, n_heads, length, head_dim", SHAPES)
def test_linear_heads(batch, n_heads, length, head_dim):
    width = n_heads * head_dim
    x, weight, bias = random(batch, length, 7), random(3 * width, 7, seed=1), random(3 * width)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    results = linear_heads(*leaves, n_heads, "triton")
    grads = [random(batch, n_heads, length, head_dim, seed=s) for s in (4, 5, 6)]
    gradients = torch.autograd.grad(results, leaves, grads)
    rows, weight, bias = double(x).reshape(-1, 7), double(weight), double(bias)
    upstream = []
    for part, (result, grad) in enumerate(zip(results, grads)):
        own = slice(part * width, (part + 1) * width)
        exact = (rows @ weight[own].T + bias[own]).reshape(batch, length, n_heads, head_dim)
        np.testing.assert_allclose(double(result), exact.transpose(0, 2, 1, 3), atol=1e-5)
        upstream.append(double(grad).transpose(0, 2, 1, 3).reshape(batch * length, width))
    upstream = np.concatenate(upstream, 1)
    exact = (upstream @ weight).reshape(x.shape), upstream.T @ rows, upstream.sum(0)
    for gradient, true in zip(gradients, exact):
        np.testing.assert_allclose(double(gradient), true, rtol=1e-5, atol=1e-4)


def test_linear_heads_used_in_part():
    """Of a bias, an input or a weight alone, of two heads' outputs, and of no rows."""
    x, weight, bias = random(2, 3, 4), random(12, 4, seed=1), random(12, seed=2)
    for which in range(3):
        leaves = [x.clone(), weight.clone(), bias.clone()]
        leaves[which].requires_grad_()
        q, k, _ = linear_heads(*leaves, 2, "triton")
        (mine,) = torch.autograd.grad(q.sum() + k.square().sum(), leaves[which])
        q, k, _ = linear_heads(*leaves, 2, "torch")
        (other,) = torch.autograd.grad(q.sum() + k.square().sum(), leaves[which])
        torch.testing.assert_close(mine, other)
    with torch.no_grad():
        q, _, v = linear_heads(x, weight, bias, 2, "triton")
    assert not q.requires_grad and q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    q, _, _ = linear_heads(x[:0].requires_grad_(), weight, bias.requires_grad_(), 2, "triton")
    q.sum().backward()
    assert q.shape == (0, 2, 3, 2) and torch.equal(bias.grad, torch.zeros(12))


def test_gradients_agree_with_finite_differences():
    shapes = [(1, 3, 2), (6, 2), (6,)]
    inputs = [random(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *args: linear_heads(*args, 2, "triton"), inputs)


def test_operation_is_registered_soundly():
    grads = [random(2, 3, 4, 5, seed=s) for s in range(3)]
    torch.library.opcheck(torch.ops.gpt.pack_heads.default, tuple(grads))


# ---- In a model


@pytest.mark.parametrize("checkpointing, backend", [(False, "FLASH_ATTENTION"), (True, "MATH")])
def test_two_launches_and_two_products_give_a_layers_gradients(checkpointing, backend, monkeypatch):
    """Beside the packing, the finishing and two GEMMs nothing handles the gradient of qkv: no cat,
    no stack. Both of attention's layouts, with recomputation and without."""
    launches = []
    for module in (heads, gelu, partial_sums):
        for name in ("launch", "launch_backward"):
            right = getattr(module, name, None)
            if right is not None:
                label = module.__name__.rpartition(".")[2]
                monkeypatch.setattr(
                    module, name, lambda *a, r=right, n=label: (launches.append(n), r(*a))
                )
    tokens = torch.randint(37, (2, 7), generator=torch.Generator().manual_seed(1))
    gradients = []
    for kernels in ("torch", "triton"):
        model = GPT(MODEL, 3, activation_checkpointing=checkpointing, kernels=kernels)
        for parameter in model.parameters():
            parameter.data += 0.1 * random(*parameter.shape)
        launches.clear()
        with sdpa_kernel(getattr(SDPBackend, backend)):
            loss = model(tokens[:, :-1], tokens[:, 1:])
            with Dispatched() as backward:
                loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for mine, other in zip(*gradients):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert backward.names["pack_heads"] == launches.count("heads") == MODEL.n_layers
    assert launches.count("gelu") == MODEL.n_layers
    assert not any(backward.names[name] for name in ("cat", "stack"))


@pytest.mark.parametrize(
    "n_heads, head_dim, dtype",
    [(1, 1, torch.float32), (2, 3, torch.float16), (5, 80, torch.bfloat16)],
)
def test_right_kernels_pass_the_trial(n_heads, head_dim, dtype):
    model = dataclasses.replace(MODEL, n_heads=n_heads, head_dim=head_dim)
    assert choose("triton", torch.device("cpu"), model, dtype)[0] == "triton"


@pytest.mark.parametrize("place, words", [(1, "gradient"), (2, "gradient of the bias")])
def test_a_wrong_kernel_is_found(place, words, monkeypatch):
    right = heads.launch

    def wrong(*args):
        right(*args)
        args[place][0, -1] += 0.1 + 0.1 * args[place][0, -1].abs()

    monkeypatch.setattr(heads, "launch", wrong)
    with pytest.raises(UserError, match=f"Triton's QKV kernels give a wrong {words} here"):
        choose("triton", torch.device("cpu"), MODEL, torch.float16)

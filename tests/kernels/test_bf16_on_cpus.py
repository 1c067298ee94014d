"""Training in bf16 on a CPU: what it rounds, which products it takes, and what a person is told."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dispatched import Dispatched

from gpt.compute.dry_run import report
from gpt.config.resolve import resolve
from gpt.config.shape import ModelConfig
from gpt.kernels import cross_entropy, linear_cross_entropy, processor
from gpt.kernels import linear as linear_module
from gpt.kernels.attention import causal_attention, split_heads
from gpt.kernels.linear import linear
from gpt.metrics.terminal import announcement
from gpt.model import GPT

ROUNDING = 2.0**-8  # the most that bf16 errs, relative to a number
MODEL = ModelConfig(
    n_layers=2, h_dim=32, mlp_dim=128, n_heads=2, head_dim=16, vocab_size=97, seq_len=150
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Call it with the flags of the processor that Linux shall tell of, or with None for a system
    that tells of none."""

    def tell(flags):
        facts = tmp_path / "cpuinfo"
        if flags is not None:
            facts.write_text(f"model name\t: A CPU\nflags\t\t: fpu {flags}\nmodel name\t: B\n")
        monkeypatch.setattr(processor, "CPU_FACTS", str(facts))
        processor.has_fast_bf16.cache_clear()

    yield tell
    monkeypatch.undo()
    processor.has_fast_bf16.cache_clear()


FAST = "avx512f avx512_bf16 rdpid"
SLOW = "avx512f avx512_vnni"
PAYS = (
    "this CPU has instructions for bf16, in which a model trains up to 1.8 times as fast as in fp32"
    " (--fp16.enabled false --bf16.enabled true)"
)
COSTS = (
    "of this CPU no instructions for bf16 are known (AVX512-BF16, AMX), without which a model"
    " trains up to 2.4 times as fast in fp32 (--bf16.enabled false)"
)


def run_in(precision):
    return resolve(
        {
            "train_batch_size": 2,
            "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
            "gpt": {"preset": "nano", "vocab_size": 97, "data_root": "data", "max_train_steps": 1},
            **({precision: {"enabled": True}} if precision != "fp32" else {}),
        },
        "tiny",
    )


@pytest.mark.parametrize(
    "flags, precision, sentence",
    [
        (FAST, "fp32", PAYS),
        (FAST, "bf16", None),
        (SLOW, "fp32", None),
        (SLOW, "bf16", COSTS),
        (None, "fp32", None),
        (None, "bf16", COSTS),
    ],
)
def test_the_first_line_and_a_dry_run_say_what_bf16_does_here(cpu, flags, precision, sentence):
    cpu(flags)
    config = run_in(precision)
    first_line = announcement(config, 7, "cpu", "data", ("torch", "a test"), "flash")
    assert first_line.endswith(f"; {sentence}" if sentence else "compile: none")
    lines = [line for line in report(config, None).splitlines() if line.startswith("on a CPU")]
    assert lines == ([f"on a CPU       {sentence}"] if sentence else [])
    on_gpu = announcement(config, 7, "cuda", "data", ("torch", "a test"), "flash")
    assert on_gpu.endswith("compile: none")


def test_a_dry_run_in_fp16_says_what_a_cpu_can_take_for_it(cpu):
    cpu(FAST)
    assert f"on a CPU       {PAYS}" in report(run_in("fp16"), None)


def values(*shape, seed=0, scale=1.0):
    numbers = np.random.default_rng(seed).standard_normal(shape) * scale
    return torch.from_numpy(numbers).bfloat16()


def error(result, exact):
    assert result.dtype == torch.bfloat16 and result.shape == exact.shape
    return ((result.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("length", [1, 7, 131, 300])
def test_attention_rounds_its_results_alone(length):
    """Once: the root mean square of such errors is 0.41 of the largest."""
    qkv = values(2, length, 3 * 3 * 16, scale=1.5).requires_grad_()
    grad = values(2, length, 3 * 16, seed=1)
    result = causal_attention(*split_heads(qkv, 3))
    (gradient,) = torch.autograd.grad(result, qkv, grad)
    exact_qkv = qkv.detach().double().requires_grad_()
    q, k, v = split_heads(exact_qkv, 3)
    scores = (q @ k.transpose(2, 3) / 4).masked_fill(
        torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf")
    )
    exact = (scores.softmax(3) @ v).transpose(1, 2).flatten(2)
    (exact_gradient,) = torch.autograd.grad(exact, exact_qkv, grad.double())
    assert error(result, exact) < ROUNDING / 2
    assert error(gradient, exact_gradient) < ROUNDING / 2


@pytest.mark.parametrize("rows, inner, width", [(0, 8, 8), (1, 7, 5), (130, 100, 257)])
@pytest.mark.parametrize("flags", [FAST, SLOW])
def test_a_linear_layer_is_rounded_once(cpu, flags, rows, inner, width):
    cpu(flags)
    leaves = [values(rows, inner), values(width, inner, seed=1), values(width, seed=2)]
    grad = values(rows, width, seed=3)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    result = linear(*leaves)
    gradients = torch.autograd.grad(result, leaves, grad)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = F.linear(*exact_leaves)
    exact_gradients = torch.autograd.grad(exact, exact_leaves, grad.double())
    for value, reference in zip((result, *gradients), (exact, *exact_gradients)):
        assert value.dtype == torch.bfloat16
        # once, plus the order of fp32 sums
        torch.testing.assert_close(value.double(), reference, rtol=1.01 * ROUNDING, atol=1e-4)


@pytest.mark.parametrize("block", [1, 3 * 53, 1 << 19])
def test_a_cpu_goes_through_16_bit_logits_by_blocks(monkeypatch, block):
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK", block)
    logits = values(45, 53, scale=4.0)
    targets = torch.arange(45)
    targets[7] = cross_entropy.IGNORE_INDEX
    exact = logits.double().requires_grad_()
    nats = F.cross_entropy(exact, targets, reduction="none")
    (gradient,) = torch.autograd.grad(nats.sum(), exact)
    kept = logits.clone()
    for want_gradient in (False, True):
        result = cross_entropy.softmax_gradient_(logits, targets, 8.0, want_gradient)
        torch.testing.assert_close(result.double(), nats.detach(), rtol=1e-6, atol=1e-6)
        if not want_gradient:
            assert torch.equal(logits, kept)
    torch.testing.assert_close(logits.double(), 8 * gradient, rtol=1.01 * ROUNDING, atol=1e-6)


@pytest.mark.parametrize("rows_of_chunk", [1, 7, 45])
def test_chunks_of_the_head_are_summed_in_fp32(monkeypatch, rows_of_chunk):
    """All rows have one target: summed up in bf16, its gradient would lag far behind."""
    monkeypatch.setitem(linear_cross_entropy.CHUNK_ELEMENTS, "cpu in bf16", rows_of_chunk * 53)
    hidden = (values(450, 16) + 1).requires_grad_()
    weight = values(53, 16, seed=1).requires_grad_()
    targets = torch.zeros(450, dtype=torch.int64)
    loss = linear_cross_entropy.linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    exact = F.cross_entropy(exact_leaves[0] @ exact_leaves[1].t(), targets)
    exact_gradients = torch.autograd.grad(exact, exact_leaves)
    assert loss.item() == pytest.approx(exact.item(), rel=ROUNDING)
    for gradient, reference in zip(gradients, exact_gradients):
        # logits, their gradients, a product and its scaled value are rounded
        assert error(gradient, reference) < 2 * ROUNDING


def losses(dtype, steps=30):
    """Of a GPT whose weights are kept in fp32, of which each step's are rounded."""
    model = GPT(MODEL).to(dtype)
    masters = [parameter.detach().float() for parameter in GPT(MODEL).parameters()]
    optimizer = torch.optim.Adam(masters, lr=3e-3)
    tokens = torch.randint(97, (2, 151), generator=torch.Generator().manual_seed(0))
    results = []
    for _ in range(steps):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters()):
                master.grad = parameter.grad.float()
                parameter.grad = None
            optimizer.step()
            for master, parameter in zip(masters, model.parameters()):
                parameter.copy_(master)
        results.append(loss.item())
    return np.array(results)


def test_losses_are_near_those_in_fp32():
    """They fall from ln(97) by memorising, and each stays within a rounding of a number of its
    size."""
    narrow = losses(torch.bfloat16)
    wide = losses(torch.float32)
    assert wide[-1] < wide[0] - 1
    assert abs(narrow - wide).max() < ROUNDING * wide[0]


@pytest.mark.parametrize("flags, by_onednn", [(FAST, 1), (SLOW, 0)])
def test_which_operations_bf16_takes(cpu, flags, by_onednn):
    """Biases ride on oneDNN's products; attention runs in fp32, of q, k and v as they were
    rounded; the head adds up no chunks."""
    if not linear_module.by_onednn(torch.empty(1)):
        pytest.skip("this torch takes no oneDNN")
    cpu(flags)
    model = GPT(MODEL).bfloat16()
    tokens = torch.zeros(1, 151, dtype=torch.int64)
    with Dispatched() as ran:
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    layers = 4 * MODEL.n_layers
    assert ran.names["_linear_pointwise"] == layers * by_onednn
    assert ran.names["addmm"] == layers * (1 - by_onednn)
    assert ran.names["mm"] == 2 * layers + 3
    # of the loss alone
    assert ran.names["div"] + ran.names["abs"] <= 2

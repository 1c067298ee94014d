import dataclasses
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dispatched import Dispatched
from float64_references import numpy_cross_entropy

from gpt.config.shape import ModelConfig, load_presets
from gpt.kernels import heads
from gpt.kernels import linear_cross_entropy as kernel
from gpt.model import GPT
from tools.benchmarks.plain_gpt import PlainGPT

MODEL_PY = Path(__file__).resolve().parents[1] / "gpt" / "model.py"
PUBLISHED_MILLIONS = {
    "mini": 27.5,
    "tiny": 53.9,
    "small": 110.6,
    "medium": 336.4,
    "large": 731.1,
    "XL": 1478.2,
}
SHAPES = [
    ModelConfig(n_layers=1, h_dim=8, mlp_dim=32, n_heads=2, head_dim=4, vocab_size=29, seq_len=12),
    ModelConfig(n_layers=3, h_dim=12, mlp_dim=20, n_heads=3, head_dim=2, vocab_size=61, seq_len=9),
    ModelConfig(n_layers=2, h_dim=10, mlp_dim=16, n_heads=4, head_dim=8, vocab_size=40, seq_len=16),
]
SMALL = SHAPES[1]


pytestmark = pytest.mark.usefixtures("one_thread")


def varied(config, dtype=torch.float64, seed=1):
    """A model whose every parameter matters: at initialisation biases are zero and attention is
    nearly uniform."""
    model = GPT(config, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def random_batch(config, rows=3, length=None, seed=2):
    """(tokens, targets)"""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(
        config.vocab_size, (rows, (length or config.seq_len) + 1), generator=generator
    )
    return ids[:, :-1], ids[:, 1:]


def numpy_logits(state, config, tokens):
    """The forward pass in float64, one sequence and one head at a time."""
    state = {name: value.double().numpy() for name, value in state.items()}

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(x, name):
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(x, name):
        q, k, v = np.split(linear(x, f"{name}.qkv"), 3, axis=1)
        future = np.triu(np.ones((len(x), len(x)), bool), 1)
        heads = []
        for h in range(config.n_heads):
            own = slice(h * config.head_dim, (h + 1) * config.head_dim)
            weights = np.exp(
                np.where(future, -np.inf, q[:, own] @ k[:, own].T / math.sqrt(config.head_dim))
            )
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, own])
        return linear(np.concatenate(heads, 1), f"{name}.c_proj")

    def mlp(x, name):
        x = linear(x, f"{name}.c_fc")
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return linear(x, f"{name}.c_proj")

    def forward(ids):
        x = state["token_embedding.weight"][ids] * math.sqrt(config.h_dim)
        x = x + state["position_embedding.weight"][: len(ids)]
        for block in (f"blocks.{i}" for i in range(config.n_layers)):
            x = x + attention(layer_norm(x, f"{block}.ln1"), f"{block}.attn")
            x = x + mlp(layer_norm(x, f"{block}.ln2"), f"{block}.mlp")
        return layer_norm(x, "ln_f") @ state["head.weight"].T

    return np.stack([forward(ids) for ids in tokens.numpy()])


def test_sizes():
    presets = {
        name: ModelConfig(**shape, vocab_size=16384, seq_len=512)
        for name, shape in load_presets().items()
    }
    assert {
        name: round(presets[name].parameters() / 1e6, 1) for name in PUBLISHED_MILLIONS
    } == PUBLISHED_MILLIONS
    for config in [*presets.values(), *SHAPES]:
        with torch.device("meta"):
            model = GPT(config, seed=None)
        assert sum(p.numel() for p in model.parameters()) == config.parameters()


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_forward_agrees_with_numpy(config, dtype, tolerance):
    model = varied(config, dtype)
    for length in (config.seq_len, 1, 5):
        tokens, targets = random_batch(config, length=length)
        logits = numpy_logits(model.state_dict(), config, tokens)
        assert np.abs(model(tokens).detach().numpy() - logits).max() < tolerance * max(
            1, np.abs(logits).max()
        )
        loss, _ = numpy_cross_entropy(logits.reshape(-1, config.vocab_size), targets.flatten())
        assert model(tokens, targets).item() == pytest.approx(loss, rel=tolerance)


def test_gradients_of_all_parameters_agree_with_finite_differences():
    config = ModelConfig(
        n_layers=2, h_dim=4, mlp_dim=5, n_heads=2, head_dim=3, vocab_size=7, seq_len=4
    )
    model, (tokens, targets) = varied(config), random_batch(config, rows=2)
    names = [name for name, _ in model.named_parameters()]

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(names, values)), (tokens, targets))

    values = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(loss, values)


def test_scored_positions_only(monkeypatch):
    config = SMALL
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", 2 * config.vocab_size)
    model, (tokens, targets) = varied(config), random_batch(config, rows=4)
    scored = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(4)) < 0.4
    with torch.no_grad():
        logits = model(tokens)[scored]
    seen = []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    scores = model(tokens, targets, scored)
    ids = targets[scored]
    assert seen == [scored.sum()] and 0 < seen[0] < tokens.numel()
    nats = -logits.log_softmax(1)[range(len(ids)), ids]
    torch.testing.assert_close(scores.nats, nats, rtol=1e-12, atol=1e-12)
    ranks = [
        sorted(range(config.vocab_size), key=lambda i: -row[i]).index(t)
        for row, t in zip(logits, ids)
    ]
    assert scores.rank.tolist() == ranks and len(set(ranks)) > 5


def test_later_tokens_change_no_earlier_logit():
    config = SMALL
    model, (tokens, _) = varied(config), random_batch(config)
    before = model(tokens)
    for changed, one_hot in enumerate(torch.eye(config.seq_len, dtype=torch.int64)):
        other = (tokens + one_hot) % config.vocab_size
        after = model(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert (after[:, changed:] != before[:, changed:]).any(2).all()


def test_seed_decides_the_weights():
    first = GPT(SMALL, seed=5)
    again = GPT(SMALL, seed=5)
    other = GPT(SMALL, seed=6)
    drawn = [
        name for name, p in first.named_parameters() if name.endswith("weight") and p.dim() == 2
    ]
    assert len(drawn) == 3 + 4 * SMALL.n_layers
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, other.state_dict()[name]) == (name not in drawn)


def test_initial_values():
    config = ModelConfig(
        n_layers=8, h_dim=128, mlp_dim=192, n_heads=4, head_dim=24, vocab_size=400, seq_len=64
    )
    for name, value in GPT(config, seed=7).named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif "ln" in name:
            assert (value == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if "mlp.c_proj" in name else 0.02
            for part in value.chunk(3) if "qkv" in name else [value]:
                # five standard errors of a mean and of a standard deviation
                assert abs(part.mean().item()) < 5 * std / math.sqrt(part.numel()), name
                assert part.std().item() == pytest.approx(
                    std, rel=5 / math.sqrt(2 * part.numel())
                ), name


def test_attention_reads_q_k_v_where_their_gemm_wrote_them(monkeypatch):
    model = GPT(SMALL)
    inputs = []
    attend = F.scaled_dot_product_attention

    def spy(q, k, v, **options):
        inputs.append((q, k, v))
        return attend(q, k, v, **options)

    monkeypatch.setattr("gpt.kernels.attention.F.scaled_dot_product_attention", spy)
    model(random_batch(SMALL)[0])
    assert len(inputs) == SMALL.n_layers
    for qkv in inputs:
        (product,) = {tensor.untyped_storage().data_ptr(): tensor for tensor in qkv}.values()
        assert product.untyped_storage().nbytes() == sum(tensor.nbytes for tensor in qkv)


def heads_stacked(qkv, n_heads):
    """What `split_heads` does, as one view of five dimensions, whose gradient is stacked and then
    copied once more."""
    batch, length, width = qkv.shape
    return (
        qkv.view(batch, length, 3, n_heads, width // (3 * n_heads)).permute(2, 0, 3, 1, 4).unbind(0)
    )


# beyond 128 tokens CPUs take the queries in blocks
@pytest.mark.parametrize("length", [9, 300])
def test_gradients_of_q_k_v_are_joined_by_one_copy(monkeypatch, length):
    config = dataclasses.replace(SMALL, seq_len=length)
    tokens, _ = random_batch(config, rows=2)
    by_split = {}
    for split in (heads.split_heads, heads_stacked):
        monkeypatch.setattr(heads, "split_heads", split)
        model = varied(config, torch.float32)
        logits = model(tokens)
        with Dispatched() as backward:
            logits.square().mean().backward()
        by_split[split] = (
            [
                logits.detach(),
                *(parameter.grad for parameter in model.parameters()),
            ],
            backward.names,
        )
    (mine, names), (other, other_names) = by_split.values()
    assert all(map(torch.equal, mine, other))
    assert names["cat"] == config.n_layers and names["stack"] == names["clone"] == 0
    assert other_names["stack"] == other_names["clone"] == config.n_layers


@pytest.mark.parametrize("config", SHAPES)
def test_the_plain_model_of_the_bench_is_the_same_model(config):
    model, (tokens, targets) = varied(config), random_batch(config)
    plain = PlainGPT(model)
    mine, other = model(tokens, targets), plain(tokens, targets)
    assert mine.item() == pytest.approx(other.item(), rel=1e-12)
    mine.backward(), other.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, plain.weights[name.replace(".", "/")].grad, rtol=1e-9, atol=1e-12
        )


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_blocks_are_the_same_model(checkpointing):
    config = ModelConfig(
        n_layers=3, h_dim=32, mlp_dim=64, n_heads=2, head_dim=8, vocab_size=100, seq_len=32
    )
    plain, compiled = (GPT(config, 0, checkpointing, compile=how) for how in ("none", "default"))
    tokens, targets = random_batch(config)
    losses = [model(tokens, targets) for model in (plain, compiled)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    for mine, other in zip(plain.parameters(), compiled.parameters()):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-7)
    with torch.no_grad():  # an evaluation is not compiled, so it is the same to the last bit
        assert torch.equal(plain(tokens), compiled(tokens))


def test_command(run_command, tmp_path):
    done = run_command([sys.executable, MODEL_PY, "nano"], cwd=tmp_path)
    config = ModelConfig(**load_presets()["nano"], vocab_size=16384, seq_len=512)
    assert done.returncode == 0 and f"{config.parameters():,}" in done.stdout
    done = run_command([sys.executable, MODEL_PY, "gigantic"], cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    assert all(name in done.stderr for name in ["nano", *PUBLISHED_MILLIONS])

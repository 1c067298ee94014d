"""gpt/variants/modern.py: without options the GPT to the last bit; each option against NumPy in
float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from variants import EVERY_OPTION, OPTIONS, SHAPE, architecture, batch, first_values, trainable

from gpt.architecture.own_module import Shape
from gpt.config.shape import load_presets
from gpt.errors import UserError
from gpt.variants import modern

pytestmark = pytest.mark.usefixtures("one_thread")

# longer than the queries that one call of attention takes on a CPU
LONG = dataclasses.replace(SHAPE, seq_len=150)


def named(options):
    return "all" if len(options) > 1 else ", ".join(f"{k} {v}" for k, v in options.items()) or "off"


each_option = pytest.mark.parametrize("options", OPTIONS, ids=named)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_options_it_is_the_gpt_to_the_last_bit(dtype):
    models = trainable("modern", dtype, LONG), trainable(None, dtype, LONG)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=3e-3) for model in models]
    names = [list(dict(model.named_parameters())) for model in models]
    assert names[0] == [f"body.{name}" for name in names[1]]
    tokens, targets = batch(LONG)
    for _ in range(6):
        losses = [model(tokens, targets) for model in models]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        for ours, theirs in zip(*(model.parameters() for model in models)):
            assert torch.equal(ours, theirs)
            assert torch.equal(ours.grad, theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[0] < 4.0  # they learn: ln 61 is 4.11


# ---- an independent forward pass -----------------------------------------------------------------


def by_numpy(weights, tokens, shape, options):
    """Logits (B, T, V) in float64."""
    rows = [logits_of_row(weights, row, shape, options) for row in tokens.numpy()]
    return np.stack(rows)


def logits_of_row(w, tokens, shape, options):
    x = w["token_embedding.weight"][tokens] * shape.h_dim**0.5
    if "rope" not in options:
        x = x + w["position_embedding.weight"][: len(tokens)]
    for layer in range(shape.n_layers):
        block = f"blocks.{layer}."
        x = x + attention(w, block + "attn.", norm(w, block + "ln1", x, options), shape, options)
        x = x + mlp(w, block + "mlp.", norm(w, block + "ln2", x, options), options)
    head = w["token_embedding.weight" if "tied" in options else "head.weight"]
    logits = norm(w, "ln_f", x, options) @ head.T
    if "logit_cap" in options:
        logits = options["logit_cap"] * np.tanh(logits / options["logit_cap"])
    return logits


def affine(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def norm(w, name, x, options):
    if "rmsnorm" in options:
        return root_mean_square_norm(x) * w[f"{name}.weight"]
    centred = x - x.mean(-1, keepdims=True)
    return root_mean_square_norm(centred) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)


def root_mean_square_norm(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def attention(w, name, x, shape, options):
    """Head by head, position by position."""
    length, width = len(x), shape.head_dim
    if "kv_heads" in options:
        q = affine(w, name + "q", x)
        k, v = np.split(affine(w, name + "kv", x), 2, -1)
    else:
        q, k, v = np.split(affine(w, name + "qkv", x), 3, -1)
    sharing = q.shape[1] // k.shape[1]
    values = np.zeros((length, shape.n_heads * width))
    for head in range(shape.n_heads):
        own = slice(head * width, (head + 1) * width)
        shared = slice(head // sharing * width, (head // sharing + 1) * width)
        queries, keys = q[:, own], k[:, shared]
        if "qk_norm" in options:
            queries = root_mean_square_norm(queries) * w[name + "q_norm.weight"]
            keys = root_mean_square_norm(keys) * w[name + "k_norm.weight"]
        if "rope" in options:
            queries, keys = (turned(part, options["rope"]) for part in (queries, keys))
        for position in range(length):
            scores = keys[: position + 1] @ queries[position] / width**0.5
            weights = np.exp(scores - scores.max())
            values[position, own] = weights / weights.sum() @ v[: position + 1, shared]
    return affine(w, name + "c_proj", values)


def turned(x, base):
    """Pairs of channels as complex numbers, times e^(i position base^(-2 pair / width))."""
    half = x.shape[1] // 2
    angles = np.outer(np.arange(len(x)), base ** (-np.arange(half) / half))
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], 1)


def mlp(w, name, x, options):
    x = affine(w, name + "c_fc", x)
    activation = options.get("activation")
    if activation == "relu2":
        x = np.maximum(x, 0) ** 2
    elif activation == "swiglu":
        gate, up = np.split(x, 2, -1)
        x = gate / (1 + np.exp(-gate)) * up
    else:
        x = x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return affine(w, name + "c_proj", x)


@each_option
def test_logits_are_those_of_the_formulas(options):
    model = trainable("modern", torch.float64, LONG, spread=0.3, **options)
    tokens, targets = batch(LONG, rows=2)
    weights = {name: value.detach().numpy() for name, value in model.body.named_parameters()}
    expected = by_numpy(weights, tokens, LONG, options)
    logits = model(tokens)
    assert abs(logits.detach().numpy() - expected).max() < 1e-9
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert model(tokens, targets).item() == pytest.approx(loss.item(), rel=1e-9)


@each_option
def test_what_is_to_come_is_not_seen(options):
    model = trainable("modern", torch.float64, LONG, spread=0.3, **options)
    tokens, _ = batch(LONG, rows=1)
    before = model.body(tokens)
    for place in (1, 70, 149):
        changed = tokens.clone()
        changed[0, place] = (tokens[0, place] + 1) % LONG.vocab_size
        differs = (model.body(changed) - before)[0].abs().amax(-1) > 1e-12
        assert not differs[:place].any()
        assert differs[place:].all()


# ---- what each option changes --------------------------------------------------------------------

LN_BIASES = [f"blocks.{n}.ln{i}.bias" for n in range(2) for i in (1, 2)] + ["ln_f.bias"]
QKV = {f"blocks.{n}.attn.qkv.{part}": None for n in range(2) for part in ("weight", "bias")}
# {name: its shape, None where it is gone} of parameters that are not as in the GPT
CHANGES = {
    "off": {},
    "rope 500": {"position_embedding.weight": None},
    "rmsnorm True": dict.fromkeys(LN_BIASES),
    "qk_norm True": {f"blocks.{n}.attn.{x}_norm.weight": (6,) for n in range(2) for x in "qk"},
    "activation relu2": {},
    "activation swiglu": {
        f"blocks.{n}.mlp.{name}": shape
        for n in range(2)
        for name, shape in {
            "c_fc.weight": (2 * 32, 24),
            "c_fc.bias": (2 * 32,),
            "c_proj.weight": (24, 32),
        }.items()
    },
    "zero_init True": {},
    "kv_heads 2": QKV
    | {
        f"blocks.{n}.attn.{name}": shape
        for n in range(2)
        for name, shape in {
            "q.weight": (24, 24),
            "q.bias": (24,),
            "kv.weight": (2 * 12, 24),
            "kv.bias": (2 * 12,),
        }.items()
    },
    "tied True": {"head.weight": None},
    "logit_cap 30": {},
    "bias False": dict.fromkeys(
        LN_BIASES
        + [
            f"blocks.{n}.{name}.bias"
            for n in range(2)
            for name in ("attn.qkv", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ]
    ),
}


@pytest.mark.parametrize("options", OPTIONS[:-1], ids=named)
def test_an_option_changes_the_parameters_that_it_says_and_no_others(options):
    of_gpt = {
        name: tuple(value.shape) for name, value in first_values(architecture(None).build()).items()
    }
    values = first_values(architecture("modern", **options).build())
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    changed = {
        name: shapes.get(name) for name in of_gpt | shapes if of_gpt.get(name) != shapes.get(name)
    }
    assert changed == CHANGES[named(options)]


@pytest.mark.parametrize("option", ["rmsnorm", "qk_norm", "zero_init", "tied", "logit_cap"])
def test_first_values_are_the_gpts_where_an_option_is_not_about_them(option):
    of_gpt = first_values(architecture(None).build())
    values = first_values(architecture("modern", **{option: EVERY_OPTION[option]}).build())
    zeros = option == "zero_init"
    for name in of_gpt.keys() & values.keys():
        expected = of_gpt[name]
        if zeros and name.endswith("c_proj.weight"):
            expected = torch.zeros_like(expected)
        assert torch.equal(values[name], expected), name


def test_blocks_begin_as_the_identity():
    model = trainable("modern", zero_init=True)
    tokens, _ = batch()
    stream = model.body.token_embedding(tokens) * SHAPE.h_dim**0.5
    stream = stream + model.body.position_embedding.weight
    assert torch.equal(model.body(tokens), F.layer_norm(stream, [SHAPE.h_dim]))


@pytest.mark.parametrize("zero_init", [False, True])
def test_a_wide_tied_model_begins_with_a_uniform_guess_and_the_stream_of_the_gpt(zero_init):
    wide = dataclasses.replace(SHAPE, vocab_size=2000, h_dim=1024)
    tokens, targets = batch(wide)
    model = trainable("modern", shape=wide, tied=True, zero_init=zero_init)
    loss = model(tokens, targets).item()
    assert loss == pytest.approx(math.log(wide.vocab_size), abs=0.3)
    streams = []
    model.body.blocks[0].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[1]))
    model(tokens)
    of_gpt = trainable(None, shape=wide).embed(tokens)
    assert streams[0].std().item() == pytest.approx(of_gpt.std().item(), rel=0.02)


def flops(**options):
    """Of a forward pass without values."""
    model = architecture("modern", LONG, **options).build()
    tokens, _ = batch(LONG)
    with FlopCounterMode(display=False) as counter:
        model.body(tokens.to("meta"))
    return counter.get_total_flops()


def test_swiglu_has_the_flops_of_two_matrices():
    for shape in load_presets().values():
        sizes = Shape(**shape, vocab_size=100, seq_len=100)
        width = modern.hidden_width(sizes, modern.Options(activation="swiglu"))
        nearest = min(range(8, 20_000, 8), key=lambda w: abs(3 * w - 2 * sizes.mlp_dim))
        assert width == nearest
    # 48 becomes 32
    assert flops(activation="swiglu") == flops() == flops(activation="relu2") > 0
    assert flops(kv_heads=1) < flops(kv_heads=2) < flops()


@each_option
def test_matrices_of_one_parameter_are_equally_high(options):
    model = architecture("modern", **options).build()
    shapes = {name: parameter.shape for name, parameter in model.body.named_parameters()}
    expected = {}
    for name, (height, *_) in shapes.items():
        if name.endswith("qkv.weight"):
            expected[name] = 3
        elif name.endswith("kv.weight"):
            expected[name] = 2
        elif name.endswith("c_fc.weight") and options.get("activation") == "swiglu":
            expected[name] = 2
    assert model.body.fused_matrices == expected
    assert all(shapes[name][0] % parts == 0 for name, parts in expected.items())


# ---- 16-bit weights ------------------------------------------------------------------------------


def test_angles_of_far_positions_are_no_16_bit_numbers():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 64, generator=generator).to(torch.bfloat16)
    by = modern.rotation(10_000, 64, torch.arange(5000), torch.float32)
    expected = turned(x.double().numpy(), 10_000)
    error = abs(modern.rotate(x, by).double().numpy() - expected)
    assert error.max() < 2**-8 * abs(expected).max()


@pytest.mark.parametrize("options", [{"rope": 10_000}, EVERY_OPTION], ids=named)
def test_16_bit_weights_give_nearly_the_losses_of_32(options):
    far = dataclasses.replace(SHAPE, seq_len=400)
    tokens, targets = batch(far)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        options = {**options, "zero_init": False}
        losses.append(trainable("modern", dtype, far, **options)(tokens, targets).item())
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


def test_squares_that_fp16_does_not_hold():
    norm = modern.RMSNorm(64).half()
    x = 400 * torch.ones(3, 64, dtype=torch.half)
    assert torch.equal(norm(x), torch.ones_like(x))


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"rope": True}, "rope is True: give false, or a base above 1 as 10000 is"),
        ({"rope": 0}, "rope is 0: give false, or a base above 1 as 10000 is"),
        ({"rope": "10000"}, "rope is '10000': give false, or a base above 1 as 10000 is"),
        ({"rmsnorm": 1}, "rmsnorm is 1: give true or false"),
        ({"bias": None}, "bias is None: give true or false"),
        ({"activation": "silu"}, "activation is 'silu': give gelu or relu2 or swiglu"),
        ({"activation": ["gelu"]}, "activation is ['gelu']: give gelu or relu2 or swiglu"),
        ({"kv_heads": 3}, "kv_heads is 3, which does not divide n_heads 4: give one that does"),
        ({"kv_heads": 8}, "kv_heads is 8, which does not divide n_heads 4: give one that does"),
        ({"kv_heads": 2.0}, "kv_heads is 2.0: give false, or a number of heads"),
        ({"kv_heads": -1}, "kv_heads is -1: give false, or a number of heads"),
        ({"logit_cap": float("nan")}, "logit_cap is nan: give false, or a number above 0"),
        (
            {"rotary": 500},
            "rotary is no option of modern: give rope, rmsnorm, qk_norm, activation, zero_init,"
            " kv_heads, tied, logit_cap, bias",
        ),
    ],
)
def test_options_that_are_none(options, sentence):
    with pytest.raises(UserError) as error:
        architecture("modern", **options).build()
    assert str(error.value) == f"model_options.{sentence}"


def test_pairs_need_an_even_head():
    odd = dataclasses.replace(SHAPE, head_dim=5)
    with pytest.raises(UserError) as error:
        architecture("modern", odd, rope=500).build()
    assert str(error.value) == (
        "model_options.rope rotates pairs, and head_dim is 5: give an even head_dim"
    )

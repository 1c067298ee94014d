"""What a model file's module costs, against closed forms and against what real passes keep."""

import math

import pytest
import torch
from live_storages import LiveStorages
from torch import nn

from gpt.architecture.architecture import Architecture, set_parameter
from gpt.compute import paper
from gpt.compute.costs import GPTCosts
from gpt.compute.memory import memory
from gpt.compute.own_costs import OwnCosts, UnmeasurableError
from gpt.config.own_code import read_own_code
from gpt.config.shape import ModelConfig
from gpt.errors import UserError

SHAPE = ModelConfig(3, 32, 96, 2, 16, 64, 48)
HEAD = 6 * SHAPE.vocab_size * SHAPE.h_dim  # FLOPs per token
SQUARE = 6 * SHAPE.h_dim**2  # of one matrix (h_dim, h_dim)

IMPORTS = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
"""
START = (
    IMPORTS
    + """
class Model(nn.Module):
    output_layer = "head"

    def __init__(self, shape, **options):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        self.add_layers(shape, **options)

def build(shape, **options):
    return Model(shape, **options)
"""
)
TRANSFORMER = (
    IMPORTS
    + """
class Block(nn.Module):
    def __init__(self, shape, attention):
        super().__init__()
        width = shape.n_heads * shape.head_dim
        self.heads = shape.n_heads
        self.attention = attention
        self.norm1 = nn.LayerNorm(shape.h_dim)
        self.qkv = nn.Linear(shape.h_dim, 3 * width)
        self.out = nn.Linear(width, shape.h_dim)
        self.norm2 = nn.LayerNorm(shape.h_dim)
        self.up = nn.Linear(shape.h_dim, shape.mlp_dim)
        self.down = nn.Linear(shape.mlp_dim, shape.h_dim)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.attention == "fused":
            y = scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.attention == "mask":
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            hidden = torch.full((t, t), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
            y = (q @ k.mT * q.shape[-1] ** -0.5 + hidden).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))
"""
    + START
    + """
def add_layers(self, shape, attention="fused", own_checkpointing=False, logits=False, cap=None):
    self.own_checkpointing = own_checkpointing
    self.logits = logits
    self.logit_cap = cap
    if logits:
        self.output_layer = None
    self.positions = nn.Embedding(shape.seq_len, shape.h_dim)
    self.blocks = nn.ModuleList(Block(shape, attention) for _ in range(shape.n_layers))
    self.norm = nn.LayerNorm(shape.h_dim)

def forward(self, tokens):
    x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
    for block in self.blocks:
        x = checkpoint(block, x, use_reentrant=False) if self.own_checkpointing else block(x)
    x = self.norm(x)
    return self.head(x) if self.logits else x

Model.add_layers, Model.forward = add_layers, forward
"""
)
RECURRENT = (
    START
    + """
def add_layers(self, shape):
    self.cells = nn.ModuleList(nn.LSTMCell(shape.h_dim, shape.h_dim) for _ in range(2))

def forward(self, tokens):
    x = self.embed(tokens)
    for cell in self.cells:
        state = None
        outputs = []
        for step in range(x.shape[1]):
            state = cell(x[:, step], state)
            outputs.append(state[0])
        x = torch.stack(outputs, 1)
    return x

Model.add_layers, Model.forward = add_layers, forward
"""
)
ONE_MATRIX = (
    START
    + """
def add_layers(self, shape, line="x", declared=None):
    self.mix = nn.Linear(shape.h_dim, shape.h_dim)
    self.line = line
    if declared is not None:
        self.flops_per_token = declared

def forward(self, tokens):
    x = self.mix(self.embed(tokens))
    return eval(self.line)

Model.add_layers, Model.forward = add_layers, forward
"""
)
PADDED = "F.pad(x.mT, (2, 0))"


def flops_of(architecture):
    return OwnCosts(architecture).flops


@pytest.fixture
def architecture(tmp_path):
    """architecture(text of a model file, its options) -> Architecture"""

    def make(text, shape=SHAPE, **options):
        path = tmp_path / "my_model.py"
        path.write_text(text)
        return Architecture(shape, read_own_code(str(path), "gpt.model_file"), options)

    return make


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("sizes", [(3, 32, 96, 2, 16, 64, 48), (2, 24, 50, 5, 6, 33, 31)])
def test_the_gpt_counts_as_its_formula_says(sizes, device):
    shape = ModelConfig(*sizes)
    model = Architecture(shape).build()
    if device == "cpu":
        model = Architecture(shape).with_weights(dict(model.initial_weights(0)))
    tokens = torch.zeros(2, shape.seq_len, dtype=torch.int64, device=device)
    counted = paper.operations(model, tokens).products
    assert counted == 2 * shape.seq_len * shape.matmul_flops_per_token()


@pytest.mark.parametrize(
    "options, times",
    [
        ({}, 1),
        ({"logits": True}, 1),
        ({"cap": 5.0}, 1),
        # computes, and counts, what a causal mask hides
        ({"attention": "mask"}, 2),
        ({"attention": "by hand"}, 2),
        ({"own_checkpointing": True}, 1),
    ],
    ids=str,
)
def test_a_transformer_counts_as_the_gpt_does(options, times, architecture):
    scores_and_values = 6 * SHAPE.n_layers * SHAPE.seq_len * SHAPE.n_heads * SHAPE.head_dim
    expected = SHAPE.matmul_flops_per_token() + (times - 1) * scores_and_values
    assert flops_of(architecture(TRANSFORMER, **options)).counted == expected


@pytest.mark.parametrize(
    "options, heads_of_kv",
    [
        ({}, 2),
        ({"rope": 10000.0, "rmsnorm": True, "qk_norm": True, "tied": True, "bias": False}, 2),
        ({"activation": "relu2", "logit_cap": 30.0, "zero_init": True}, 2),
        ({"activation": "swiglu"}, 2),
        ({"kv_heads": 1}, 1),
    ],
    ids=str,
)
def test_the_modern_variant_counts_as_its_matrices_say(options, heads_of_kv):
    """The widths of swiglu's three matrices are such that they take what two take: 96 -> 64."""
    architecture = Architecture(SHAPE, read_own_code("modern", "gpt.model_file"), options)
    fewer_heads = SHAPE.n_heads - heads_of_kv
    saved = 6 * SHAPE.n_layers * 2 * fewer_heads * SHAPE.head_dim * SHAPE.h_dim
    assert flops_of(architecture) == (SHAPE.matmul_flops_per_token() - saved, None)
    costs = OwnCosts(architecture)
    if not options:
        estimates = (each.activations(4, "bf16", False) for each in (costs, GPTCosts(SHAPE)))
        assert next(estimates) == pytest.approx(next(estimates), rel=0.1)


def test_a_recurrence_counts_each_of_its_steps(architecture):
    costs = OwnCosts(architecture(RECURRENT))
    # the first state of each of two cells is zero, and needs no gradient
    of_states = 2 * 2 * 4 * SHAPE.h_dim**2
    least = HEAD + 2 * 8 * SQUARE - of_states
    assert least <= costs.flops_per_token <= HEAD + 2 * 8 * SQUARE


@pytest.mark.parametrize(
    "line, products",
    [
        ("x", 1),
        ("x @ self.mix.weight", 2),
        ("torch.einsum('btc,cd->btd', x, self.mix.weight)", 2),
        # three products of C^3 multiplications and additions
        ("F.bilinear(x, x, self.embed.weight.new_zeros(32, 32, 32))", 1 + 32),
        # a constant of 3 C^2 needs no gradient; one filter of 3 for each channel, either way
        (f"F.conv1d({PADDED}, self.embed.weight.new_zeros(32, 32, 3)).mT", 1 + 2),
        (f"F.conv1d({PADDED}, self.mix.weight[:, None, :3], groups=32).mT", 1 + 3 / 32),
        ("F.conv_transpose1d(x.mT, self.mix.weight[:, None, :3], groups=32).mT[:, 2:]", 1 + 3 / 32),
        # looks at values, so that there is no pass on paper
        ("x[x.sum(-1) > -1e9].view_as(x)", 1),
        ("x * 2 if bool((x > -1e9).all()) else x @ self.mix.weight", 1),
        # on the CPU whatever the model is on
        ("x + torch.arange(x.shape[1])[:, None]", 1),
    ],
)
def test_what_one_line_more_takes(line, products, architecture):
    counted = flops_of(architecture(ONE_MATRIX, line=line)).counted
    assert counted == HEAD + products * SQUARE


def test_fourier_transforms_count_as_fast_ones(architecture):
    line = "torch.fft.irfft(torch.fft.rfft(x, dim=1), dim=1)"
    counted = flops_of(architecture(ONE_MATRIX, line=line)).counted - HEAD - SQUARE
    # a real one; there are two each way, and the gradient of one may be complex
    one = 2.5 * math.log2(SHAPE.seq_len) * SHAPE.h_dim
    assert 4 * one <= counted <= 5.1 * one


@pytest.mark.parametrize(
    "line, words",
    [
        ("x", []),
        (
            "(x[..., None, :] * self.mix.weight).sum(-1)",
            ["beside matrix products (mostly aten.", "the GPT's share, so its FLOPs understate"],
        ),
        ("x if x.amax().item() < 1e9 else -x", ["are those of a pass on the CPU, as none can be"]),
    ],
)
def test_flops_that_do_not_tell_what_it_costs(line, words, architecture):
    notices = OwnCosts(architecture(ONE_MATRIX, line=line)).notices
    assert len(notices) == bool(words)
    assert all(word in notices[0] for word in words)


@pytest.mark.parametrize(
    "declared, used",
    [(round(0.985 * (HEAD + SQUARE)), HEAD + SQUARE), (3 * HEAD, 3 * HEAD)],
    ids=["a little less", "more"],
)
def test_of_the_declared_and_the_counted_figure_the_larger_is_used(declared, used, architecture):
    flops = flops_of(architecture(ONE_MATRIX, declared=declared))
    assert flops == (HEAD + SQUARE, declared) and flops.used == used


@pytest.mark.parametrize(
    "declared, words",
    [
        (
            round(0.97 * (HEAD + SQUARE)),
            (
                f"`flops_per_token` is {round(0.97 * (HEAD + SQUARE)):,}, and its matrix products"
                f" take {HEAD + SQUARE:,} per token: leave it out, or declare what they take"
            ),
        ),
        (0, "`flops_per_token` is 0, not a whole number above 0"),
        (1.5e9, "`flops_per_token` is 1500000000.0, not a whole number above 0"),
        (True, "`flops_per_token` is True, not a whole number above 0"),
        ("many", "`flops_per_token` is 'many', not a whole number above 0"),
    ],
)
def test_what_cannot_be_declared(declared, words, architecture):
    with pytest.raises(UserError) as caught:
        flops_of(architecture(ONE_MATRIX, declared=declared))
    assert str(caught.value).endswith(f"my_model.py: {words}")


def test_a_mistake_in_forward_is_told_with_its_line(architecture):
    made = architecture(ONE_MATRIX.replace("return eval", "tokens.nothing\n    return eval"))
    line = 1 + made.code.files["my_model.py"].decode().split("\n").index("    tokens.nothing")
    with pytest.raises(UserError) as caught:
        flops_of(made)
    assert f"my_model.py:{line}: forward fails (AttributeError:" in str(caught.value)
    # one that is no matter of values is not tried again on a CPU, nor is it one of measuring
    assert not isinstance(caught.value, UnmeasurableError)


def test_a_model_that_runs_nowhere_here_needs_a_declared_figure(architecture):
    # of values, which a CPU has too
    line = "x if x.is_cuda else x.numpy(force=True) @ None"
    with pytest.raises(UnmeasurableError) as caught:
        flops_of(architecture(ONE_MATRIX, line=line))
    assert str(caught.value).endswith(
        ", so what it costs is not known: mend it; of a model for GPUs alone declare"
        " `flops_per_token`"
    )
    assert flops_of(architecture(ONE_MATRIX, line=line, declared=7)) == (None, 7)


def test_parameters_of_blocks_and_of_all(architecture):
    costs = OwnCosts(architecture(TRANSFORMER))
    gpt = GPTCosts(SHAPE)
    assert (costs.parameters, costs.blocks) == (gpt.parameters, gpt.blocks)
    assert costs.block_parameters == gpt.block_parameters
    # without a list of blocks all may be fetched together
    alone = OwnCosts(architecture(ONE_MATRIX))
    assert alone.block_parameters == alone.parameters == 2 * 64 * 32 + 32 * 33


SHAPES = {"even": (3, 64, 256, 4, 16, 128, 64), "odd": (2, 48, 100, 5, 12, 90, 30)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "text, options, precision",
    [
        (TRANSFORMER, {}, "fp32"),
        (TRANSFORMER, {}, "bf16"),
        (TRANSFORMER, {"attention": "by hand"}, "fp32"),
        (TRANSFORMER, {"logits": True}, "bf16"),
        (RECURRENT, {}, "fp32"),
    ],
    ids=["transformer", "in 16 bits", "by hand", "logits", "recurrence"],
)
def test_activations_are_what_a_real_pass_keeps(
    text, options, precision, checkpointing, shape, architecture
):
    made = architecture(text, ModelConfig(*shape), **options)
    costs = OwnCosts(made, precision)
    rows = 8
    estimate = costs.activations(rows, precision, checkpointing)
    model = made.build(activation_checkpointing=checkpointing)
    for name, values in model.initial_weights(0):
        set_parameter(model, name, nn.Parameter(values))
    if precision == "bf16":
        model.bfloat16()
    tokens = torch.randint(made.shape.vocab_size, (rows, made.shape.seq_len))
    with LiveStorages() as live:
        loss = model(tokens, tokens)
        kept = live.bytes
    assert loss.requires_grad
    if checkpointing:
        # beside the block that is computed again
        estimate -= max(costs._kept_by_pass(precision, False, 1).in_block * rows, 0)
    head = 4 * made.shape.vocab_size * made.shape.h_dim if model.head is not None else 0
    assert kept == pytest.approx(estimate + head, rel=0.1)


def test_memory_of_the_same_model_is_that_of_the_gpt(architecture):
    """Of the layers, not of the fusion, which saves the GPT one addition's output a block."""
    costs = OwnCosts(architecture(TRANSFORMER))
    own, gpt = (memory(each, 8, 2, 2, "fp32", False, 1 << 28) for each in (costs, GPTCosts(SHAPE)))
    assert own.total == pytest.approx(gpt.total, rel=0.1)
    assert (own.weights, own.optimizer, own.logits) == (gpt.weights, gpt.optimizer, gpt.logits)


def test_buffers_keep_their_precision_as_in_training(architecture):
    buffer = "self.register_buffer('table', torch.ones(shape.h_dim), persistent=False)"
    text = ONE_MATRIX.replace("    self.line = line", f"    self.line = line\n    {buffer}")
    line = "(x * self.table).to(x.dtype) if self.table.dtype == torch.float32 else 1 / 0"
    costs = OwnCosts(architecture(text, line=line), "bf16")
    assert costs.flops_per_token == HEAD + SQUARE

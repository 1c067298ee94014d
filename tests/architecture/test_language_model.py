"""A user's module under the trainer's output layer: losses, scores and gradients against torch's
own, tied weights, recomputation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt.architecture.architecture import Architecture, set_parameter
from gpt.config.own_code import read_own_code
from gpt.config.shape import ModelConfig
from gpt.errors import UserError

SHAPE = ModelConfig(2, 8, 16, 2, 4, 32, 6)
MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x, scale=1.0):
        return x + scale * torch.tanh(self.mix(x.cumsum(1)))

class Model(nn.Module):
    def __init__(self, shape, tied, twice, logits, cap):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.blocks = nn.ModuleList(Block(shape.h_dim) for _ in range(shape.n_layers))
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        self.passes = 2 if twice else 1
        self.logits = logits
        if tied:
            self.head.weight = self.embed.weight
        if not logits:
            self.output_layer = "head"
        self.logit_cap = cap

    def forward(self, tokens):
        x = self.embed(tokens)
        for _ in range(self.passes):
            for block in self.blocks:
                x = block(x, scale=0.5)
        return self.head(x) if self.logits else x

def build(shape, tied=False, twice=False, logits=False, cap=None):
    return Model(shape, tied, twice, logits, cap)
"""


@pytest.fixture
def architecture(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    code = read_own_code(str(tmp_path / "model.py"), "gpt.model_file")
    return lambda **options: Architecture(SHAPE, code, options)


def with_values(architecture, dtype=torch.float64, **how):
    """A model with its first weights, ready to train."""
    model = architecture.build(**how)
    for name, values in list(model.initial_weights(3)):
        set_parameter(model, name, nn.Parameter(values.to(dtype)))
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(32, (3, 7), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def logits_by_hand(model, tokens, cap=None):
    logits = model.body(tokens)
    if not model.body.logits:
        logits = logits @ model.body.head.weight.t()
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_losses_gradients_and_scores_are_those_of_torch(architecture, tied, logits, cap):
    options = {"tied": tied, "logits": logits} | ({"cap": cap} if cap else {})
    model = with_values(architecture(**options))
    tokens, targets = batch()
    expected_logits = logits_by_hand(model, tokens, cap)
    expected = F.cross_entropy(expected_logits.flatten(0, 1), targets.flatten())
    expected_gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = model(tokens, targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(loss, expected)
    for own, other in zip(gradients, expected_gradients):
        torch.testing.assert_close(own, other)
    torch.testing.assert_close(model(tokens), expected_logits)
    scored = (torch.tensor([0, 2]), torch.tensor([5, 1]))
    scores = model(tokens, targets, scored)
    nats = -expected_logits.log_softmax(-1)[scored].gather(1, targets[scored][:, None])[:, 0]
    torch.testing.assert_close(scores.nats, nats.detach())
    at_target = expected_logits[scored].gather(1, targets[scored][:, None])
    assert scores.rank.tolist() == (expected_logits[scored] > at_target).sum(1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_capped_loss_in_less_precision_is_near(architecture, dtype):
    tokens, targets = batch()
    exact = with_values(architecture(cap=0.7))
    rounded = with_values(architecture(cap=0.7), dtype)
    losses = [model(tokens, targets) for model in (exact, rounded)]
    for loss in losses:
        loss.backward()
    assert losses[1].dtype == torch.float32
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert abs(losses[1].item() - losses[0].item()) < tolerance
    for own, other in zip(rounded.parameters(), exact.parameters()):
        difference = (own.grad.double() - other.grad).norm() / other.grad.norm()
        assert difference < tolerance


@pytest.mark.parametrize("twice", [False, True])
def test_recomputed_blocks_give_the_same_gradients(architecture, twice):
    tokens, targets = batch()
    gradients = []
    for recompute in (False, True):
        model = with_values(architecture(twice=twice), activation_checkpointing=recompute)
        model(tokens, targets).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


def test_a_shared_weight_has_one_name_and_stays_one(architecture):
    model = with_values(architecture(tied=True))
    names = [name for name, _ in model.named_parameters()]
    assert list(model.state_dict()) == names
    assert "body.embed.weight" in names and "body.head.weight" not in names
    assert model.head.weight is model.body.embed.weight is model.body.head.weight
    other = with_values(architecture(tied=True))
    state = {name: torch.full_like(values, 2.0) for name, values in model.state_dict().items()}
    other.load_state_dict(state)
    assert other.head.weight is other.body.embed.weight
    assert bool((other.head.weight == 2.0).all())
    evaluated = architecture(tied=True).with_weights(state)
    assert evaluated.head.weight is evaluated.body.embed.weight


def test_blocks_that_are_none_are_a_mistake(tmp_path):
    text = MODEL.replace(
        "nn.ModuleList(Block(shape.h_dim) for _ in range(shape.n_layers))", "nn.Sequential()"
    )
    (tmp_path / "model.py").write_text(text)
    code = read_own_code(str(tmp_path / "model.py"), "gpt.model_file")
    for how in ({"activation_checkpointing": True}, {"compile": "default"}):
        with pytest.raises(UserError, match="block by block, and the module has no nn.ModuleList"):
            Architecture(SHAPE, code).build(**how)


def test_a_result_of_another_shape_is_a_mistake(tmp_path):
    (tmp_path / "model.py").write_text(MODEL.replace("return self.head(x) if", "return x.sum() if"))
    code = read_own_code(str(tmp_path / "model.py"), "gpt.model_file")
    model = with_values(Architecture(SHAPE, code, {"logits": True}))
    with pytest.raises(UserError, match=r"makes \(\), not logits \(3, 6, 32\)"):
        model(*batch())


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("self.gate = nn.Parameter(torch.ones(()))", "its parameter gate has no dimension"),
        ("self.small = nn.Parameter(torch.ones(2).half())", "its parameter small is torch.float16"),
        ("self.embed.weight.requires_grad_(False)", "its parameter embed.weight is not trained"),
        ("self.norm = nn.BatchNorm1d(8)", "its buffer norm.running_mean would have to be kept"),
        (
            "self.register_buffer('s', self.embed.weight.sign(), persistent=False)",
            "its buffer s is made of a parameter",
        ),
        ("self.output_layer = 'nowhere'", "`output_layer` is 'nowhere', which is no submodule"),
        ("self.output_layer = 'blocks'", "the output layer 'blocks' has no weight"),
        ("self.head = nn.Linear(8, 33, bias=False)", "has 33 rows, and the vocabulary 32 ids"),
        ("self.head = nn.Linear(8, 32)", "the output layer 'head' has a bias"),
        ("self.logit_cap = -1", "`logit_cap` is -1, not a number above 0"),
    ],
)
def test_what_no_run_could_keep_is_refused(tmp_path, line, sentence):
    text = MODEL.replace("        self.logit_cap = cap\n", f"        {line}\n")
    (tmp_path / "model.py").write_text(text)
    code = read_own_code(str(tmp_path / "model.py"), "gpt.model_file")
    with pytest.raises(UserError) as caught:
        Architecture(SHAPE, code).build()
    assert sentence in str(caught.value)


def test_what_fails_in_a_forward_is_told_with_its_line(tmp_path):
    text = MODEL.replace("x = self.embed(tokens)", "x = self.embed(tokens) @ torch.ones(3, 3)")
    (tmp_path / "model.py").write_text(text)
    code = read_own_code(str(tmp_path / "model.py"), "gpt.model_file")
    model = with_values(Architecture(SHAPE, code), torch.float32)
    with pytest.raises(UserError, match=r"model.py:\d+: forward fails \(RuntimeError: mat1"):
        model(*batch())

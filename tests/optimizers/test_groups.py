"""Which parameters Muon updates, which decay, and which matrices it takes apart."""

import pytest
from conftest import tiny_run

from gpt.architecture.architecture import build
from gpt.config.resolve import resolve
from gpt.errors import UserError
from gpt.optimizers.groups import groups_of, muon_matrices

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.norm = nn.LayerNorm(shape.h_dim)
        self.gates = nn.Linear(shape.h_dim, 4 * shape.h_dim)
        self.conv = nn.Conv1d(shape.h_dim, shape.h_dim, 1)
        self.table = nn.Embedding(shape.vocab_size, shape.h_dim)

    def forward(self, x):
        return x

class Model(nn.Module):
    def __init__(self, shape, tied, fused):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.mix = nn.Linear(shape.h_dim, shape.h_dim)
        head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        self.blocks = nn.ModuleList([Block(shape), Block(shape), head])
        self.output_layer = "blocks.2"
        if tied:
            head.weight = self.embed.weight
        self.fused_matrices = fused

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks[:2]:
            x = block(x)
        return x

def build(shape, tied=False):
    return Model(shape, tied, FUSED)
"""


def config_of(kind, params=None, folder=None, fused=(), text=MODEL, **options):
    gpt = {}
    if folder is not None:
        (folder / "model.py").write_text(f"FUSED = {fused!r}\n{text}")
        gpt = {"model_file": str(folder / "model.py"), "model_options": options}
    optimizer = {"type": kind, "params": params or {}}
    return resolve(tiny_run(optimizer=optimizer, gpt=gpt), "tiny")


def test_muons_matrices_of_the_gpt():
    model = build(config_of("Muon"), "torch")
    names = ("attn.qkv", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert muon_matrices(model) == {
        f"blocks.{index}.{name}.weight": 3 if name == "attn.qkv" else 1
        for index in range(2)
        for name in names
    }


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_the_output_layer_and_vectors_are_none_of_muons(tied, tmp_path):
    config = config_of("Muon", None, tmp_path, tied=tied, fused={"blocks.1.gates.weight": 4})
    model = build(config, "torch")
    assert muon_matrices(model) == {
        "body.blocks.0.gates.weight": 1,
        "body.blocks.1.gates.weight": 4,
    }
    muon, adam = groups_of(model, config)
    assert muon.settings == {"use_muon": True}
    assert adam.settings == {"use_muon": False, "lr_scale": 0.1}
    assert {*muon.names, *adam.names} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "Lion", "Muon"])
def test_weight_decay_on_matrices_alone(kind):
    config = config_of(kind, {"decay_matrices_only": True, "weight_decay": 0.1})
    model = build(config, "torch")
    dimensions = {name: parameter.dim() for name, parameter in model.named_parameters()}
    decayed = {}
    for group in groups_of(model, config):
        decayed |= dict.fromkeys(group.names, group.settings.get("weight_decay", 0.1) > 0)
    assert decayed == {name: dims > 1 for name, dims in dimensions.items()}


@pytest.mark.parametrize(
    "fused, sentence",
    [
        (
            {"blocks.0.gate.weight": 4},
            "`fused_matrices` names 'blocks.0.gate.weight', which is no parameter of two",
        ),
        ({"blocks.0.norm.weight": 4}, "'blocks.0.norm.weight', which is no parameter of two"),
        (
            {"blocks.0.gates.weight": 3},
            "tells 3 equal matrices in blocks.0.gates.weight, which has",
        ),
        ({"blocks.0.gates.weight": "4"}, "tells '4' equal matrices in blocks.0.gates.weight"),
        ([3], "`fused_matrices` is [3], no dict"),
    ],
)
def test_fused_matrices_that_are_none(fused, sentence, tmp_path):
    config = config_of("Muon", None, tmp_path, fused=fused)
    with pytest.raises(UserError) as error:
        muon_matrices(build(config, "torch"))
    assert sentence in str(error.value)


def test_muon_needs_a_matrix(tmp_path):
    text = MODEL.replace("[Block(shape), Block(shape), head]", "[head]")
    config = config_of("Muon", None, tmp_path, text=text.replace("blocks.2", "blocks.0"))
    with pytest.raises(UserError, match="optimizer.type is Muon, for the matrices of the model's"):
        groups_of(build(config, "torch"), config)

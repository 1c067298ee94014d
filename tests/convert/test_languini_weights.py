"""The seed project's checkpoints, imported, against its model written again."""

import os
import zipfile

import pytest
import seed_project
import torch

from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.weights import load_model
from gpt.config.saved import read_config
from gpt.convert.languini_weights import import_weights
from gpt.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_logits_are_those_of_the_seed_projects_model(prefix, vocab, tmp_path):
    state = seed_project.random_state(2048)
    file = seed_project.save(tmp_path / "model.pt", state, prefix)
    (tmp_path / "config.pickle").write_bytes(b"never opened")
    shape, step = import_weights(file, vocab, tmp_path / "out", head_dim=8)
    assert (shape.n_heads, shape.head_dim, shape.h_dim, shape.mlp_dim, shape.seq_len, step) == (
        4,
        8,
        24,
        40,
        32,
        100,
    )
    assert Checkpoint.open(tmp_path / "out").verify().step == 100
    assert sorted(os.listdir(tmp_path / "out")) == [
        "checkpoint.json",
        "config.yaml",
        "model.safetensors",
        "tokenizer.model",
    ]
    model = load_model(
        tmp_path / "out/model.safetensors",
        read_config(tmp_path / "out/config.yaml"),
        "out",
    ).double()
    tokens = torch.randint(2048, (3, 32), generator=torch.Generator().manual_seed(1))
    expected = seed_project.SeedGPT({name: value.double() for name, value in state.items()}, 8)(
        tokens
    )
    assert expected.std() > 0.5  # not all alike
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-10)


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def changed(name, value):
    """A damage of the state dict: a tensor is set, or taken out."""

    def damage(state):
        state = dict(state)
        if value is None:
            del state[name]
        else:
            state[name] = value(state[name]) if callable(value) else value
        return state

    return damage


LN = "layers.1.ln1.weight"
Q = "layers.1.attn.linear_Q.weight"
BAD_STATES = {
    "no embedding": (
        changed("input_embedding.weight", None),
        {},
        "lacks the matrix input_embedding.weight: it is not a checkpoint of",
    ),
    "no norm": (
        changed(LN, None),
        {},
        f"lacks {LN}: it is not a whole checkpoint of the seed project's GPT",
    ),
    "one more": (
        changed("layers.1.attn.gate", torch.ones(2)),
        {},
        "holds layers.1.attn.gate, which the seed project's GPT does not have",
    ),
    "another shape": (
        changed(Q, torch.ones(16, 24)),
        {},
        f"{Q} has the shape (16, 24), which should be (32, 24) by the other weights",
    ),
    "half precision": (
        changed(LN, torch.Tensor.half),
        {},
        f"{LN} is torch.float16, and the seed project keeps its weights in float32",
    ),
    "not finite": (
        changed(LN, lambda value: value / 0),
        {},
        f"{LN} holds values that are not finite: take an earlier checkpoint",
    ),
    "head_dim": (
        lambda state: state,
        {"head_dim": 5},
        "its heads are 32 wide together, which is no multiple of head_dim 5: give the head_dim",
    ),
    "head_dim 0": (
        lambda state: state,
        {"head_dim": 0},
        "--head_dim 0: give a positive number, such as 64",
    ),
    "preset": (
        lambda state: state,
        {"head_dim": None, "preset": "nano"},
        "is not the preset nano: it has n_layers 2 instead of 3, h_dim 24 instead",
    ),
    "no preset": (
        lambda state: state,
        {"head_dim": None, "preset": "smal"},
        "--preset smal (did you mean 'small'?): the presets are nano, mini,",
    ),
    "tokenizer": (
        lambda state: seed_project.random_state(2047),
        {},
        "has 2048 ids, and {file} was trained with 2047: give the tokenizer",
    ),
    "empty": (
        lambda state: {},
        {},
        "holds no model_state_dict with tensors, so it is not a model.pt of the seed project",
    ),
}


@pytest.mark.parametrize("damage, options, sentence", BAD_STATES.values(), ids=BAD_STATES)
def test_bad_weights(damage, options, sentence, vocab, tmp_path):
    file = seed_project.save(tmp_path / "model.pt", damage(seed_project.random_state(2048)))
    with pytest.raises(UserError) as error:
        import_weights(file, vocab, tmp_path / "out", **{"head_dim": 8, **options})
    assert sentence.format(file=file) in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["model.pt"]


FAR_LAYER = {"layers.900000000.ln1.weight": torch.ones(24)}
BAD_FILES = {
    "missing": (
        None,
        "model.pt is not a file: --file takes the model.pt in the folder checkpoints of a run",
    ),
    "code": (
        lambda path: torch.save(
            {"model_state_dict": {}, "step": Trap(path.with_name("sprung"))}, path
        ),
        "holds code or types that a checkpoint does not need, and was not loaded",
    ),
    "a list": (lambda path: torch.save([1], path), "holds no model_state_dict with tensors"),
    "no step": (
        lambda path: torch.save({"model_state_dict": seed_project.random_state(2048)}, path),
        "does not tell its step",
    ),
    "text": (
        lambda path: path.write_text("hello"),
        "is damaged, or is not in the format that torch.save writes since torch 1.6: get the file",
    ),
    "of an old torch": (
        lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
        "is damaged, or is not in the format that torch.save writes since torch 1.6: get the file",
    ),
    "of other types": (
        lambda path: torch.save({"model_state_dict": {1: torch.ones(2)}, "step": 1}, path),
        "holds no model_state_dict with tensors",
    ),
    "a step below 0": (
        lambda path: seed_project.save(path, seed_project.random_state(2048), step=-5),
        "does not tell its step",
    ),
    "a layer far away": (
        lambda path: seed_project.save(path, {**seed_project.random_state(2048), **FAR_LAYER}),
        "lacks layers before layers.900000000",
    ),
    "half": (
        lambda path: os.truncate(seed_project.save(path, seed_project.random_state(2048)), 9000),
        "is damaged",
    ),
}


@pytest.mark.parametrize("write, sentence", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(write, sentence, vocab, tmp_path):
    file = tmp_path / "model.pt"
    if write:
        write(file)
    with pytest.raises(UserError, match=sentence):
        import_weights(file, vocab, tmp_path / "out", head_dim=8)
    # no code was run, nothing half made
    assert os.listdir(tmp_path) == (["model.pt"] if write else [])


def test_a_flipped_bit_in_a_weight_is_found(vocab, tmp_path):
    file = seed_project.save(tmp_path / "model.pt", seed_project.random_state(2048))
    with zipfile.ZipFile(file) as records:
        record = records.getinfo("model/data/0")
    content = bytearray(file.read_bytes())
    content[record.header_offset + 4000] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        import_weights(file, vocab, tmp_path / "out", head_dim=8)
    assert str(error.value) == (
        f"{file} is damaged: its record 'model/data/0' is not as it was written (its CRC differs):"
        " get the file anew, or use another one"
    )
    assert os.listdir(tmp_path) == ["model.pt"]


BAD_COMMANDS = [
    ([], "command line: the following arguments are required: data|checkpoint"),
    (
        ["checkpoint", "--file", "m", "--tokenizer", "t", "--out", "o"],
        "one of the arguments --head_dim --preset is required",
    ),
    (
        ["checkpoint", "--file", "m", "--tokenizer", "t", "--out", "o", "--head_dim", "x"],
        "argument --head_dim: invalid int value: 'x'",
    ),
    (
        ["data", "--root", ".", "--vocab", "v", "--tokenizer", "t", "--out", "o"],
        "cannot read the tokenizer t: No such file",
    ),
]


def test_bad_commands(tmp_path, load_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, sentence in BAD_COMMANDS:
        assert sentence in load_tool("import_languini").mistake(*arguments)

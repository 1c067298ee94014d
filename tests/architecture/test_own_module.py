"""From a model file to its module: what runs, with which parameters, and whose mistakes are told
how."""

import sys

import pytest
import torch
from torch import nn

from gpt.architecture.own_module import build_module
from gpt.config.own_code import read_own_code
from gpt.config.shape import ModelConfig
from gpt.errors import UserError

SHAPE = ModelConfig(2, 8, 16, 2, 4, 32, 6)
TIED = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, shape, scale):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", scale * torch.arange(3.0), persistent=False)

def build(shape, scale=1.0):
    return Model(shape, scale)
"""


def code_of(folder, text, **helpers):
    folder.mkdir(exist_ok=True)
    for name, helper in helpers.items():
        (folder / f"{name}.py").write_text(helper)
    (folder / "model.py").write_text(text)
    return read_own_code(str(folder / "model.py"), "gpt.model_file")


def test_parameters_lie_on_paper_and_buffers_have_their_values(tmp_path):
    module = build_module(code_of(tmp_path, TIED), SHAPE, {"scale": 2.0})
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module.head.weight is module.embed.weight
    assert module.table.tolist() == [0.0, 2.0, 4.0]
    assert not nn.Linear(2, 2).weight.is_meta  # afterwards all is as it was


def test_a_seed_draws_as_torch_does_and_leaves_its_numbers_alone(tmp_path):
    code = code_of(tmp_path, TIED)
    before = torch.random.get_rng_state()
    drawn = build_module(code, SHAPE, {}, seed=5).embed.weight
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    expected = nn.Embedding(32, 8).weight
    torch.random.set_rng_state(before)
    assert not torch.equal(drawn, build_module(code, SHAPE, {}, seed=6).embed.weight)
    assert torch.equal(drawn, expected)


def test_files_of_the_same_name_do_not_meet(tmp_path):
    text = "import parts\nfrom torch import nn\ndef build(shape):\n    return parts.make(nn)\n"
    sizes = []
    for size in (3, 4):
        helper = f"def make(nn):\n    return nn.Linear(2, {size})\n"
        code = code_of(tmp_path / str(size), text, parts=helper)
        sizes.append(build_module(code, SHAPE, {}).out_features)
    assert sizes == [3, 4]
    assert "parts" not in sys.modules and "model" not in sys.modules


def test_what_is_imported_later_is_what_was_read(tmp_path, monkeypatch):
    text = """
from torch import nn

class Model(nn.Linear):
    def forward(self, x):
        import parts
        return parts.NUMBER

def build(shape):
    return Model(2, 2)
"""
    module = build_module(code_of(tmp_path / "a", text, parts="NUMBER = 1\n"), SHAPE, {})
    (tmp_path / "a" / "parts.py").write_text("NUMBER = 2\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "parts.py").write_text("NUMBER = 3\n")
    monkeypatch.syspath_prepend(tmp_path / "b")
    assert module(None) == 1


def test_what_is_not_kept_with_the_run_is_refused(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "layers_of_mine.py").write_text("x = 1\n")
    text = f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\nimport layers_of_mine\n"
    try:
        with pytest.raises(UserError, match="imports layers_of_mine from .*could not keep"):
            build_module(code_of(tmp_path / "a", text), SHAPE, {})
    finally:
        sys.path.remove(str(tmp_path / "lib"))


def test_buffers_that_are_drawn_are_the_same_in_every_build(tmp_path):
    text = TIED.replace("torch.arange(3.0)", "torch.rand(3) + numpy.random.rand()")
    code = code_of(tmp_path, "import numpy\n" + text)
    first = build_module(code, SHAPE, {}).table
    torch.rand(5)
    assert torch.equal(build_module(code, SHAPE, {}).table, first)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("x = 1\n", "model.py defines no build"),
        ("build = 3\n", "model.py defines no build"),
        ("def build(shape):\n    return 3\n", "build returns int, not a torch.nn.Module"),
        ("import nowhere\n", r"model.py:1: importing it fails \(ModuleNotFoundError: .*nowhere"),
        ("def build(shape):\n    a = 1\n    return b\n", r"model.py:3: build fails \(NameError"),
        ("import parts\n", r"parts.py:2: importing it fails \(ZeroDivisionError"),
        (
            "def build(shape, depth):\n    pass\n",
            "build needs the option 'depth': give --model_options.depth",
        ),
        ("raise SystemExit(3)\n", "importing it fails"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path, text, sentence):
    code = code_of(tmp_path, text, parts="\n1 / 0\n")
    with pytest.raises(UserError, match=sentence):
        build_module(code, SHAPE, {})


def test_an_option_that_build_does_not_take_is_a_mistake(tmp_path):
    code = code_of(tmp_path, TIED)
    with pytest.raises(UserError) as error:
        build_module(code, SHAPE, {"scales": 1})
    assert str(error.value) == (
        f"{code.path}: build takes no option 'scales' (did you mean 'scale'?): change"
        " --model_options.scales (it takes scale)"
    )

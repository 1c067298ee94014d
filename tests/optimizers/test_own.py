"""Optimizers in files of the user's own: which fit which runs, and what is told of the rest."""

import re

import pytest
import torch
from torch import nn

from gpt.config.own_code import read_own_code
from gpt.errors import UserError
from gpt.optimizers.own import build_for_zero, build_optimizer
from gpt.optimizers.trial import require_fitting

SHAPES = {"embed.weight": (50, 6), "blocks.0.up.weight": (300, 8), "blocks.0.up.bias": (300,)}
ALL = "[p for _, p in named_parameters]"
OWN = """
import torch

class Own(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                BODY

def build(named_parameters, **options):
    return Own([p for _, p in named_parameters], **options)
"""


def code_of(folder, text):
    (folder / "mine.py").write_text(text)
    return read_own_code(str(folder / "mine.py"), "gpt.optimizer_file")


def returning(expression):
    return f"import torch\ndef build(named_parameters, **options):\n    return {expression}\n"


def stepping(*lines):
    return OWN.replace("BODY", "\n                ".join(lines))


ELEMENT_WISE = {
    "SGD": returning(f"torch.optim.SGD({ALL}, lr=0.1, momentum=0.9)"),
    "NAdam": returning(f"torch.optim.NAdam({ALL}, lr=0.01, **options)"),
    "RMSprop of groups": returning(
        "torch.optim.RMSprop([{'params': [p for _, p in named_parameters if p.ndim > 1]},"
        " {'params': [p for _, p in named_parameters if p.ndim < 2], 'lr_scale': 0.5}], lr=0.01)"
    ),
    "own": stepping("p -= group['lr'] * p.grad.sign()"),
}
WHOLE = {
    "norm of a row": stepping(
        "p -= group['lr'] * p.grad / (p.grad.norm(dim=-1, keepdim=True) + 1)"
    ),
    "only of matrices": stepping(
        "p -= group['lr'] * (p.grad @ p.grad.mT @ p.grad if p.ndim > 1 else p.grad)"
    ),
    "large matrices alone": stepping(
        "p -= group['lr'] * (p.grad.sign() if p.ndim < 2 or"
        " min(p.shape) < 7 else p.grad / p.grad.norm())"
    ),
    "from step 20 on": stepping(
        "count = self.state[p]['count'] = self.state[p].get('count', 0) + 1",
        "p -= group['lr'] * p.grad / (p.grad.norm() if count > 20 else 1)",
    ),
    "Adafactor": returning(f"torch.optim.Adafactor({ALL}, lr=0.01)"),
}


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_element_wise_ones_fit_every_stage(name, tmp_path):
    for stage in (0, 1, 3):
        require_fitting(code_of(tmp_path, ELEMENT_WISE[name]), {}, SHAPES, stage)


@pytest.mark.parametrize("name", WHOLE)
def test_those_that_need_whole_matrices_fit_stage_0_alone(name, tmp_path):
    code = code_of(tmp_path, WHOLE[name])
    require_fitting(code, {}, SHAPES, 0)
    with pytest.raises(UserError) as error:
        require_fitting(code, {}, SHAPES, 2)
    assert str(error.value) == (
        f"{code.path}: the optimizer needs whole matrices (of flat stretches it makes other steps),"
        " and ZeRO stage 2 has none: use --zero_optimization.stage 0 --fp16.enabled"
        " false"
    )


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("x = 1", "mine.py defines no build: define build(named_parameters, **options) -> torch.o"),
        (returning("3"), "mine.py: build returns int, not a torch.optim.Optimizer: return the opt"),
        (
            returning(f"torch.optim.SGD({ALL}[1:], lr=1)"),
            "mine.py: the optimizer leaves out embed.weight: give it every parameter, each once",
        ),
        (
            returning(f"torch.optim.SGD([torch.nn.Parameter(torch.ones(2)), *{ALL}], lr=1)"),
            "mine.py: the optimizer has parameters that it was not given: give it every",
        ),
        (
            returning(f"torch.optim.SGD({ALL}, lr=-1)"),
            "mine.py:3: build fails (ValueError: Invalid learning rate: -1): mend it",
        ),
        (
            stepping("raise KeyError('rank')"),
            "mine.py:12: the optimizer's step fails (KeyError: 'rank'): mend it",
        ),
        (
            stepping("self.state[p]['f'] = type"),
            "mine.py: a checkpoint cannot hold the optimizer's",
        ),
        (
            returning(f"torch.optim.Adagrad({ALL})"),
            "mine.py: the optimizer keeps states before its",
        ),
        (
            stepping("pass").replace('{"lr": lr}', "{}"),
            'mine.py: a group of the optimizer\'s parameters has no learning rate "lr"',
        ),
    ],
)
def test_what_is_no_optimizer_gets_its_sentence(text, sentence, tmp_path):
    with pytest.raises(UserError, match=re.escape(sentence)):
        require_fitting(code_of(tmp_path, text), {}, SHAPES, 1)


def test_a_step_that_fails_of_flat_stretches_is_told_with_its_line(tmp_path):
    code = code_of(
        tmp_path,
        stepping("assert p.ndim == 2 or len(p) < 400, p.shape", "p -= group['lr'] * p.grad"),
    )
    require_fitting(code, {}, SHAPES, 0)
    with pytest.raises(UserError) as error:
        require_fitting(code, {}, SHAPES, 1)
    assert str(error.value).startswith(
        f"{code.path}:12: the optimizer's step of a flat stretch, as ZeRO has them, fails (Asserti"
    )
    assert str(error.value).endswith(": use --zero_optimization.stage 0 --fp16.enabled false")


@pytest.mark.parametrize("value", ["'x'", "float('nan')", "-1", "torch.ones(())"])
def test_rates_that_are_no_numbers(value, tmp_path):
    text = returning(f"torch.optim.SGD([{{'params': {ALL}, 'lr_scale': {value}}}], lr=1)")
    with pytest.raises(UserError, match='"lr_scale" of a group of the optimizer\'s parameters is'):
        require_fitting(code_of(tmp_path, text), {}, SHAPES, 1)


@pytest.mark.parametrize(
    "signature, options, sentence",
    [
        (
            "named, beta=0.9, momentum=0",
            {"bata": 0.95},
            "takes no option 'bata' (did you mean 'beta'?): change --optimizer_options.bata"
            " (it takes beta, momentum)",
        ),
        (
            "named",
            {"bata": 0.95},
            "takes no option 'bata': change --optimizer_options.bata (it takes none)",
        ),
        (
            "named, *, speed, **others",
            {"bata": 0.95},
            "needs the option 'speed': give --optimizer_options.speed",
        ),
    ],
)
def test_options_that_build_does_not_take(signature, options, sentence, tmp_path):
    code = code_of(tmp_path, f"def build({signature}):\n    raise KeyError\n")
    with pytest.raises(UserError) as error:
        require_fitting(code, options, SHAPES, 0)
    assert str(error.value) == f"{code.path}: build {sentence}"


def test_under_zero_its_groups_are_by_the_whole_shapes(tmp_path):
    cut_up = {name: nn.Parameter(torch.empty(0)) for name in SHAPES}
    code = code_of(tmp_path, ELEMENT_WISE["RMSprop of groups"])
    optimizer = build_for_zero(code, {}, SHAPES, cut_up)
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert [id(p) for p in matrices] == [id(cut_up[name]) for name in list(SHAPES)[:2]]
    assert [id(p) for p in others] == [id(cut_up["blocks.0.up.bias"])]


def test_a_trial_draws_no_numbers_of_the_runs(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    text = stepping("p -= 0 * torch.rand(())")
    require_fitting(code_of(tmp_path, text), {}, SHAPES, 1)
    assert torch.equal(torch.rand(3), expected)


def test_each_parameter_is_given_with_its_name(tmp_path):
    text = returning("torch.optim.SGD([p for n, p in named_parameters if 'bias' not in n], lr=1)")
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    with pytest.raises(UserError, match="leaves out blocks.0.up.bias"):
        build_optimizer(code_of(tmp_path, text), {}, parameters.items())

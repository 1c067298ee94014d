"""The trial of an optimizer of the user's own: whose steps go by the schedule's rate, and go on
after a resume."""

import pytest
import torch

from gpt.config.own_code import read_own_code
from gpt.errors import UserError
from gpt.optimizers.trial import require_fitting

SHAPES = {"embed.weight": (50, 6), "blocks.0.up.weight": (300, 8), "blocks.0.up.bias": (300,)}
MOMENTUM = """
import torch

class Own(torch.optim.Optimizer):
    rate = 3e-3
    counted = 0

    def __init__(self, params, **settings):
        super().__init__(params, {"lr": 0.1, **settings})
        self.means = {}

    def count(self, group, state):
        state["step"] = state.get("step", 0) + 1
        return state["step"]

    def mean(self, p):
        return self.state[p].setdefault("mean", torch.zeros_like(p))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            # EACH STEP
            for p in group["params"]:
                if p.grad is None: continue
                count = self.count(group, self.state[p])
                mean = self.mean(p)
                mean.lerp_(p.grad, 0.1)
                p.sub_(group["lr"] * mean / (1 - 0.9**count))

def build(named_parameters, **settings):
    matrices = [p for name, p in named_parameters if p.ndim > 1]
    others = [p for name, p in named_parameters if p.ndim < 2]
    return Own([{"params": matrices}, {"params": others, "lr_scale": 0.5}], **settings)
"""
OF_RATES = (
    'the optimizer does not go by "lr" of its groups, which the schedule sets: it {how}: take'
    ' group["lr"] as the rate, of weight decay too'
)
OF_RESUMES = (
    "a run that goes on would not be the same: with the optimizer's state loaded into a new one,"
    " steps of embed.weight differ: keep what step needs in self.state[parameter]"
)
OF_GROUPS = (
    "the optimizer's steps change {key!r} of a group of parameters, which a run that goes on would"
    " lose: keep what step needs in self.state[parameter]"
)
MISTAKES = {
    "a rate of its own": (
        'group["lr"] * mean',
        "self.rate * mean",
        OF_RATES.format(how='moves embed.weight at an "lr" of 0'),
    ),
    "a rate of its own for vectors": (
        'group["lr"] * mean',
        '(group["lr"] if p.ndim > 1 else self.rate) * mean',
        OF_RATES.format(how='moves blocks.0.up.bias at an "lr" of 0'),
    ),
    "decay that is not times the rate": (
        "mean.lerp_",
        "p.mul_(0.99); mean.lerp_",
        OF_RATES.format(how='moves embed.weight at an "lr" of 0'),
    ),
    "the rate of the first step": (
        'group["lr"] * mean',
        'self.state[p].setdefault("rate", group["lr"]) * mean',
        OF_RATES.format(how='makes the same steps of embed.weight at half the "lr"'),
    ),
    "a count of the optimizer's": (
        'state["step"] = state.get("step", 0) + 1\n        return state["step"]',
        "self.counted += 1\n        return self.counted",
        OF_RESUMES,
    ),
    "means beside the state": (
        'self.state[p].setdefault("mean"',
        "self.means.setdefault(p",
        OF_RESUMES,
    ),
    "a count in the group": (
        "# EACH STEP",
        'group["k"] = group.get("k", 0) + 1',
        OF_GROUPS.format(key="k"),
    ),
    "a setting that changes": (
        "# EACH STEP",
        'group["beta"] *= 0.9',
        OF_GROUPS.format(key="beta"),
    ),
    "groups that are made later": (
        "# EACH STEP",
        'if len(self.param_groups) < 3: self.param_groups.append({"params": [], "lr": 0.1})',
        "the optimizer's steps change its groups of parameters: make all groups in build",
    ),
}


def try_out(folder, text, stage):
    (folder / "mine.py").write_text(text)
    code = read_own_code(str(folder / "mine.py"), "gpt.optimizer_file")
    require_fitting(code, {"beta": 0.5}, SHAPES, stage)


@pytest.mark.parametrize("stage", [0, 1])
def test_what_it_keeps_in_its_state_and_takes_from_its_groups_is_right(stage, tmp_path):
    try_out(tmp_path, MOMENTUM, stage)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("name", MISTAKES)
def test_what_would_give_other_runs_than_told_is_refused(name, stage, tmp_path):
    right, wrong, sentence = MISTAKES[name]
    assert right in MOMENTUM
    with pytest.raises(UserError) as error:
        try_out(tmp_path, MOMENTUM.replace(right, wrong), stage)
    assert str(error.value).startswith(f"{tmp_path / 'mine.py'}: {sentence}")


def test_a_parameter_without_a_gradient_is_tried_where_there_may_be_one(tmp_path):
    text = MOMENTUM.replace("if p.grad is None: continue", "")
    try_out(tmp_path, text, 1)  # ZeRO puts zeros in its place
    with pytest.raises(UserError) as error:
        try_out(tmp_path, text, 0)
    line = 1 + text[: text.index("mean.lerp_")].count("\n")
    assert str(error.value).startswith(
        f"{tmp_path / 'mine.py'}:{line}: the optimizer's step with a parameter that has no gradient"
        " fails (TypeError: "
    )
    assert str(error.value).endswith("): pass over a parameter whose grad is None")


def test_an_optimizer_that_draws_numbers_goes_on_with_its_own(tmp_path):
    text = MOMENTUM.replace("mean.lerp_(p.grad", "mean.lerp_(p.grad * torch.rand(())")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    try_out(tmp_path, text, 0)
    assert torch.equal(torch.rand(2), expected)

"""Lion against the paper's algorithm in float64."""

import torch
from plain_optimizers import PlainLion

from gpt.optimizers.lion import Lion


def test_its_steps_are_the_papers():
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in {"a": (4, 3), "b": (5,)}.items()}
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in weights.items()}
    optimizer = Lion(parameters.values(), lr=0.1, betas=(0.8, 0.95), weight_decay=0.3)
    plain = PlainLion((0.8, 0.95), 0.3)
    expected = {name: value.double() for name, value in weights.items()}
    for _ in range(6):
        gradients = {name: torch.randn_like(value) for name, value in weights.items()}
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
            expected[name] = plain.step(name, expected[name], gradients[name].double(), 0.1)
        optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6
        )
        momentum = optimizer.state[parameter]["exp_avg"].double()
        torch.testing.assert_close(momentum, plain.momentum[name], rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Lion([used, unused], lr=0.1, weight_decay=0.5)
    used.grad = torch.ones(2)
    optimizer.step()
    assert unused.tolist() == [1, 1]
    assert unused not in optimizer.state

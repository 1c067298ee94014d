"""Optimizers written down once more, in float64 and one tensor at a time: what the engine's runs
are compared with."""

import torch


class PlainLion:
    """As the paper has it (arXiv 2302.06675, algorithm 2)."""

    def __init__(self, betas=(0.9, 0.99), weight_decay=0.0):
        self.betas, self.decay, self.momentum = betas, weight_decay, {}

    def step(self, name, weight, gradient, lr):
        momentum = self.momentum.setdefault(name, torch.zeros_like(weight))
        mixed = self.betas[0] * momentum + (1 - self.betas[0]) * gradient
        self.momentum[name] = self.betas[1] * momentum + (1 - self.betas[1]) * gradient
        return weight - lr * (mixed.sign() + self.decay * weight)


class PlainAdamW:
    def __init__(self, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0):
        self.betas, self.eps, self.decay, self.states = betas, eps, weight_decay, {}

    def step(self, name, weight, gradient, lr):
        first, second, count = self.states.get(name, (0.0, 0.0, 0))
        first = self.betas[0] * first + (1 - self.betas[0]) * gradient
        second = self.betas[1] * second + (1 - self.betas[1]) * gradient**2
        count += 1
        self.states[name] = first, second, count
        mean = first / (1 - self.betas[0] ** count)
        root = (second / (1 - self.betas[1] ** count)).sqrt()
        return weight * (1 - lr * self.decay) - lr * mean / (root + self.eps)


class PlainMuon:
    """Keller Jordan's (kellerjordan.github.io/posts/muon): five quintic Newton-Schulz iterations on
    Nesterov's momentum, times sqrt(max(1, rows / columns))."""

    def __init__(self, beta=0.95, weight_decay=0.0):
        self.beta, self.decay, self.momentum = beta, weight_decay, {}

    def step(self, name, weight, gradient, lr, parts=1):
        momentum = self.momentum.get(name, torch.zeros_like(weight))
        momentum = self.beta * momentum + (1 - self.beta) * gradient
        self.momentum[name] = momentum
        mixed = (1 - self.beta) * gradient + self.beta * momentum
        update = torch.cat([orthogonal(part) for part in mixed.chunk(parts)])
        return weight * (1 - lr * self.decay) - lr * update


def orthogonal(matrix):
    a, b, c = 3.4445, -4.7750, 2.0315
    rows, columns = matrix.shape
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x * max(1.0, rows / columns) ** 0.5

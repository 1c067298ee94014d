"""Lion: the sign of a momentum as the step (Chen et al., arXiv 2302.06675, algorithm 2)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Of a gradient g: c = b1 m + (1 - b1) g; w = w - lr (sign(c) + weight_decay w);
    m = b2 m + (1 - b2) g.

    Element by element, in plain torch. State: "exp_avg", m, of the parameter's shape and type.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = []
            gradients = []
            for weight in group["params"]:
                if weight.grad is not None:
                    weights.append(weight)
                    gradients.append(weight.grad)
            if weights:
                self._update(weights, gradients, group)
        return loss

    def _update(
        self, weights: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]
    ) -> None:
        for weight in weights:
            if "exp_avg" not in self.state[weight]:
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["exp_avg"] for weight in weights]
        of_step, of_momentum = group["betas"]
        steps = torch._foreach_lerp(gradients, momenta, of_step)
        torch._foreach_sign_(steps)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, steps, alpha=-group["lr"])
        torch._foreach_lerp_(momenta, gradients, 1 - of_momentum)

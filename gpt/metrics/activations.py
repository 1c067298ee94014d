"""Statistics of what flows through a GPT: the residual stream before every block, and what the
branches add to it."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from gpt.cluster.world import World
from gpt.kernels.compiler import eagerly
from gpt.model import GPT, AddNorm


class ActivationStatistics:
    """Root mean square and largest magnitude of activations, over all forward passes that are made
    inside of it.

    A context manager, entered around each forward pass alone: it hooks the modules of a
    gpt.model.GPT on entering, and leaves nothing behind, so that what the backward pass computes
    again is not counted, and a run without it pays nothing. A compiled model runs eagerly inside.
    Names: blocks.N.stream (as it enters block N), blocks.N.attn and blocks.N.mlp (what they add),
    ln_f.stream (after the last block).
    """

    def __init__(self, model: GPT):
        self._modules = _watched_modules(model)
        self._sums = {name: _Sums() for name in self._modules}

    def __enter__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        for name, module in self._modules.items():
            self._hooks.append(module.register_forward_hook(_adds_to(self._sums[name])))
        self._eager = ExitStack()
        self._eager.enter_context(eagerly())

    def __exit__(self, *error: object) -> None:
        self._eager.close()
        for hook in self._hooks:
            hook.remove()

    def summary(self, world: World) -> dict[str, dict[str, float]]:
        """{"rms": {name: value}, "max_abs": {name: value}} over all ranks, which call it
        together."""
        rows = [sums.row() for sums in self._sums.values()]
        ranks = torch.tensor(world.gather(rows), dtype=torch.float64)  # (ranks, names, 3)
        counts = ranks[..., 0].sum(0)
        squares = ranks[..., 1].sum(0)
        rms = (squares / counts).sqrt().tolist()
        largest = ranks[..., 2].amax(0).tolist()
        return {
            "rms": dict(zip(self._sums, rms)),
            "max_abs": dict(zip(self._sums, largest)),
        }


class _Sums:
    """What is known of the activations of one name, on this rank."""

    def __init__(self):
        self._count = 0
        # float64 on the activations' device, which nothing waits for
        self._squares: torch.Tensor | float = 0.0
        self._largest: torch.Tensor | None = None

    def add(self, values: torch.Tensor) -> None:
        """values: activations of any shape, summed in fp32 without a copy of them."""
        norm = torch.linalg.vector_norm(values, 2, dtype=torch.float32).double()
        largest = torch.linalg.vector_norm(values, math.inf, dtype=torch.float32).double()
        self._count += values.numel()
        self._squares = self._squares + norm.square()
        if self._largest is None:
            self._largest = torch.zeros_like(largest)
        self._largest = torch.maximum(largest, self._largest)

    def row(self) -> list[float]:
        """[number of values, sum of their squares, largest magnitude]"""
        assert self._largest is not None, "no forward pass was made inside"
        return [self._count, float(self._squares), float(self._largest)]


def _watched_modules(model: GPT) -> dict[str, torch.nn.Module]:
    """{name: the module whose output bears it}"""
    modules: dict[str, Any] = {}
    for index, block in enumerate(model.blocks):
        modules[f"blocks.{index}.stream"] = block.ln1
        modules[f"blocks.{index}.attn"] = block.attn
        modules[f"blocks.{index}.mlp"] = block.mlp
    modules["ln_f.stream"] = model.ln_f
    return modules


def _adds_to(sums: _Sums) -> Callable:
    """A hook that adds what a module gives to `sums`: of an AddNorm the stream, of a branch its
    values, with the bias that is left to the AddNorm behind it."""

    def hook(module: torch.nn.Module, inputs: tuple, output: tuple) -> None:
        if isinstance(module, AddNorm):
            _, values = output
        else:
            values, bias = output
            values = values if bias is None else values + bias
        sums.add(values.detach())

    return hook

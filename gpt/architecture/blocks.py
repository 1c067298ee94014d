"""The blocks of a user's module, the members of its lists of modules: compiled, or computed again
in the backward pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpt.config.own_code import OwnCode
from gpt.errors import UserError
from gpt.model import COMPILE_OPTIONS


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The members of a module's outermost lists, in their order, each once."""
    return list(dict.fromkeys(_members(module)))


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _members(child)


def _required(module: nn.Module, code: OwnCode, setting: str) -> list[nn.Module]:
    blocks = blocks_of(module)
    if not blocks:
        raise UserError(
            f"{code.path}: {setting} works block by block, and the module has no nn.ModuleList",
            mend="keep the blocks in one, or turn it off",
        )
    return blocks


def compile_blocks(module: nn.Module, code: OwnCode, kind: str) -> None:
    """Have torch.compile each block. kind: a key of COMPILE_OPTIONS."""
    for block in _required(module, code, "compile"):
        # forward alone: an engine's hooks on the block are no graph
        block.forward = torch.compile(block.forward, **COMPILE_OPTIONS[kind])


def recompute_blocks(module: nn.Module, code: OwnCode) -> None:
    """Have each block keep nothing but its inputs for the backward pass."""
    classes: dict[type, type] = {}
    for block in _required(module, code, "activation_checkpointing"):
        kind = type(block)
        if kind not in classes:
            # the call, not forward: hooks of an engine are called again with it
            classes[kind] = type(kind.__name__, (kind,), {"__call__": _recomputed})
        block.__class__ = classes[kind]


def _recomputed(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    call = nn.Module.__call__
    if not torch.is_grad_enabled():
        return call(block, *inputs, **named)
    return checkpoint(call, block, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

"""The blocks of a user's module, the members of its lists of modules: compiled, or computed again
in the backward pass."""

import copy
from collections import Counter
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


def gatherable_blocks(model: nn.Module, length: int) -> list[nn.Module]:
    """The blocks that a forward pass calls once, and that share no parameter with another module:
    their weights may be gathered together, and their gradients scattered together, by ZeRO 3.

    model: on torch's meta device but for its buffers. length: of its windows, in tokens. Where a
    pass cannot be made on that device, there are none.
    """
    calls: Counter[nn.Module] = Counter()

    def count(block: nn.Module, *_: Any) -> None:
        calls[block] += 1

    try:
        twin = copy.deepcopy(model).to("meta")
        blocks = blocks_of(twin)
        for block in blocks:
            block.register_forward_pre_hook(count)
        with torch.compiler.set_stance("force_eager"), torch.device("meta"), torch.no_grad():
            twin(torch.zeros(1, length, dtype=torch.int64))
    # of a module that looks at values, or that holds what cannot be copied
    except (UserError, RuntimeError, TypeError):
        return []
    owners = Counter(p for _, p in twin.named_parameters(remove_duplicate=False))
    free = []
    for block, twin_block in zip(blocks_of(model), blocks, strict=True):
        shared = [p for p in twin_block.parameters() if owners[p] > 1]
        if calls[twin_block] == 1 and not shared:
            free.append(block)
    return free


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

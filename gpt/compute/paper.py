"""One training pass of a model on paper, that is on torch's meta device, which has shapes and no
numbers: the FLOPs of its matrix products, and the bytes that it keeps for the backward pass.

Counted is what gpt.config.shape.ModelConfig.matmul_flops_per_token counts of the GPT: products of
matrices, forward and backward, by torch's own formulas; causal attention half; what is computed
again in the backward pass not at all. Not seen are kernels that are no operators of torch's.
"""

import inspect
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gpt.compute.operators import Results, makes_tensors, product_flops
from gpt.kernels.compiler import DispatchMode, eagerly


class Operations(NamedTuple):
    """Of a forward and a backward pass."""

    products: int  # FLOPs of its matrix products
    others: int  # elements that all else works on, each once an operator
    mostly: str  # name of the operator with the most of them


class Kept(NamedTuple):
    """Bytes that autograd keeps for the backward pass, parameters and buffers left out."""

    total: int
    in_block: int  # of them the most in one call of a block


def operations(model: nn.Module, tokens: Tensor) -> Operations:
    """What a forward and a backward pass compute.

    model: gives a loss for tokens and targets. tokens: (B, T) int64 on the model's device.
    """
    counter = _Counter()
    with _as_on_a_gpu(tokens.device, counter), _computed_once(), counter:
        loss = model(tokens, tokens)
        counter.is_backward = True
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    mostly = max(counter.others, key=lambda name: counter.others[name])
    return Operations(counter.total, counter.others.total(), mostly)


def kept(
    model: nn.Module, tokens: Tensor, blocks: list[nn.Module], checkpointing: bool = False
) -> Kept:
    """Memory of a forward pass; arguments as of `operations`. blocks: submodules whose share is
    told; with checkpointing they keep their inputs."""
    saved = _Saved([*model.parameters(), *model.buffers()])
    in_blocks = [0]
    counter = _Counter()
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_measured(block, saved, in_blocks, checkpointing))
        stack.enter_context(_as_on_a_gpu(tokens.device, counter))
        stack.enter_context(counter)
        stack.enter_context(saved_tensors_hooks(saved.keep, lambda tensor: tensor))
        model(tokens, tokens)
    return Kept(saved.bytes, max(in_blocks))


@contextmanager
def _as_on_a_gpu(device: torch.device, counter: "_Counter") -> Iterator[None]:
    """Inside, attention is fused, nothing is compiled, and tensors that the model makes without a
    device are on this one."""
    with eagerly(), device, _FusedAttention(counter):
        yield


@contextmanager
def _computed_once() -> Iterator[None]:
    """Inside, the model's own checkpointing keeps everything and computes nothing again."""

    def keep_all(*arguments: Any, **named: Any) -> Iterator[None]:
        yield

    name = "_checkpoint_without_reentrant_generator"
    usual = getattr(torch.utils.checkpoint, name)
    setattr(torch.utils.checkpoint, name, keep_all)
    try:
        yield
    finally:
        setattr(torch.utils.checkpoint, name, usual)


@contextmanager
def _measured(
    block: nn.Module, saved: "_Saved", in_blocks: list[int], checkpointing: bool
) -> Iterator[None]:
    """Inside, bytes that each call of a block keeps are added to `in_blocks`."""
    begun: list[int] = []

    def begin(module: nn.Module, inputs: Any, named: Any) -> None:
        if checkpointing:  # those within tuples and the like autograd does not see
            for value in tree_leaves((inputs, named)):
                if isinstance(value, Tensor):
                    saved.keep(value)
        begun.append(saved.bytes)

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        in_blocks.append(saved.bytes - begun.pop())

    handles = (
        block.register_forward_pre_hook(begin, with_kwargs=True),
        block.register_forward_hook(end),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Saved:
    """Storages that autograd keeps, each once. besides: tensors that are there all the same."""

    def __init__(self, besides: list[Tensor]):
        self._known = {_storage(tensor) for tensor in besides}
        # alive, so that no other storage takes the place of one
        self._tensors = list(besides)
        self.bytes = 0

    def keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._known:
            self._known.add(_storage(tensor))
            self._tensors.append(tensor)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Counter(DispatchMode):
    """Counts the FLOPs of the matrix products that are computed inside."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.others: Counter[str] = Counter()
        self.is_backward = False
        self.is_paused = False
        self._results = Results()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = self._results.of(function, args, kwargs)
        flops = product_flops(function, args, kwargs, result)
        if flops is not None:
            self.add(flops)
        elif makes_tensors(function) and self._is_counted:
            sizes = [value.numel() for value in (result, *args) if isinstance(value, Tensor)]
            name = str(getattr(function, "_overloadpacket", function))
            self.others[name] += max(sizes, default=0)
        return result

    def add(self, flops: int) -> None:
        if self._is_counted:
            self.total += flops

    @property
    def _is_counted(self) -> bool:
        # a forward pass within the backward pass
        is_again = self.is_backward and torch.is_grad_enabled()
        return not is_again and not self.is_paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.is_paused = True
        yield
        self.is_paused = False


class _FusedAttention(TorchFunctionMode):
    """Inside, torch's attention takes the FLOPs and the memory that its fused kernels take."""

    def __init__(self, counter: _Counter):
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        call = inspect.signature(_attention).bind(*args, **kwargs)
        call.apply_defaults()
        return _Attention.apply(self._counter, *call.args)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's, with the names of its arguments."""
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


class _Attention(torch.autograd.Function):
    """Of its inputs and outputs a fused kernel keeps all, and the log-sum-exp of each query."""

    @staticmethod
    def forward(
        ctx: Any, counter: _Counter, query: Tensor, key: Tensor, value: Tensor, *others: Any
    ) -> Tensor:
        mask, _, is_causal, *_ = others
        ctx.counter = counter
        ctx.others = others[1:]
        products = 2 * math.prod(query.shape) * key.shape[-2]
        products += 2 * math.prod(query.shape[:-1]) * key.shape[-2] * value.shape[-1]
        ctx.flops = products // 2 if is_causal else products
        counter.add(ctx.flops)
        with counter.paused():
            result = _attend(query, key, value, mask, *ctx.others)
        statistics = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, mask, result, statistics)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors[:4]
        ctx.counter.add(2 * ctx.flops)
        needed = ctx.needs_input_grad[1:5]
        with ctx.counter.paused(), torch.enable_grad():
            leaves = [
                None if tensor is None else tensor.detach().requires_grad_(is_needed)
                for tensor, is_needed in zip(inputs, needed)
            ]
            _attend(*leaves, *ctx.others).backward(grad)
        gradients = [None if leaf is None else leaf.grad for leaf in leaves]
        return None, *gradients, *(None for _ in ctx.others)


def _attend(*inputs: Any) -> Tensor:
    """What torch's attention gives, laid out as its fused kernels lay it out."""
    result = _attention(*inputs)
    if result.dim() != 4:
        return result
    return result.transpose(1, 2).contiguous().transpose(1, 2)

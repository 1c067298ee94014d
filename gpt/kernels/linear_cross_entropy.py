"""The output layer and the cross-entropy in one operation that never holds the logits of a whole
batch.

At vocabulary 16,384 the fp32 logits of 32 x 512 tokens take 1 GiB, and their gradient another. Here
the rows go through the output layer in chunks (one, where a GPU has room for it), and each chunk's
gradient overwrites its logits at once, in the forward pass.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt.kernels.cross_entropy import IGNORE_INDEX, score_logits, softmax_gradient_
from gpt.kernels.linear import by_onednn, has_fp32_results, matmul, matmul_to_fp32
from gpt.kernels.sizes import CHUNK_ELEMENTS
from gpt.kernels.triton_shared import statistics_dtype

# Under 16-bit training a chunk's gradient (softmax - one-hot) is multiplied by this before it is
# rounded to 16 bits: probabilities down to 6e-8 stay normal fp16 numbers, and the products with the
# weights (at most 2 * 1024 * max|w|) stay far from overflow. Loss scale and mean are applied in
# fp32 afterwards, so no loss scale can overflow here.
GRADIENT_SHIFT = 1024.0


class TokenScores(NamedTuple):
    """What the evaluator needs of each scored token. Both of shape (N,)."""

    # -log p(target), fp32 (fp64 for fp64 weights)
    nats: Tensor
    # int64: how many tokens the model prefers to the target; ties go to the lower id
    rank: Tensor


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), which stays within (-cap, cap); the logits themselves without a
    cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _chunks(rows: int, vocab_size: int, kind: str) -> list[slice]:
    """kind: of device, or another key of CHUNK_ELEMENTS."""
    elements = CHUNK_ELEMENTS.get(kind, CHUNK_ELEMENTS["default"])
    size = max(1, elements // vocab_size)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _safe_factor(hidden: Tensor, shift: float) -> Tensor:
    """A power of two, at most 1, by which `hidden` (n, H) may be multiplied so that no sum over its
    rows with coefficients in [-shift, shift] leaves the range of fp16. Stays on the device."""
    bound = hidden.abs().amax().float() * (shift * hidden.shape[0] / 32768.0)
    return torch.exp2(-torch.ceil(torch.log2(bound.clamp(min=1.0))))


class _Gradients:
    """Sums of one forward pass: d(sum of nats)/d hidden and /d weight, the weight's in fp32 (fp64)
    and of any strides.

    needed: whether that of hidden, and that of weight, is. hidden is None where it is not, weight
    until something is added. Both carry the factor `shift`.
    """

    def __init__(self, hidden: Tensor, needed: tuple[bool, ...], shift: float):
        needs_hidden, self.needs_weight, *_ = needed
        self.hidden = torch.empty_like(hidden) if needs_hidden else None
        self.weight: Tensor | None = None
        self.shift = shift

    def add_product(self, inputs: Tensor, factors: Tensor) -> None:
        """Adds factors^T @ inputs to the weight's. inputs: (n, H), factors: (n, V), both of the
        sum's dtype."""
        # oneDNN has no sum in place, and is faster with V as columns
        if self.weight is None or by_onednn(inputs):
            self.add(matmul(inputs.t(), factors).t())
        else:
            self.weight.t().addmm_(inputs.t(), factors)

    def add(self, value: Tensor) -> None:
        """To the weight's."""
        self.weight = value if self.weight is None else self.weight.add_(value)


def _add_wide(
    hidden: Tensor, weight: Tensor, targets: Tensor, gradients: _Gradients, part: slice
) -> Tensor:
    """Nats of one chunk in fp32 or fp64, its gradients added.

    Exponentials are left unnormalised: their sums divide the far smaller factors and products.
    Their base is 2, for which CPUs take less than half the time; log2(e) goes into the inputs.
    """
    kept = (targets != IGNORE_INDEX)[:, None]
    ids = targets[:, None].masked_fill(~kept, 0)
    inputs = hidden[part]
    exponentials = matmul(inputs * math.log2(math.e), weight.t())
    target_logits = exponentials.gather(1, ids)
    peak = exponentials.amax(1, keepdim=True)
    total = exponentials.sub_(peak).exp2_().sum(1, keepdim=True)
    exponentials.scatter_add_(1, ids, -total)  # the one-hot
    factor = kept / total
    if gradients.hidden is not None:
        torch.mul(matmul(exponentials, weight), factor, out=gradients.hidden[part])
    if gradients.needs_weight:
        gradients.add_product(inputs * factor, exponentials)
    bits = total.log2() + peak - target_logits
    return (bits * math.log(2)).masked_fill(~kept, 0.0)


def _add_narrow(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    gradients: _Gradients,
    part: slice,
    kernels: str,
    cap: float | None,
) -> Tensor:
    """Nats of one chunk in 16 bits, by Triton, or of capped logits, its gradients added. The
    gradient takes the logits' place."""
    inputs = hidden[part]
    logits = capped(inputs @ weight.t(), cap)
    needed = gradients.hidden is not None or gradients.needs_weight
    slope = None
    if cap is not None and needed:
        slope = 1 - (logits / cap).square()
    nats = softmax_gradient_(logits, targets, gradients.shift, needed, kernels)
    if slope is not None:
        logits *= slope
    if gradients.hidden is not None:
        torch.mm(logits, weight, out=gradients.hidden[part])
    if not gradients.needs_weight:
        return nats
    if nats.dtype == logits.dtype:
        gradients.add_product(inputs, logits)
    elif has_fp32_results(logits):
        gradients.add(matmul_to_fp32(logits.t(), inputs))
    elif inputs.dtype == torch.bfloat16:
        # A sum in its range, which is fp32's. Those of several chunks are added up in fp32.
        product = logits.t() @ inputs
        is_only_chunk = inputs.shape[0] == hidden.shape[0]
        gradients.add(product if is_only_chunk else product.to(nats.dtype))
    else:
        factor = _safe_factor(inputs, gradients.shift)
        product = (logits.t() @ (inputs * factor.to(inputs.dtype))).to(nats.dtype)
        gradients.add(product / factor)
    return nats


def _scaled(value: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    """value * scale in `dtype`, contiguous. scale: a scalar tensor."""
    if value is None:
        return None
    # As a vector of one number the scale lifts 16-bit values to its own precision; a scalar would
    # be rounded to theirs.
    return torch.mul(value, scale[None], out=torch.empty_like(value, dtype=dtype)).contiguous()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        kernels: str,
        cap: float | None,
    ) -> Tensor:
        sum_dtype = statistics_dtype(hidden)
        is_wide = hidden.dtype == sum_dtype
        shift = 1.0 if is_wide else GRADIENT_SHIFT
        gradients = _Gradients(hidden, ctx.needs_input_grad, shift)
        total = torch.zeros((), dtype=sum_dtype, device=hidden.device)
        kind = hidden.device.type
        if kind == "cpu" and hidden.dtype == torch.bfloat16:
            kind = "cpu in bf16"
        for part in _chunks(hidden.shape[0], weight.shape[0], kind):
            if is_wide and kernels == "torch" and cap is None:
                nats = _add_wide(hidden, weight, targets[part], gradients, part)
            else:
                nats = _add_narrow(hidden, weight, targets[part], gradients, part, kernels, cap)
            total += nats.sum()
        counted = (targets != IGNORE_INDEX).sum().to(sum_dtype)
        ctx.save_for_backward(gradients.hidden, gradients.weight, counted * gradients.shift)
        ctx.dtype = weight.dtype
        return total / counted

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, divisor = ctx.saved_tensors
        scale = grad_loss / divisor
        grad_hidden = _scaled(grad_hidden, scale, ctx.dtype)
        grad_weight = _scaled(grad_weight, scale, ctx.dtype)
        return grad_hidden, grad_weight, None, None, None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    kernels: str = "torch",
    cap: float | None = None,
) -> Tensor:
    """Mean over rows of -log softmax(capped(hidden @ weight.T))[target], as an fp32 scalar (fp64
    for fp64 inputs).

    hidden: (N, H), weight: (V, H) of the same dtype, targets: (N,) int64 in [0, V), or -100 for
    rows that do not count. Beside the gradients (in fp32 for the weight) it holds one chunk of
    logits. Softmax and sums are in fp32. kernels: "torch" or "triton". Differentiable once.
    """
    if not torch.is_grad_enabled():
        # needs_input_grad would ask for the gradients all the same
        hidden = hidden.detach()
        weight = weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, kernels, cap)


@torch.no_grad()
def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    kernels: str = "torch",
    cap: float | None = None,
) -> TokenScores:
    """Nats and rank of every target, same arguments as `linear_cross_entropy`; not
    differentiable."""
    nats = torch.empty(hidden.shape[0], dtype=statistics_dtype(hidden), device=hidden.device)
    rank = torch.empty_like(targets)
    for part in _chunks(hidden.shape[0], weight.shape[0], hidden.device.type):
        logits = capped(matmul(hidden[part], weight.t()), cap)
        nats[part], rank[part] = score_logits(logits, targets[part], kernels)
    return TokenScores(nats, rank)

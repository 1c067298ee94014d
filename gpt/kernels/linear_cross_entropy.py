"""The output layer and the cross-entropy in one operation that never holds the logits of a whole batch.

At vocabulary 16,384 the fp32 logits of 32 x 512 tokens take 1 GiB, and their gradient another. Here the rows go through
the output layer in chunks, and each chunk's gradient overwrites its logits at once, in the forward pass.
"""

from typing import NamedTuple

import torch

from gpt.kernels.cross_entropy import IGNORE_INDEX, score_logits, softmax_gradient_

# Elements of one chunk of logits. On a CPU a chunk should stay near the caches; a GPU wants GEMMs that fill it.
CHUNK_ELEMENTS = {"cpu": 1 << 23, "default": 1 << 26}

# Under 16-bit training a chunk's gradient (softmax - one-hot) is multiplied by this before it is rounded to 16 bits:
# probabilities down to 6e-8 stay normal fp16 numbers, and the products with the weights (at most 2 * 1024 * max|w|)
# stay far from overflow. Loss scale and mean are applied in fp32 afterwards, so no loss scale can overflow here.
GRADIENT_SHIFT = 1024.0


class TokenScores(NamedTuple):
    """What the evaluator needs of each scored token. Both of shape (N,)."""

    nats: torch.Tensor  # -log p(target), fp32 (fp64 for fp64 weights)
    rank: torch.Tensor  # int64: how many tokens the model prefers to the target; ties go to the lower id


def _chunks(rows: int, vocab_size: int, device_type: str):
    size = max(1, CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["default"]) // vocab_size)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _safe_factor(hidden, shift):
    """A power of two, at most 1, by which `hidden` (n, H) may be multiplied so that no sum over its rows with
    coefficients in [-shift, shift] leaves the range of fp16. Stays on the device."""
    bound = hidden.abs().amax().float() * (shift * hidden.shape[0] / 32768.0)
    return torch.exp2(-torch.ceil(torch.log2(bound.clamp(min=1.0))))


class _Gradients:
    """Sums of one forward pass: d(sum of nats)/d hidden and /d weight, each None where it is not wanted.

    The weight's is in fp32 (fp64); both carry the factor `shift`.
    """

    def __init__(self, hidden, weight, wanted, shift):
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if wanted[1] else None
        self.shift, self._empty = shift, True

    def add_to_weight(self, product):
        """product: (A, B), of which A @ B is added."""
        if self._empty:
            torch.mm(*product, out=self.weight)
        else:
            self.weight.addmm_(*product)
        self._empty = False

    def add_sum(self, value):
        self.weight.copy_(value) if self._empty else self.weight.add_(value)
        self._empty = False


def _add_wide(hidden, weight, targets, buffer, gradients, part):
    """Nats of one chunk in fp32 or fp64, its gradients added.

    The logits are held vocabulary first, which the matrix product of a CPU writes a third faster. Exponentials are
    left unnormalised and the targets' ones are taken off afterwards: sums divide the far smaller factors and products.
    """
    kept = targets != IGNORE_INDEX
    ids, inputs = targets.masked_fill(~kept, 0), hidden[part]
    exponentials = torch.mm(weight, inputs.t(), out=buffer.narrow(0, 0, len(weight) * len(ids)).view(len(weight), -1))
    own, peak = exponentials.gather(0, ids[None])[0], exponentials.amax(0)
    total = exponentials.sub_(peak).exp_().sum(0)
    factor = (kept / total)[:, None]
    if gradients.hidden is not None:
        found = torch.mm(exponentials.t(), weight, out=gradients.hidden[part])
        found.mul_(factor).sub_(weight[ids] * kept[:, None])
    if gradients.weight is not None:
        gradients.add_to_weight((exponentials, inputs * factor))
        gradients.weight.index_add_(0, ids, inputs * kept[:, None], alpha=-1)
    return (total.log() + peak - own).masked_fill(~kept, 0.0)


def _add_narrow(hidden, weight, targets, gradients, part, kernels):
    """Nats of one chunk in 16 bits, or by Triton, its gradients added. The gradient takes the logits' place."""
    inputs = hidden[part]
    logits = inputs @ weight.t()
    wanted = gradients.hidden is not None or gradients.weight is not None
    nats = softmax_gradient_(logits, targets, gradients.shift, wanted, kernels)
    if gradients.hidden is not None:
        torch.mm(logits, weight, out=gradients.hidden[part])
    if gradients.weight is not None and gradients.weight.dtype == logits.dtype:
        gradients.add_to_weight((logits.t(), inputs))
    elif gradients.weight is not None:
        factor = _safe_factor(inputs, gradients.shift)
        gradients.add_sum((logits.t() @ (inputs * factor.to(inputs.dtype))).to(gradients.weight.dtype) / factor)
    return nats


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, kernels):
        stats = torch.promote_types(hidden.dtype, torch.float32)
        wide = hidden.dtype == stats and kernels == "torch"
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad, 1.0 if hidden.dtype == stats else GRADIENT_SHIFT)
        total = torch.zeros((), dtype=stats, device=hidden.device)
        parts = _chunks(hidden.shape[0], weight.shape[0], hidden.device.type)
        buffer = hidden.new_empty((parts[0].stop * weight.shape[0],)) if wide and parts else None
        for part in parts:
            if wide:
                total += _add_wide(hidden, weight, targets[part], buffer, gradients, part).sum()
            else:
                total += _add_narrow(hidden, weight, targets[part], gradients, part, kernels).sum()
        counted = (targets != IGNORE_INDEX).sum().to(stats)
        ctx.save_for_backward(gradients.hidden, gradients.weight, counted * gradients.shift)
        ctx.weight_dtype = weight.dtype
        return total / counted

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight, divisor = ctx.saved_tensors
        scale = grad_loss / divisor
        if grad_hidden is not None:
            grad_hidden = (grad_hidden.to(scale.dtype) * scale).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None


def linear_cross_entropy(hidden, weight, targets, kernels="torch"):
    """Mean over rows of -log softmax(hidden @ weight.T)[target], as an fp32 scalar (fp64 for fp64 inputs).

    hidden: (N, H), weight: (V, H) of the same dtype, targets: (N,) int64 in [0, V), or -100 for rows that do not count.
    Beside the gradients (in fp32 for the weight) it holds one chunk of logits. Softmax and sums are in fp32.
    kernels: "torch" or "triton". Differentiable once.
    """
    if not torch.is_grad_enabled():  # needs_input_grad would ask for the gradients all the same
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, kernels)


@torch.no_grad()
def score_tokens(hidden, weight, targets, kernels="torch") -> TokenScores:
    """Nats and rank of every target, same arguments as `linear_cross_entropy`; not differentiable."""
    nats = torch.empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    rank = torch.empty_like(targets)
    for part in _chunks(hidden.shape[0], weight.shape[0], hidden.device.type):
        if kernels == "torch":  # vocabulary first, as above
            logits = (weight @ hidden[part].t()).t()
        else:
            logits = hidden[part] @ weight.t()
        nats[part], rank[part] = score_logits(logits, targets[part], kernels)
    return TokenScores(nats, rank)

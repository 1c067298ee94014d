"""The output layer and the cross-entropy in one operation that never holds the logits of a whole batch.

At vocabulary 16,384 the fp32 logits of 32 x 512 tokens take 1 GiB, and their gradient another. Here the rows go through
the output layer in chunks, and each chunk's gradient overwrites its logits at once, in the forward pass.
"""

from typing import NamedTuple

import torch

# Elements of one chunk of logits. On a CPU a chunk should stay near the caches; a GPU wants GEMMs that fill it.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "default": 1 << 26}

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


def _logits(hidden, weight):
    """(n, V) logits in fp32, or fp64 if the weights are."""
    logits = hidden @ weight.t()
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _safe_factor(hidden, shift):
    """A power of two, at most 1, by which `hidden` (n, H) may be multiplied so that no sum over its rows with
    coefficients in [-shift, shift] leaves the range of fp16. Stays on the device."""
    bound = hidden.abs().amax().float() * (shift * hidden.shape[0] / 32768.0)
    return torch.exp2(-torch.ceil(torch.log2(bound.clamp(min=1.0))))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        rows, dtype = hidden.shape[0], hidden.dtype
        stats = torch.promote_types(dtype, torch.float32)
        shift = 1.0 if dtype == stats else GRADIENT_SHIFT
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=stats) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=stats, device=hidden.device)
        for part in _chunks(rows, weight.shape[0], hidden.device.type):
            logits, wanted = _logits(hidden[part], weight), targets[part, None]
            target_logits = logits.gather(1, wanted)
            log_z = logits.logsumexp(1, keepdim=True)
            total += (log_z - target_logits).sum()
            if not any(ctx.needs_input_grad):
                continue
            # d(sum of nats)/d(logits) = softmax - one-hot, written over the logits.
            gradient = logits.sub_(log_z).exp_()
            gradient.scatter_add_(1, wanted, gradient.new_full((1, 1), -1.0).expand_as(wanted))
            gradient = gradient.mul_(shift).to(dtype) if shift != 1.0 else gradient
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[part])
            if grad_weight is not None and dtype == stats:
                grad_weight.addmm_(gradient.t(), hidden[part])
            elif grad_weight is not None:
                factor = _safe_factor(hidden[part], shift)
                grad_weight += (gradient.t() @ (hidden[part] * factor.to(dtype))).to(stats) / factor
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.factor = 1.0 / (shift * rows)
        ctx.weight_dtype = weight.dtype
        return total / rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_loss * ctx.factor
        if grad_hidden is not None:
            grad_hidden = (grad_hidden.to(scale.dtype) * scale).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None


def linear_cross_entropy(hidden, weight, targets):
    """Mean over rows of -log softmax(hidden @ weight.T)[target], as an fp32 scalar (fp64 for fp64 inputs).

    hidden: (N, H), weight: (V, H) of the same dtype, targets: (N,) int64 in [0, V). Beside the gradients (in fp32 for
    the weight) it holds one chunk of fp32 logits. Softmax and sums are in fp32. Differentiable once.
    """
    if not torch.is_grad_enabled():  # needs_input_grad would ask for the gradients all the same
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets)


@torch.no_grad()
def score_tokens(hidden, weight, targets) -> TokenScores:
    """Nats and rank of every target, same arguments as `linear_cross_entropy`; not differentiable."""
    nats = torch.empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    rank = torch.empty_like(targets)
    ids = torch.arange(weight.shape[0], device=hidden.device)
    for part in _chunks(hidden.shape[0], weight.shape[0], hidden.device.type):
        logits, wanted = _logits(hidden[part], weight), targets[part, None]
        target_logits = logits.gather(1, wanted)
        nats[part] = (logits.logsumexp(1, keepdim=True) - target_logits)[:, 0]
        ahead = (logits > target_logits) | ((logits == target_logits) & (ids < wanted))
        rank[part] = ahead.sum(1)
    return TokenScores(nats, rank)

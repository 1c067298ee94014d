"""Every Triton kernel tried on the device that is to run it, before a run relies on it.

Triton compiles at the first launch: its own driver, by a C compiler that needs Python's headers,
then each kernel, by an assembler that must know the GPU, all into a folder that must be writable.
Where one of these is missing, or a kernel computes something wrong, that shows here, while torch's
own kernels can still take the place.
"""

import math
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.errors import RunError, in_brief
from gpt.kernels.cross_entropy import IGNORE_INDEX, score_logits, softmax_gradient_
from gpt.kernels.embedding import CHUNK, embed
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.heads import pack_heads
from gpt.kernels.layer_norm import add_layer_norm, layer_norm
from gpt.kernels.linear_cross_entropy import GRADIENT_SHIFT
from gpt.kernels.sizes import Widths
from gpt.kernels.triton_shared import interpreted, jit, on_device_of, tl

# The kernels that walk over rows take 16 each; interpreted, a row takes milliseconds.
ROWS = 64
INTERPRETED_ROWS = 4
# the embedding's kernels walk over ids, too
INTERPRETED_IDS = 16
# How far off a result may be, in roundings of its dtype. In 16 bits little but the last rounding
# shows; in fp32 the order of a sum does, and an exponential's error, which grows with its argument.
_TOLERANCE = {torch.float32: 64, torch.float16: 4, torch.bfloat16: 4}
# Of few numbers a sum may cancel out, and a right kernel's rounding then looks like a mistake.
_NARROWEST = 16
_UPDATE = "update triton together with torch, or the GPU's driver"


@dataclass(frozen=True)
class _Widths:
    """Those that are tried, of a model."""

    h_dim: int
    mlp_dim: int
    vocab_size: int
    n_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: Widths) -> "_Widths":
        return cls(
            h_dim=max(_NARROWEST, model.h_dim),
            mlp_dim=max(_NARROWEST, model.mlp_dim),
            vocab_size=max(_NARROWEST, model.vocab_size),
            n_heads=max(model.n_heads, -(-_NARROWEST // model.head_dim)),
            head_dim=model.head_dim,
        )


def problem(device: torch.device, model: Widths, dtype: torch.dtype) -> tuple[str, str] | None:
    """None if Triton works on the device and every kernel is right, else (what is wrong, what to
    do).

    The model's widths are tried, in `dtype`. Raises RunError where the failure cost this process
    its GPU.
    """
    make = _Values(device, dtype)
    widths = _Widths.of(model)
    failure = "Triton does not work here"
    try:
        _launch_one(device)
        for name, results in _TRIALS.items():
            failure = f"Triton's {name} kernels fail here"
            for quantity, result, exact in results(make, widths):
                error_size = _roundings_off(result, exact)
                if not error_size <= _TOLERANCE.get(result.dtype, 0):  # nor if it is NaN
                    wrong = f"give a wrong {quantity} here (off by {error_size:.3g} roundings)"
                    return f"Triton's {name} kernels {wrong}", _UPDATE
    except Exception as error:
        cause, remedy = _explained(error)
        _require_device(device, f"{failure} ({cause})")
        return f"{failure} ({cause})", remedy
    return None


def _require_device(device: torch.device, failure: str) -> None:
    """After an access out of bounds, say, a process can do nothing more on its GPU."""
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:
        refusal = f"since then {device} refuses everything ({in_brief(error)})"
        raise RunError(f'{failure}, and {refusal}: set kernels to "torch"') from error


def _explained(error: Exception) -> tuple[str, str]:
    """(what an error of Triton's comes from, what to do)"""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    lacks_a_file = "C compiler" in str(error) or isinstance(error, FileNotFoundError)
    if lacks_a_file and not any(map(shutil.which, compilers)):
        cause = f"there is no C compiler: no {' or '.join(compilers)} on the PATH"
        return cause, "install gcc and Python's headers"
    if isinstance(error, subprocess.CalledProcessError):
        headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
        if not headers.exists():
            return f"{headers} is not there", "install Python's headers (Debian: python3-dev)"
        cause = f"{Path(error.cmd[0]).name} ended with exit code {error.returncode}"
        return cause, "look at what it says above"
    if isinstance(error, OSError) and _in_the_cache(error.filename):
        return in_brief(error), "set TRITON_CACHE_DIR to a folder that can be written"
    return in_brief(error), _UPDATE


def _in_the_cache(path: str | bytes | int | None) -> bool:
    """Whether Triton's cache of compiled kernels is at this path, above or below it."""
    home = os.environ.get("TRITON_HOME", os.path.expanduser("~"))
    cache = os.environ.get("TRITON_CACHE_DIR", os.path.join(home, ".triton"))
    return str(path).startswith(cache) or cache.startswith(str(path))


@jit()
def _twice(numbers, BLOCK: tl.constexpr):
    places = numbers + tl.arange(0, BLOCK)
    tl.store(places, tl.load(places) * 2)


def _launch_one(device: torch.device) -> None:
    """The least that Triton must be able to do: what fails here is not a kernel's fault."""
    numbers = torch.ones(128, device=device)
    with on_device_of(numbers):
        _twice[(1,)](numbers, BLOCK=128)
    total = numbers.sum().item()
    assert total == 256, f"128 times 2 are {total:g}"


class _Values:
    """make(width) -> (ROWS, width) random numbers on the device, the same in every process;
    make(width, 1) -> (width,)."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device = device
        self.dtype = dtype
        self.rows = INTERPRETED_ROWS if interpreted() else ROWS
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, width: int, dimensions: int = 2, scale: float = 1.0) -> Tensor:
        shape = (self.rows, width)[2 - dimensions :]
        numbers = torch.randn(shape, generator=self._generator) * scale
        return numbers.to(self.device, self.dtype)


# Yields (what it is, a kernel's result, the same in float64 on the CPU).
_Results = Iterator[tuple[str, Tensor, Tensor]]


def _exact(tensor: Tensor) -> Tensor:
    """The same numbers in float64 on the CPU, as a leaf of autograd."""
    return tensor.detach().cpu().double().requires_grad_()


def _roundings_off(result: Tensor, exact: Tensor) -> float:
    """The largest error of `result`, in units of its dtype's rounding of each number, or of the
    median one where that is larger. For whole numbers 0, or infinity if one differs."""
    result = result.detach().cpu()
    exact = exact.detach()
    if not result.is_floating_point():
        return 0.0 if torch.equal(result, exact) else math.inf
    size = exact.abs()
    unit = torch.finfo(result.dtype).eps / 2 * size.clamp(min=size.median().item())
    return ((result.double() - exact).abs() / unit).max().item()


def _layer_norm_results(make: _Values, widths: _Widths) -> _Results:
    yield from _sum_and_norm_results(make, widths, has_bias=True)
    yield from _sum_and_norm_results(make, widths, has_bias=False)
    width = widths.h_dim
    x = make(width).requires_grad_()
    weight, bias = (make(width, 1).requires_grad_() for _ in range(2))
    normed = layer_norm(x, weight, bias, kernels="triton")
    yield from _norm_results(x, [x, weight, bias], normed, (normed,), (make(width),))


def _sum_and_norm_results(make: _Values, widths: _Widths, has_bias: bool) -> _Results:
    """Of a branch added to the stream, whose own bias is still to be added or has been."""
    width = widths.h_dim
    x = make(width)
    stream = make(width)
    leaves = [tensor.requires_grad_() for tensor in (x, make(width, 1), make(width, 1))]
    exact_total = _exact(x) + _exact(stream)
    x_bias = None
    if has_bias:
        x_bias = make(width, 1).requires_grad_()
        leaves.append(x_bias)
        exact_total = exact_total + _exact(x_bias)
    _, weight, bias, *_ = leaves
    normed, total = add_layer_norm(x, stream, weight, bias, kernels="triton", x_bias=x_bias)
    yield "sum with the stream", total, exact_total
    gradients = (make(width), make(width))
    yield from _norm_results(total, leaves, normed, (normed, total), gradients)


def _norm_results(
    total: Tensor,
    leaves: list[Tensor],
    normed: Tensor,
    outputs: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
) -> _Results:
    """Of normed = LayerNorm(total). leaves: x, weight, bias and x's bias, if it has one. gradients:
    of the outputs, normed first and total, if it is one, behind it."""
    exact_leaves = [_exact(tensor) for tensor in (total, *leaves[1:3])]
    exact_total, exact_weight, exact_bias = exact_leaves
    exact = F.layer_norm(exact_total, (total.shape[1],), exact_weight, exact_bias, eps=1e-5)
    yield "result", normed, exact
    exact_gradients = list(torch.autograd.grad(exact, exact_leaves, _exact(gradients[0])))
    for grad_total in gradients[1:]:
        exact_gradients[0] = exact_gradients[0] + _exact(grad_total)
    exact_gradients.append(exact_gradients[0].sum(0))
    names = [f"gradient of the {name}" for name in ("weight", "bias", "branch's bias")]
    results = torch.autograd.grad(outputs, leaves, gradients)
    yield from zip(["gradient", *names], results, exact_gradients)


def _gelu_results(make: _Values, widths: _Widths) -> _Results:
    x = make(widths.mlp_dim, scale=2.0)
    bias = make(widths.mlp_dim, 1)
    grad = make(widths.mlp_dim)
    leaves = [tensor.requires_grad_() for tensor in (x, bias)]
    result = bias_gelu(x, bias, kernels="triton")
    exact_leaves = [_exact(tensor) for tensor in leaves]
    exact = F.gelu(exact_leaves[0] + exact_leaves[1], approximate="tanh")
    yield "result", result, exact
    gradients = torch.autograd.grad(result, leaves, grad)
    exact_gradients = torch.autograd.grad(exact, exact_leaves, _exact(grad))
    yield from zip(("gradient", "gradient of the bias"), gradients, exact_gradients)


def _heads_results(make: _Values, widths: _Widths) -> _Results:
    width = widths.n_heads * widths.head_dim
    grads = [make(width) for _ in range(3)]
    # (B, H, T, D), as attention hands them back
    heads = [grad.view(1, -1, widths.n_heads, widths.head_dim).transpose(1, 2) for grad in grads]
    packed, column_sums = pack_heads(*heads)
    exact = torch.cat([_exact(grad) for grad in grads], 1)
    yield "gradient", packed[0], exact
    yield "gradient of the bias", column_sums, exact.sum(0)


def _cross_entropy_results(make: _Values, widths: _Widths) -> _Results:
    vocab_size = widths.vocab_size
    logits = make(vocab_size, scale=3.0)
    shift = 1.0 if make.dtype == torch.float32 else GRADIENT_SHIFT
    targets = torch.arange(make.rows) % vocab_size
    targets[-1] = vocab_size - 1
    targets[1] = IGNORE_INDEX
    kept = targets != IGNORE_INDEX
    target_ids = targets.where(kept, 0)[:, None]
    exact = _exact(logits)
    exact_nats = -exact.log_softmax(1).gather(1, target_ids)[:, 0] * kept
    (exact_gradient,) = torch.autograd.grad(exact_nats.sum(), exact)
    order = exact.detach().sort(dim=1, descending=True, stable=True).indices
    exact_rank = (order == target_ids).int().argmax(1) * kept
    targets = targets.to(make.device)
    nats, rank = score_logits(logits, targets, "triton")
    yield "loss", nats, exact_nats
    yield "rank", rank, exact_rank
    yield "loss", softmax_gradient_(logits, targets, shift, kernels="triton"), exact_nats
    yield "gradient", logits, exact_gradient * shift


def _embedding_results(make: _Values, widths: _Widths) -> _Results:
    """The tokens of id 0 fill a chunk; the last id of the vocabulary occurs, too."""
    vocab_size = min(widths.vocab_size, INTERPRETED_IDS) if interpreted() else widths.vocab_size
    sequences = 2 + CHUNK // make.rows
    grad = torch.stack([make(widths.h_dim) for _ in range(sequences)])
    tokens = (torch.arange(sequences * make.rows) - CHUNK).clamp(0, vocab_size - 1)
    tokens[-1] = vocab_size - 1
    ids, place = tokens.view(sequences, make.rows).unique(return_inverse=True)
    rows = torch.cat([make(widths.h_dim) for _ in range(sequences)])[: len(ids)]
    weight = torch.zeros(vocab_size, widths.h_dim, dtype=make.dtype, device=make.device)
    weight[ids] = rows
    positions = make(widths.h_dim)
    leaves = [tensor.requires_grad_() for tensor in (weight, positions)]
    tokens = ids[place].to(make.device)
    result = embed(tokens, weight, positions, 1.5, kernels="triton")
    exact_leaves = [_exact(tensor) for tensor in (rows, positions)]
    exact = F.embedding(place, exact_leaves[0]) * 1.5 + exact_leaves[1]
    yield "result", result, exact
    grad_weight, grad_positions = torch.autograd.grad(result, leaves, grad)
    exact_gradients = torch.autograd.grad(exact, exact_leaves, _exact(grad))
    yield "gradient of the weight", grad_weight[ids], exact_gradients[0]
    yield "gradient of the positions", grad_positions, exact_gradients[1]
    occurs = torch.zeros(vocab_size, dtype=torch.bool)
    occurs[ids] = True
    yield "gradient of ids without a token", (grad_weight != 0).any(1), occurs


_TRIALS: dict[str, Callable[[_Values, _Widths], _Results]] = {
    "LayerNorm": _layer_norm_results,
    "GELU": _gelu_results,
    "QKV": _heads_results,
    "cross-entropy": _cross_entropy_results,
    "embedding": _embedding_results,
}

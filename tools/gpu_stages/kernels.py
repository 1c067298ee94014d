"""Are the kernels right? Each against float64 on the same device."""

import functools
import math
from unittest import mock

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.compute.hardware import DTYPES
from gpt.kernels.attention import causal_attention
from gpt.kernels.cross_entropy import IGNORE_INDEX, score_logits, softmax_gradient_
from gpt.kernels.embedding import embed
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.heads import linear_heads
from gpt.kernels.layer_norm import add_layer_norm, layer_norm
from gpt.kernels.linear_cross_entropy import linear_cross_entropy
from gpt.kernels.sizes import CHUNK_ELEMENTS
from tools.gpu_stages import BACKENDS
from tools.gpu_stages.lab import SMALLEST, UNIT

WIDTHS = (128, 768, 1000, 1024, 1025, 1536, 2048)  # with some that no vector load divides
ROWS = (1, 17, 1000, 16384)
LENGTHS = (
    512,
    500,
    300,
    129,
    16,
)  # of sequences; cuDNN has had faults where 128 does not divide them
VOCABULARIES = (2048, 5000, 16384)
# Errors in units of rounding: the worst, relative to that of the largest element; and the norm of
# all, relative to the norm of all elements' own.
WORST = {"fp32": 256.0, "bf16": 16.0, "fp16": 16.0}
TOGETHER = {"fp32": 64.0, "bf16": 3.0, "fp16": 3.0}
SHIFT = 1024.0  # a factor on cross-entropy's gradient


class Trial:
    """One kernel in one precision, over many shapes."""

    def __init__(self, lab, name, precision):
        self.lab = lab
        self.name = name
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.faults = []
        self.worst = 0.0
        self.together = 0.0
        self.repeats = True

    def compare(self, where, ours, exact, inputs, must_repeat=True):
        """Results and gradients of `ours`, twice, and of `exact` in float64, of the same inputs."""
        here = [value.to(self.dtype).requires_grad_() for value in inputs]
        there = [value.detach().double().requires_grad_() for value in here]
        wanted = _tuple(exact(*there))
        upstream = [torch.randn_like(value).to(self.dtype).double() for value in wanted]
        wanted = [*wanted, *torch.autograd.grad(wanted, there, upstream)]
        runs = []
        for _ in range(2):
            self.lab.poison()
            found = _tuple(ours(*here))
            gradients = torch.autograd.grad(
                found, here, [up.to(value.dtype) for up, value in zip(upstream, found)]
            )
            runs.append([value.detach() for value in (*found, *gradients)])
        for number, (got, want) in enumerate(zip(runs[0], wanted)):
            self.measure(
                f"{where}, {'result' if number < len(upstream) else 'gradient'} {number}", got, want
            )
        same = all(torch.equal(first, second) for first, second in zip(*runs))
        self.repeats = self.repeats and same
        if must_repeat and not same:
            self.faults.append(f"{where}: a second run gave other bits")

    def measure(self, where, got, want):
        error, want = (got.double() - want).abs(), want.detach()
        rounding = (want.abs() * UNIT[self.precision]).clamp(min=SMALLEST[self.precision] / 2)
        worst = (error.max() / rounding.max()).item()
        together = (error.norm() / rounding.norm()).item()
        self.worst = max(self.worst, worst)
        self.together = max(self.together, together)
        # NaN is worse than any limit
        if not worst <= WORST[self.precision] or not together <= TOGETHER[self.precision]:
            self.faults.append(
                f"{where}: {worst:.1f} roundings at worst, {together:.1f} all together"
            )

    def require(self, where, fulfilled):
        if not fulfilled:
            self.faults.append(where)

    def end(self):
        saw = (
            f"{self.worst:.1f} roundings at worst, {self.together:.1f} all together"
            if self.worst
            else ""
        )
        saw += "" if self.repeats else "; a second run gives other bits"
        self.lab.check(self.name, self.precision, self.faults, saw.removeprefix("; "))


def _tuple(results):
    return results if isinstance(results, tuple) else (results,)


def bf16(lab):
    _operations(lab, "bf16")


def fp16(lab):
    _operations(lab, "fp16")


def fp32(lab):
    _operations(lab, "fp32")


def _operations(lab, precision):
    torch.manual_seed(0)
    for name, work in _works():
        if lab.no_triton and not lab.dry and work is not _attention:
            lab.not_run(name, f"Triton does not run here: {lab.no_triton}", precision)
            continue
        trial = Trial(lab, name, precision)
        try:
            work(lab, trial)
        # one kernel that does not run keeps no other from being tried
        except Exception as error:
            trial.faults.append(f"{type(error).__name__}: {error}"[:300])
        trial.end()
    for backend in BACKENDS:
        _attention_backend(lab, backend, precision)


def _works():
    yield "add + LayerNorm", _add_layer_norm
    yield "add + bias + LayerNorm", _add_bias_layer_norm
    yield "LayerNorm", _layer_norm
    yield "GELU with bias", _gelu
    yield "heads", _heads
    yield "embedding", _embedding
    yield "misaligned rows", _misaligned
    yield "cross-entropy", _cross_entropy
    yield "ranks of targets", _ranks
    yield "head, loss scale 1", functools.partial(_head, scale=1.0)
    yield "head, loss scale 65536", functools.partial(_head, scale=2.0**16)
    yield "head in several chunks", _chunked_head
    yield "attention as chosen", _attention


def random(lab, *size, scale=1.0, offset=0.0):
    return torch.randn(size, device=lab.device) * scale + offset


def _sizes(lab):
    for width in (64, 65) if lab.dry else WIDTHS:
        for rows in (1, 5) if lab.dry else ROWS:
            yield rows, width, f"{rows:,} rows of {width:,}"


def _norm(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


def _add_layer_norm(lab, trial):
    for rows, width, where in _sizes(lab):
        inputs = [
            random(lab, rows, width, scale=3, offset=2),
            random(lab, rows, width),
            random(lab, width, offset=1),
            random(lab, width),
        ]
        trial.compare(
            where,
            lambda x, r, w, b: add_layer_norm(x, r, w, b, 1e-5, lab.kernels),
            lambda x, r, w, b: (_norm(x + r, w, b), x + r),
            inputs,
        )


def _add_bias_layer_norm(lab, trial):
    for rows, width, where in _sizes(lab):
        inputs = [
            random(lab, rows, width, scale=3, offset=2),
            random(lab, rows, width),
            random(lab, width, offset=1),
            random(lab, width),
            random(lab, width),
        ]
        trial.compare(
            where,
            lambda x, r, w, b, x_bias: add_layer_norm(x, r, w, b, 1e-5, lab.kernels, x_bias),
            lambda x, r, w, b, x_bias: (_norm(x + x_bias + r, w, b), x + x_bias + r),
            inputs,
        )


def _layer_norm(lab, trial):
    for rows, width, where in _sizes(lab):
        inputs = [
            random(lab, rows, width, scale=3, offset=2),
            random(lab, width, offset=1),
            random(lab, width),
        ]
        trial.compare(where, lambda x, w, b: layer_norm(x, w, b, 1e-5, lab.kernels), _norm, inputs)


def _gelu(lab, trial):
    for rows, width, where in _sizes(lab):
        trial.compare(
            where,
            lambda x, b: bias_gelu(x, b, lab.kernels),
            lambda x, b: F.gelu(x + b, approximate="tanh"),
            [random(lab, rows, width, scale=3), random(lab, width)],
        )


def _heads(lab, trial):
    n_heads, head_dim = (2, 16) if lab.dry else (12, 64)
    width = 3 * n_heads * head_dim
    for rows, length in ((1, 5), (2, 8)) if lab.dry else ((1, 300), (32, 512)):
        trial.compare(
            f"{rows} x {length:,}",
            lambda x, w, b: linear_heads(x, w, b, n_heads, lab.kernels),
            lambda x, w, b: tuple(
                part.unflatten(2, (n_heads, head_dim)).transpose(1, 2)
                for part in F.linear(x, w, b).chunk(3, 2)
            ),
            [random(lab, rows, length, 1), random(lab, width, 1), random(lab, width)],
        )


def _embedding(lab, trial):
    """Ids as frequent as words are: the first as a third of all tokens, many not at all."""
    for vocabulary, width in ((40, 16),) if lab.dry else ((2048, 128), (16384, 768), (50257, 1024)):
        rows, length = (2, 8) if lab.dry else (16, 512)
        frequent = torch.rand(rows, length, device=lab.device) ** 4
        tokens = (frequent * vocabulary).long()
        tokens[torch.rand(rows, length, device=lab.device) < 1 / 3] = 0
        trial.compare(
            f"{rows * length:,} tokens of {vocabulary:,} ids of {width}",
            lambda w, p: embed(tokens, w, p, width**0.5, lab.kernels),
            lambda w, p: F.embedding(tokens, w) * width**0.5 + p,
            [random(lab, vocabulary, width, scale=0.02), random(lab, length, width, scale=0.02)],
        )


def _misaligned(lab, trial):
    """Rows that lie apart and begin where no vector load can."""
    for rows, width, where in _sizes(lab):
        padded = random(lab, rows, width + 9, scale=3, offset=2).to(trial.dtype)
        inputs = (
            padded[:, 3 : 3 + width],
            *(random(lab, width, offset=1).to(trial.dtype) for _ in range(2)),
        )
        lab.poison()
        got = layer_norm(*inputs, 1e-5, lab.kernels), bias_gelu(*inputs[:2], lab.kernels)
        x, weight, bias = (value.double() for value in inputs)
        trial.measure(f"LayerNorm, {where}", got[0], _norm(x, weight, bias))
        trial.measure(f"GELU, {where}", got[1], F.gelu(x + weight, approximate="tanh"))


def _logits(lab, trial, vocabulary):
    logits = random(lab, 300, vocabulary, scale=4).to(trial.dtype)
    targets = torch.randint(vocabulary, (300,), device=lab.device)
    targets[::7] = IGNORE_INDEX
    return logits, targets, targets != IGNORE_INDEX


def _cross_entropy(lab, trial):
    for vocabulary in (40,) if lab.dry else VOCABULARIES:
        logits, targets, kept = _logits(lab, trial, vocabulary)
        exact = F.cross_entropy(logits.double(), targets, reduction="none")
        one_hot = F.one_hot(targets.clamp(min=0), vocabulary)
        gradient = (logits.double().softmax(1) - one_hot) * kept[:, None] * SHIFT
        lab.poison()
        in_place = logits.clone()
        nats = softmax_gradient_(in_place, targets, SHIFT, kernels=lab.kernels)
        trial.measure(f"gradient, vocabulary {vocabulary:,}", in_place, gradient)
        trial.require(
            f"nats, vocabulary {vocabulary:,}", bool(((nats.double() - exact).abs() < 1e-4).all())
        )


def _ranks(lab, trial):
    for vocabulary in (40,) if lab.dry else VOCABULARIES:
        logits, targets, kept = _logits(lab, trial, vocabulary)
        nats, rank = score_logits(logits, targets, lab.kernels)
        own = logits.gather(1, targets.clamp(min=0)[:, None])
        lower_id = torch.arange(vocabulary, device=lab.device) < targets[:, None]
        ahead = ((logits > own) | ((logits == own) & lower_id)).sum(1)
        exact = F.cross_entropy(logits.double(), targets, reduction="none")
        trial.require(f"ranks, vocabulary {vocabulary:,}", torch.equal(rank[kept], ahead[kept]))
        trial.require(
            f"nats, vocabulary {vocabulary:,}",
            bool(((nats.double() - exact).abs() < 1e-4)[kept].all()),
        )


def _head(lab, trial, scale, size=(4096, 768, 16384)):
    rows, width, vocabulary = (70, 32, 97) if lab.dry else size
    targets = torch.randint(vocabulary, (rows,), device=lab.device)
    trial.compare(
        f"{rows:,} x {width} x {vocabulary:,}",
        lambda h, w: linear_cross_entropy(h, w, targets, lab.kernels) * scale,
        lambda h, w: F.cross_entropy(h @ w.t(), targets) * scale,
        [random(lab, rows, width), random(lab, vocabulary, width, scale=0.02)],
    )


def _chunked_head(lab, trial):
    """Smaller chunks than a run's, the last not full, of a vocabulary that nothing divides."""
    with mock.patch.dict(CHUNK_ELEMENTS, default=1 << 24, cpu=1 << 11):
        _head(lab, trial, 1.0, (4100, 256, 16411))


def _exact_attention(q, k, v):
    length = q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(future, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _attention(lab, trial):
    """q, k, v as the model lays them out, in one row a token. Its gradients add in any order."""

    def parts(packed):
        return packed.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D)

    for length in (8, 5) if lab.dry else LENGTHS:
        trial.compare(
            f"T {length}",
            lambda packed: causal_attention(*parts(packed)),
            lambda packed: _exact_attention(*parts(packed)),
            [random(lab, 2, length, 3, 3, 16 if lab.dry else 64)],
            must_repeat=False,
        )


def refused(error: Exception) -> bool:
    """Whether torch says so that it has no attention of the backend asked for here."""
    return any(words in str(error) for words in ("No available kernel", "No viable backend"))


def _attention_backend(lab, backend, precision):
    trial = Trial(lab, f"attention: {backend}", precision)
    try:
        with sdpa_kernel(
            getattr(SDPBackend, "MATH" if backend == "math" else f"{backend.upper()}_ATTENTION")
        ):
            _attention(lab, trial)
    except RuntimeError as error:
        if not refused(error):
            trial.faults.append(f"{type(error).__name__}: {error}"[:300])
        elif not trial.worst:
            return lab.not_run(trial.name, "torch has none here in this precision", precision)
        else:
            trial.faults.append("it takes some lengths and refuses others")
    trial.end()

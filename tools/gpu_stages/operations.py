"""Single operations of the hot loop at the shapes of `small` and `medium`: how fast is each?"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm
from gpt.kernels.linear_cross_entropy import linear_cross_entropy
from gpt.model import GPT
from tools.benchmarks.launches import (
    ATTENTION,
    ATTENTION_BACKWARD,
    INPUT_GRADIENT,
    MEMORY,
    PRODUCT,
    WEIGHT_GRADIENT,
    Launch,
)
from tools.gpu_stages.kernels import refused

DTYPE = torch.bfloat16


def single(lab):
    for preset in ("small", "medium"):
        shape, rows = lab.shape(preset), 2 if lab.dry else 32
        bench = Bench(lab, preset, shape, rows)
        for work in (
            bench.products,
            bench.norm_and_gelu,
            bench.head,
            bench.embedding,
            bench.attention,
            bench.copies,
        ):
            with lab.attempt("operations", preset=preset, what=work.__name__):
                work()
    with lab.attempt("operations", preset="small", what="norm of the gradient"):
        _norm_of_gradient(lab)


class Bench:
    """Operations of one micro-batch; bytes are those that must move, each read or written once."""

    def __init__(self, lab, preset, shape, rows):
        self.lab = lab
        self.preset = preset
        self.shape = shape
        self.rows = rows
        self.n = rows * shape.seq_len
        self.unit = 2 * self.n * shape.h_dim  # bytes of one 16-bit (N, C)

    def random(self, *size, grad=False):
        return torch.randn(size, device=self.lab.device).to(DTYPE).requires_grad_(grad)

    def take(self, what, work, flops=None, moved=None, repeats=20, kind=MEMORY, size=()):
        """kind, size: of the one launch that it is on paper; None for more than one."""
        ms = self.lab.milliseconds(work, repeats)
        on_paper = None
        if kind is not None:
            on_paper = self.lab.ms_on_paper(Launch(what, kind, 1, moved or 0, flops or 0, size))
        self.lab.row(
            "operations",
            preset=self.preset,
            what=what,
            ms=ms,
            ms_on_paper=on_paper,
            flops_per_second=flops and 1e3 * flops / ms,
            bytes_per_second=moved and 1e3 * moved / ms,
        )

    def backward(self, results, inputs):
        results = results if isinstance(results, tuple) else (results,)
        upstream = [torch.randn_like(result) for result in results]
        return lambda: torch.autograd.grad(results, inputs, upstream, retain_graph=True)

    def products(self):
        s, n = self.shape, self.n
        wide = s.n_heads * s.head_dim
        for name, out, inner in (
            ("qkv", 3 * wide, s.h_dim),
            ("c_proj", s.h_dim, wide),
            ("mlp.c_fc", s.mlp_dim, s.h_dim),
            ("mlp.c_proj", s.h_dim, s.mlp_dim),
            ("head", s.vocab_size, s.h_dim),
        ):
            x = self.random(n, inner)
            weight = self.random(out, inner)
            grad = self.random(n, out)
            bias = self.random(out)
            for way, work, kind, size in (
                ("forward", lambda: F.linear(x, weight, bias), PRODUCT, (n, out, inner)),
                ("input's gradient", lambda: grad @ weight, INPUT_GRADIENT, (n, inner, out)),
                ("weight's gradient", lambda: grad.t() @ x, WEIGHT_GRADIENT, (out, inner, n)),
            ):
                self.take(
                    f"product {name}, {way}",
                    work,
                    flops=2 * n * out * inner,
                    repeats=15,
                    kind=kind,
                    size=size,
                )
            if name == "qkv":
                self.take("bias gradient of qkv", lambda: grad.sum(0), moved=grad.nbytes)

    def norm_and_gelu(self):
        n = self.n
        c = self.shape.h_dim
        m = self.shape.mlp_dim
        kernels = self.lab.kernels
        x, stream, weight, bias = (
            self.random(*size, grad=True) for size in ((n, c), (n, c), (c,), (c,))
        )
        self.take(
            "add + LayerNorm, forward",
            lambda: add_layer_norm(x, stream, weight, bias, 1e-5, kernels),
            moved=4 * self.unit,
        )
        back = self.backward(
            add_layer_norm(x, stream, weight, bias, 1e-5, kernels), (x, stream, weight, bias)
        )
        self.take("add + LayerNorm, backward", back, moved=4 * self.unit)
        hidden = self.random(n, m, grad=True)
        wide_bias = self.random(m, grad=True)
        self.take(
            "GELU with bias, forward",
            lambda: bias_gelu(hidden, wide_bias, kernels),
            moved=2 * hidden.nbytes,
        )
        back = self.backward(bias_gelu(hidden, wide_bias, kernels), (hidden, wide_bias))
        self.take("GELU with bias, backward", back, moved=3 * hidden.nbytes)

    def head(self):
        n = self.n
        c = self.shape.h_dim
        v = self.shape.vocab_size
        hidden = self.random(n, c, grad=True)
        weight = (self.random(v, c) * 0.02).requires_grad_()
        targets = torch.randint(v, (n,), device=self.lab.device)
        self.take(
            "head and cross-entropy, both ways",
            lambda: torch.autograd.grad(
                linear_cross_entropy(hidden, weight, targets, self.lab.kernels), (hidden, weight)
            ),
            flops=6 * n * c * v,
            repeats=10,
            kind=None,
        )

    def embedding(self):
        table = self.random(self.shape.vocab_size, self.shape.h_dim, grad=True)
        ids = torch.randint(
            self.shape.vocab_size, (self.rows, self.shape.seq_len), device=self.lab.device
        )
        self.take("embedding, forward", lambda: F.embedding(ids, table), moved=2 * self.unit)
        self.take(
            "embedding, backward", self.backward(F.embedding(ids, table), (table,)), moved=self.unit
        )

    def attention(self):
        s = self.shape
        packed = self.random(self.rows, s.seq_len, 3, s.n_heads, s.head_dim)
        q, k, v = (
            part.detach().requires_grad_() for part in packed.permute(2, 0, 3, 1, 4).unbind(0)
        )
        flops = 4 * self.rows * s.n_heads * s.seq_len * (s.seq_len + 1) / 2 * s.head_dim
        for backend in (
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        ):
            name = f"attention by {backend.name.removesuffix('_ATTENTION').lower()}"
            with (
                self.lab.attempt("operations", preset=self.preset, what=name),
                sdpa_kernel(backend),
            ):
                self._attention(name, (q, k, v), flops)

    def _attention(self, name, qkv, flops):
        def forward():
            return F.scaled_dot_product_attention(*qkv, is_causal=True)

        try:
            result = forward()
        except RuntimeError as error:
            if not refused(error):
                raise
            self.lab.row("operations", preset=self.preset, what=name, failed="torch has none here")
            return
        self.take(f"{name}, forward", forward, flops=flops, kind=ATTENTION)
        backward = self.backward(result, qkv)
        self.take(f"{name}, backward", backward, flops=2.5 * flops, kind=ATTENTION_BACKWARD)
        self.lab.row(
            "host",
            what=f"{name}, {self.preset}",
            microseconds=self.lab.host_microseconds(forward, 50),
        )

    def copies(self):
        s = self.shape
        parts = [
            self.random(self.rows, s.seq_len, s.n_heads, s.head_dim).transpose(1, 2)
            for _ in range(3)
        ]
        moved = 6 * parts[0].nbytes
        self.take(
            "gradients of q, k, v into one, by cat",
            lambda: torch.cat([part.transpose(1, 2).reshape(self.n, -1) for part in parts], 1),
            moved=moved,
        )
        self.take(
            "gradients of q, k, v into one, by stack",
            lambda: torch.stack(parts).permute(1, 3, 0, 2, 4).reshape(self.n, -1),
            moved=moved,
        )


def _norm_of_gradient(lab):
    """The gradient's norm, in one pass over all tensors; whether it is finite, tensor by tensor."""
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in GPT(lab.shape("small"), None).parameters()]
    gradients = [torch.randn(size, device=lab.device).to(DTYPE) for size in sizes]

    def by_tensor():
        bad = torch.zeros(1, device=lab.device)
        for gradient in gradients:
            bad += (
                torch.isfinite(gradient.amax())
                .logical_and(torch.isfinite(gradient.amin()))
                .logical_not()
            )
        return bad.item()

    moved = 2 * sum(sizes)
    for what, work in (
        ("gradient finite, tensor by tensor", by_tensor),
        (
            "norm of the gradient, all tensors at once",
            lambda: torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)).norm(),
        ),
    ):
        ms = lab.milliseconds(work, 10)
        lab.row(
            "operations",
            preset="small",
            what=what,
            ms=ms,
            flops_per_second=None,
            bytes_per_second=1e3 * moved / ms,
        )

"""The kernels that tools/kernel_gates.py compiles, launched as a training run launches them."""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/kernel_gates.py`: run that")

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import NamedTuple

H_DIMS = [768, 1024, 1536, 2048, 4096, 8192]
MLP_DIMS = [3072, 4096, 6144, 8192, 16384, 32768]
HEAD_DIM = 64
VOCAB_SIZE = 16384
ROWS = 64


class Case(NamedTuple):
    """A kernel as the training run launches it: launch(dtype) reaches module.kernel with its
    arguments."""

    name: str
    width: int
    module: ModuleType
    kernel: str
    launch: Callable


def cases() -> Iterator[Case]:
    """All kernels at all widths."""
    yield from norm_cases()
    yield from sum_cases()
    yield from gelu_cases()
    yield from heads_cases()
    yield from entropy_cases()
    yield from embedding_cases()


def norm_cases() -> Iterator[Case]:
    import torch

    from gpt.kernels import layer_norm

    def forward(width, added, biased, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        weight = torch.empty(width, dtype=dtype)
        x_bias = weight if biased else None
        residual = torch.empty_like(x) if added else None
        stats = torch.empty(2, ROWS)
        layer_norm.launch_forward(x, x_bias, residual, weight, weight, x, residual, stats, 1e-5)

    def backward(width, added, biased, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        weight = torch.empty(width, dtype=dtype)
        grad_total = torch.empty_like(x) if added else None
        stats = torch.empty(2, ROWS)
        partial_sums = torch.empty(3 if biased else 2, 4, width)
        layer_norm.launch_backward(x, grad_total, x, weight, stats, x, partial_sums, 16)

    directions = {"forward": forward, "backward": backward}
    variants = {
        "add_bias_layer_norm": (True, True),
        "add_layer_norm": (True, False),
        "layer_norm": (False, False),
    }
    for width in H_DIMS:
        for name, (added, biased) in variants.items():
            for direction, launch in directions.items():
                kernel = f"_layer_norm_{direction}_kernel"
                launch_at_width = partial(launch, width, added, biased)
                yield Case(f"{name} {direction}", width, layer_norm, kernel, launch_at_width)
        # whose sum goes nowhere else
        launch_last = partial(backward, width, False, True)
        kernel = "_layer_norm_backward_kernel"
        yield Case("last layer_norm backward", width, layer_norm, kernel, launch_last)


def sum_cases() -> Iterator[Case]:
    import torch

    from gpt.kernels import partial_sums

    def launch(width, dtype):
        sums = torch.empty(3, 4, width)
        partial_sums.launch(sums, torch.empty(3, width, dtype=dtype))

    for width in H_DIMS:
        launch_at_width = partial(launch, width)
        yield Case("partial sums", width, partial_sums, "_finish_kernel", launch_at_width)


def gelu_cases() -> Iterator[Case]:
    import torch

    from gpt.kernels import gelu

    def forward(width, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        gelu.launch_forward(x, x[0], x)

    def backward(width, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        gelu.launch_backward(x, x, x[0], x, torch.empty(4, width), 16)

    directions = {"forward": forward, "backward": backward}
    for width in MLP_DIMS:
        for direction, launch in directions.items():
            kernel = f"_gelu_{direction}_kernel"
            yield Case(f"bias_gelu {direction}", width, gelu, kernel, partial(launch, width))


def heads_cases() -> Iterator[Case]:
    import torch

    from gpt.kernels import heads

    def backward(width, dtype):
        grad = torch.empty(ROWS, width // HEAD_DIM, HEAD_DIM, dtype=dtype)
        packed = torch.empty(ROWS, 3 * width, dtype=dtype)
        heads.launch([grad] * 3, packed, torch.empty(4, 3 * width), 16)

    for width in H_DIMS:
        yield Case("heads backward", width, heads, "_pack_kernel", partial(backward, width))


def entropy_cases() -> Iterator[Case]:
    import torch

    from gpt.kernels import cross_entropy

    def launch(want_rank, want_gradient, dtype):
        logits = torch.empty(ROWS, VOCAB_SIZE, dtype=dtype)
        targets = torch.empty(ROWS, dtype=torch.int64)
        ranks = targets if want_rank else None
        cross_entropy.launch(logits, targets, torch.empty(ROWS), ranks, 1024.0, want_gradient)

    results = {"gradient": (False, True), "nats": (False, False), "rank": (True, False)}
    for name, (want_rank, want_gradient) in results.items():
        launch_for_result = partial(launch, want_rank, want_gradient)
        kernel = "_cross_entropy_kernel"
        yield Case(f"cross_entropy {name}", VOCAB_SIZE, cross_entropy, kernel, launch_for_result)


def embedding_cases() -> Iterator[Case]:
    import torch

    from gpt.kernels import embedding

    vocab_size = 1024

    def forward(width, dtype):
        weight = torch.empty(vocab_size, width, dtype=dtype)
        tokens = torch.empty(2, ROWS // 2, dtype=torch.int64)
        keys = torch.empty(ROWS, dtype=torch.int16)
        result = torch.empty(ROWS // 2 * 2, width, dtype=dtype)
        embedding.launch_forward(tokens, weight, weight[: ROWS // 2], 2.5, result, keys)

    def positions(width, dtype):
        grad = torch.empty(ROWS, width, dtype=dtype)
        embedding.launch_positions_backward(grad, grad[: ROWS // 2])

    def runs_and_weight(width, dtype):
        grad = torch.empty(ROWS, width, dtype=dtype)
        keys = torch.empty(ROWS, dtype=torch.int16)
        order = torch.empty(ROWS, dtype=torch.int64)
        first_of_id = torch.empty(vocab_size + 1, dtype=torch.int32)
        chunk_sums = torch.empty(ROWS // embedding.CHUNK, width)
        return grad, keys, order, first_of_id, chunk_sums

    def runs(width, dtype):
        embedding.launch_runs(*runs_and_weight(width, dtype))

    def weight(width, dtype):
        grad, _, order, first_of_id, chunk_sums = runs_and_weight(width, dtype)
        grad_weight = torch.empty(vocab_size, width, dtype=dtype)
        embedding.launch_weight_backward(grad, order, first_of_id, chunk_sums, 2.5, grad_weight)

    kernels = {
        "embed forward": ("_embed_forward_kernel", forward),
        "embed backward positions": ("_positions_backward_kernel", positions),
        "embed backward runs": ("_runs_kernel", runs),
        "embed backward weight": ("_weight_backward_kernel", weight),
    }
    for width in H_DIMS:
        for name, (kernel, launch) in kernels.items():
            yield Case(name, width, embedding, kernel, partial(launch, width))

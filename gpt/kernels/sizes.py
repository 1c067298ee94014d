"""Sizes that kernels ask of a model, and that they cut their work into. Needs no torch."""

from typing import Protocol

# Elements of one chunk of the output layer's logits, by device type. On a CPU a chunk should stay
# near the caches; in bf16, whose softmax cuts it up once more, larger ones save sums of gradients.
# A GPU wants all rows in one, for which no gradients of chunks are added up: 32 x 512 tokens at
# vocabulary 16,384 in half a GiB.
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cpu in bf16": 1 << 25, "default": 1 << 28}


class Widths(Protocol):
    """A model's, as gpt.config.shape.ModelConfig has them."""

    @property
    def h_dim(self) -> int: ...

    @property
    def mlp_dim(self) -> int: ...

    @property
    def n_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

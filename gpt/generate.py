"""Text from a model, token by token, with the keys and values of earlier tokens kept.

The model is a gpt.model.GPT as it is: the pass with a cache goes through its submodules.
"""

import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.kernels.attention import split_heads

# Not cuDNN's, which makes a plan for each shape: the keys are one more with every token.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Context:
    """A growing context and the logits of its next token.

    Positions are learned, so it holds at most seq_len tokens. Where it would hold more, it goes on
    with its latter half (`cut` counts how often), whose keys and values are computed again, since
    they depend on the positions.
    """

    def __init__(self, model):
        self._model = model
        config = model.config
        weight = model.head.weight
        shape = (config.n_layers, 1, config.n_heads, config.seq_len, config.head_dim)
        self._keys, self._values = (
            torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2)
        )
        self.tokens = []
        self.cut = 0

    @torch.no_grad()
    def append(self, tokens) -> torch.Tensor:
        """Logits (V,) after these further token ids, fp32 on the CPU."""
        seq_len = self._model.config.seq_len
        if self.tokens and len(tokens) == 1 and len(self.tokens) < seq_len:
            self.tokens += tokens
            return self._forward(tokens, len(self.tokens) - 1)
        self.tokens += tokens
        if len(self.tokens) > seq_len:
            self.tokens = self.tokens[-max(1, seq_len // 2) :]
            self.cut = self.cut + 1
        return self._forward(self.tokens, 0)

    def _forward(self, tokens, start):
        """Computes `tokens` at the positions from `start` on; those before are in the cache, and if
        `start` is not 0 there is one token only."""
        model, device = self._model, self._model.head.weight.device
        positions = torch.arange(start, start + len(tokens), device=device)
        tokens = torch.tensor(tokens, device=device)[None]
        stream = model.token_embedding(tokens) * math.sqrt(
            model.config.h_dim
        ) + model.position_embedding(positions)
        branch = None
        with sdpa_kernel(BACKENDS):
            for layer, block in enumerate(model.blocks):
                x, stream = block.ln1(branch, stream)  # (1, T, C)
                x, stream = block.ln2(self._attend(block.attn, layer, start, x), stream)
                branch = block.mlp(x)
        x, _ = model.ln_f(branch[:, -1], stream[:, -1])
        return model.head(x)[0].float().cpu()

    def _attend(self, attn, layer, start, x):
        length = x.shape[1]
        q, k, v = split_heads(attn.qkv(x), attn.n_heads)  # each (1, H, T, D)
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, start : start + length], values[:, :, start : start + length] = k, v
        seen = slice(0, start + length)
        y = F.scaled_dot_product_attention(
            q, keys[:, :, seen], values[:, :, seen], is_causal=start == 0
        )
        return attn.c_proj(y.transpose(1, 2).reshape(1, length, -1))


def choose(logits, temperature: float, top_k: int | None, top_p: float | None, generator) -> int:
    """An id drawn from softmax(logits / temperature); temperature 0 takes the largest logit.
    logits: (V,).

    top_k: only among the k largest. top_p: only among the likeliest whose probabilities reach p
    (Holtzman et al., arXiv 1904.09751); of both, whatever leaves fewer.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.double()
    # 0 first, however cold
    logits, ids = torch.sort((logits - logits.max()) / temperature, descending=True, stable=True)
    logits, ids = logits[:top_k], ids[:top_k]
    probabilities = logits.softmax(0)
    if top_p is not None:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[before < top_p]  # the likeliest always
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def generate(
    context: Context,
    prompt,
    count: int,
    eod_id: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
):
    """Yields up to `count` ids that go on from the ids of `prompt` (one at least), to before an
    end-of-document id.

    The same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = context.append(list(prompt))
    for left in range(count, 0, -1):
        token = choose(logits, temperature, top_k, top_p, generator)
        if token == eod_id:
            return
        yield token
        if left > 1:
            logits = context.append([token])

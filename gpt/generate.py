"""Text from a model, token by token.

Of a gpt.model.GPT the keys and values of earlier tokens are kept: the pass with a cache goes
through its embeddings, blocks and head, and brings an attention of its own. A model of a model file
computes the whole context anew for every token.
"""

import copy
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.architecture.architecture import Model
from gpt.architecture.language_model import LanguageModel
from gpt.errors import UserError, in_brief
from gpt.model import GPT

# Not cuDNN's, which makes a plan for each shape: the keys are one more with every token.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


# tokens by which the pass with a cache is held against the model, and how far logits may differ,
# relative to the largest
CHECKED_TOKENS = 32
TOLERANCE = 1e-4


class Context:
    """A growing context and the logits of its next token.

    Positions are learned, so it holds at most seq_len tokens. Where it would hold more, it goes on
    with its latter half (`cut` counts how often), whose keys and values are computed again, since
    they depend on the positions.
    """

    def __init__(self, model: GPT):
        self._model = model
        config = model.config
        weight = model.head.weight
        shape = (config.n_layers, 1, config.n_heads, config.seq_len, config.head_dim)
        self._keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self._values = torch.empty_like(self._keys)
        self.tokens: list[int] = []
        self.cut = 0

    @torch.no_grad()
    def append(self, tokens: list[int]) -> Tensor:
        """Logits (V,) after these further token ids, fp32 on the CPU."""
        seq_len = self._model.config.seq_len
        if self.tokens and len(tokens) == 1 and len(self.tokens) < seq_len:
            self.tokens += tokens
            return self._forward(tokens, len(self.tokens) - 1)
        self.tokens += tokens
        if len(self.tokens) > seq_len:
            self.tokens = self.tokens[-max(1, seq_len // 2) :]
            self.cut += 1
        return self._forward(self.tokens, 0)

    def _forward(self, tokens: list[int], start: int) -> Tensor:
        """Computes `tokens` at the positions from `start` on; those before are in the cache, and if
        `start` is not 0 there is one token only."""
        model = self._model
        device = model.head.weight.device
        ids = torch.tensor(tokens, device=device)[None]
        stream = model.embed(ids, start)  # (1, T, C)
        branch: Tensor | None = None
        bias: Tensor | None = None
        with sdpa_kernel(BACKENDS):
            for layer, block in enumerate(model.blocks):
                attend = partial(self._attend, layer, start)
                branch, stream, bias = block(branch, stream, bias, attend=attend)
        assert branch is not None
        hidden, _ = model.ln_f(branch[:, -1], stream[:, -1], bias)
        return model.head(hidden)[0].float().cpu()

    def _attend(self, layer: int, start: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention of one block, as gpt.kernels.attention.causal_attention's, to all tokens so
        far. q, k, v: (1, H, T, D) of the tokens from `start` on."""
        end = start + q.shape[2]
        keys = self._keys[layer][:, :, :end]
        values = self._values[layer][:, :, :end]
        keys[:, :, start:] = k
        values[:, :, start:] = v
        y = F.scaled_dot_product_attention(q, keys, values, is_causal=start == 0)
        return y.transpose(1, 2).reshape(1, end - start, -1)


class RecomputedContext:
    """The same of any other model: the whole context goes through it again with every token."""

    def __init__(self, model: LanguageModel):
        self._model = model
        self._device = next(model.parameters()).device
        self.tokens: list[int] = []
        self.cut = 0

    @torch.no_grad()
    def append(self, tokens: list[int]) -> Tensor:
        """As Context's. Raises UserError where the model cannot compute them."""
        seq_len = self._model.config.seq_len
        self.tokens += tokens
        if len(self.tokens) > seq_len:
            self.tokens = self.tokens[-max(1, seq_len // 2) :]
            self.cut += 1
        ids = torch.tensor(self.tokens, device=self._device)[None]
        last = torch.tensor([0], device=self._device), torch.tensor([-1], device=self._device)
        logits = self._model(ids, scored=last)[0].float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise UserError(
                f"{self._model.code.path}: logits after {len(self.tokens)} tokens are not finite",
                mend="tools/check_model.py tries a model file on its own",
            )
        return logits


def context_of(model: Model) -> Context | RecomputedContext:
    """An empty context of a model. Raises UserError where its pass with a cache would compute
    something else than the model does."""
    if isinstance(model, LanguageModel):
        return RecomputedContext(model)
    require_same_function(model)
    return Context(model)


def require_same_function(model: GPT) -> None:
    """Raise UserError unless the pass with a cache computes what model(tokens) does, as it does not
    where the model's code was changed."""
    length = min(model.config.seq_len, CHECKED_TOKENS)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
    try:
        difference = _difference(model, tokens)
        if not difference <= TOLERANCE:
            # weights can be such that fp32 carries few digits
            difference = _difference(copy.deepcopy(model).double(), tokens)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError, LookupError) as error:
        raise UserError(
            f"text cannot be drawn from this model, whose code (gpt/model.py) is not the one that"
            f" gpt/generate.py goes through ({in_brief(error)})",
            mend="change the pass with a cache there alike",
        ) from error
    if not difference <= TOLERANCE:
        raise UserError(
            f"the pass with a cache of gpt/generate.py gives other logits than the model's own code"
            f" (gpt/model.py), by {difference:.1e} of the largest",
            mend="change it there alike: text would be drawn from another model",
        )


@torch.no_grad()
def _difference(model: GPT, tokens: list[int]) -> float:
    """Largest difference of the last token's logits, relative to the largest logit."""
    ids = torch.tensor(tokens, device=model.head.weight.device)
    expected = model(ids[None])[0, -1].float().cpu()
    context = Context(model)
    logits = context.append(tokens[:-2] or tokens)
    for token in tokens[len(context.tokens) :]:
        logits = context.append([token])
    return float((logits - expected).abs().max() / expected.abs().max().clamp(min=1))


def choose(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> int:
    """An id drawn from softmax(logits / temperature); temperature 0 takes the largest logit.
    logits: (V,).

    top_k: only among the k largest. top_p: only among the likeliest whose probabilities reach p
    (Holtzman et al., arXiv 1904.09751); of both, whatever leaves fewer.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.double()
    # divided when the largest is 0, which no temperature, however cold, sends out of range
    scaled = (logits - logits.max()) / temperature
    scaled, ids = torch.sort(scaled, descending=True, stable=True)
    probabilities = scaled[:top_k].softmax(0)
    if top_p is not None:
        likelier = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[likelier < top_p]  # the likeliest always
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def generate(
    context: Context | RecomputedContext,
    prompt: list[int],
    count: int,
    eod_id: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yields up to `count` ids that go on from the ids of `prompt` (one at least), to before an
    end-of-document id.

    The same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = context.append(list(prompt))
    for remaining in range(count, 0, -1):
        token = choose(logits, temperature, top_k, top_p, generator)
        if token == eod_id:
            return
        yield token
        if remaining > 1:
            logits = context.append([token])

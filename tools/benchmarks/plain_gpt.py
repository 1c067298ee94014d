"""The same model as gpt/model.py written in the most obvious way, for tools/bench.py to compare
with: attention by two matrix products with a softmax between them, all logits of a batch at once,
torch's own LayerNorm, GELU and cross-entropy. And as PyTorch's users write it today.
"""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench.py step`: run that")

import math

import torch
import torch.nn.functional as F
from torch import nn


class PlainGPT(nn.Module):
    """Takes the parameters of a gpt.model.GPT by name; forward(tokens, targets) returns the same
    loss, logits(tokens) all logits."""

    def __init__(self, model):
        super().__init__()
        self.config = model.config
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(value.detach().clone())
                for name, value in model.named_parameters()
            }
        )
        future = torch.ones(model.config.seq_len, model.config.seq_len, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)

    def _linear(self, x, name):
        return F.linear(x, self.weights[f"{name}/weight"], self.weights[f"{name}/bias"])

    def _norm(self, x, name):
        return F.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}/weight"], self.weights[f"{name}/bias"], 1e-5
        )

    def _attention(self, x, name):
        batch, length, _ = x.shape
        heads = (batch, length, self.config.n_heads, self.config.head_dim)
        q, k, v = (
            part.reshape(heads).transpose(1, 2)
            for part in self._linear(x, f"{name}/qkv").chunk(3, -1)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.config.head_dim)
        y = scores.masked_fill(self.future[:length, :length], float("-inf")).softmax(-1) @ v
        return self._linear(y.transpose(1, 2).reshape(batch, length, -1), f"{name}/c_proj")

    def forward(self, tokens, targets):
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())

    def logits(self, tokens):  # (B, T) -> (B, T, V)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = F.embedding(tokens, self.weights["token_embedding/weight"]) * math.sqrt(
            self.config.h_dim
        )
        x = x + F.embedding(positions, self.weights["position_embedding/weight"])
        for index in range(self.config.n_layers):
            block = f"blocks/{index}"
            x = x + self._attention(self._norm(x, f"{block}/ln1"), f"{block}/attn")
            hidden = F.gelu(
                self._linear(self._norm(x, f"{block}/ln2"), f"{block}/mlp/c_fc"), approximate="tanh"
            )
            x = x + self._linear(hidden, f"{block}/mlp/c_proj")
        return self._norm(x, "ln_f") @ self.weights["head/weight"].t()


class UsualGPT(PlainGPT):
    """PlainGPT as PyTorch's users write it for a GPU: fused attention, and the loss in fp32."""

    def _attention(self, x, name):
        batch, length, _ = x.shape
        heads = (batch, length, self.config.n_heads, self.config.head_dim)
        q, k, v = (
            part.view(heads).transpose(1, 2) for part in self._linear(x, f"{name}/qkv").chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._linear(y.transpose(1, 2).reshape(batch, length, -1), f"{name}/c_proj")

    def forward(self, tokens, targets):
        return F.cross_entropy(self.logits(tokens).flatten(0, 1).float(), targets.flatten())


class MixedGPT(nn.Module):
    """A UsualGPT as nanoGPT trains: weights and residual stream in fp32, products in `dtype` by
    autocast. Called as that is."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.inner = inner
        self.dtype = dtype

    def forward(self, tokens, targets):
        is_mixed = self.dtype != torch.float32
        with torch.autocast(tokens.device.type, self.dtype, enabled=is_mixed):
            return self.inner(tokens, targets)

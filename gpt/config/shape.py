"""The shape of a model: presets, parameters, FLOPs."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpt.config.keys import Key
from gpt.parsing import parse_yaml

# what a preset tells of a shape
PRESET_KEYS = {
    "n_layers": Key(
        int, None, "transformer blocks; overrides the preset's", minimum=1, maximum=10_000
    ),
    "h_dim": Key(
        int, None, "width of the residual stream; overrides the preset's", minimum=1, maximum=10**6
    ),
    "mlp_dim": Key(
        int, None, "hidden width of the MLPs; overrides the preset's", minimum=1, maximum=10**6
    ),
    "n_heads": Key(int, None, "attention heads; overrides the preset's", minimum=1, maximum=10**5),
    "head_dim": Key(
        int, None, "width of one head; overrides the preset's", minimum=1, maximum=10**5
    ),
}
# the fields of a ModelConfig as keys of the block "gpt"
SHAPE_KEYS = {
    **PRESET_KEYS,
    "vocab_size": Key(
        int, None, "ids of the tokenizer; where absent the dataset's", minimum=2, maximum=2**24
    ),
    "seq_len": Key(
        int, 512, "tokens of context, in training and evaluation", minimum=2, maximum=2**24
    ),
}


@cache
def load_presets() -> dict[str, dict[str, int]]:
    """Model shapes by name: {preset: {n_layers, h_dim, mlp_dim, n_heads, head_dim}}, which nobody
    changes."""
    return parse_yaml(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. `n_heads * head_dim` need not equal `h_dim`."""

    n_layers: int
    h_dim: int  # width of the residual stream
    mlp_dim: int  # width of the hidden layer of each MLP
    n_heads: int
    head_dim: int  # width of q, k and v of one head
    vocab_size: int
    seq_len: int  # longest context, in tokens: the number of learned positions

    def parameters(self) -> int:
        """Number of trainable parameters, biases, LayerNorms and both embeddings included."""
        embeddings = (self.vocab_size + self.seq_len) * self.h_dim
        return (
            embeddings
            + self.n_layers * self.block_parameters()
            + 2 * self.h_dim
            + self.vocab_size * self.h_dim
        )

    def block_parameters(self) -> int:
        """Number of trainable parameters of one block."""
        attention = self.n_heads * self.head_dim
        return (
            4 * self.h_dim  # two LayerNorms
            + 3 * attention * (self.h_dim + 1)  # q, k, v
            + (attention + 1) * self.h_dim  # attention output
            + (self.h_dim + 1) * self.mlp_dim
            + (self.mlp_dim + 1) * self.h_dim
        )

    def matmul_flops_per_token(self, causal: bool = True) -> int:
        """FLOPs of one token's forward and backward matrix products; look-ups, norms and
        activations are not counted.

        2 FLOPs per weight and token in the forward pass and 4 in the backward pass (Kaplan et al.,
        arXiv 2001.08361, table 1), over the weights of the GEMMs, the head included. Attention
        scores and their product with v add 2 * 2 * seq_len * n_heads * head_dim per layer and pass,
        halved since a causal query sees half of the keys on average (as Dao, arXiv 2307.08691,
        section 4.1, counts them). Not causal: not halved, as PaLM (arXiv 2204.02311, appendix B),
        the Languini Kitchen and torch's FlopCounterMode count. What is computed twice, under
        activation checkpointing or in a fused attention's backward pass, counts once.
        """
        attention = self.n_heads * self.head_dim
        weights = self.n_layers * (4 * attention * self.h_dim + 2 * self.h_dim * self.mlp_dim)
        weights += self.vocab_size * self.h_dim
        scores_and_values = self.n_layers * (2 if causal else 4) * self.seq_len * attention
        return 3 * (2 * weights + scores_and_values)


def family(config: dict) -> str:
    """Name of the model's shape in a config.yaml: that of the preset which has it, else layers x
    h_dim, with what does not follow from them by the usual proportions (MLP 4 times as wide, heads
    as wide as the stream together)."""
    shape = {name: config["model"][name] for name in PRESET_KEYS}
    for preset, preset_shape in load_presets().items():
        if preset_shape == shape:
            return preset
    width = shape["h_dim"]
    attention = shape["n_heads"] * shape["head_dim"]
    name = f"{shape['n_layers']}x{width}"
    if shape["mlp_dim"] != 4 * width:
        name += f"-mlp{shape['mlp_dim']}"
    if attention != width:
        name += f"-attn{attention}"
    return name

"""Models of the files that come with the trainer, small, with values to compute on."""

import torch
from torch import nn

from gpt.architecture.architecture import Architecture, set_parameter
from gpt.config.own_code import read_own_code
from gpt.config.shape import ModelConfig

SHAPE = ModelConfig(
    n_layers=2, h_dim=24, mlp_dim=48, n_heads=4, head_dim=6, vocab_size=61, seq_len=20
)
EVERY_OPTION = {
    "rope": 500,
    "rmsnorm": True,
    "qk_norm": True,
    "activation": "swiglu",
    "zero_init": True,
    "kv_heads": 2,
    "tied": True,
    "logit_cap": 30,
    "bias": False,
}
# each option of `modern` by itself, and all together
OPTIONS = [{}, *({name: value} for name, value in EVERY_OPTION.items()), EVERY_OPTION]
OPTIONS.insert(5, {"activation": "relu2"})


def architecture(variant, shape=SHAPE, **options):
    """variant: a file's name, or None for the GPT."""
    code = None if variant is None else read_own_code(variant, "gpt.model_file")
    return Architecture(shape, code, options)


def first_values(model, seed=0):
    """{parameter's name: value}, without the prefix that a model file's have."""
    return {name.removeprefix("body."): value for name, value in model.initial_weights(seed)}


def trainable(variant, dtype=torch.float32, shape=SHAPE, spread=0.0, kernels="torch", **options):
    """A model with its first values, ready to train. spread: standard deviation of what is added to
    each, so that all of them matter."""
    model = architecture(variant, shape, **options).build(kernels)
    generator = torch.Generator().manual_seed(1)
    for name, values in model.initial_weights(0):
        noise = torch.randn(values.shape, generator=generator)
        set_parameter(model, name, nn.Parameter((values + spread * noise).to(dtype)))
    return model


def batch(shape=SHAPE, rows=3, seed=2):
    """(tokens, targets), each (rows, seq_len)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(shape.vocab_size, (rows, shape.seq_len + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]

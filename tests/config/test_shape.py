"""FLOPs by formula against a count of every product."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt.config.shape import ModelConfig, load_presets
from gpt.model import GPT
from tools.benchmarks.plain_gpt import PlainGPT


def test_flops_against_a_count_of_every_product():
    """Two FLOPs per multiply-add of one sequence's forward pass, three times that with the backward
    pass."""
    c = ModelConfig(
        n_layers=2, h_dim=6, mlp_dim=10, n_heads=2, head_dim=4, vocab_size=11, seq_len=8
    )
    products = 0
    for _ in range(c.n_layers):
        products += (
            c.seq_len * c.h_dim * 3 * 8
            + c.seq_len * 8 * c.h_dim
            + 2 * c.seq_len * c.h_dim * c.mlp_dim
        )
        # scores and values, half of them masked
        products += 2 * c.n_heads * c.head_dim * c.seq_len**2 / 2
    products += c.seq_len * c.h_dim * c.vocab_size
    assert c.matmul_flops_per_token() == 3 * 2 * products / c.seq_len


@pytest.mark.parametrize("preset", load_presets())
def test_flops_are_what_torch_counts(preset):
    """Of the model in its plainest form, which computes all scores; on the meta device, which knows
    shapes alone."""
    c = ModelConfig(**load_presets()[preset], vocab_size=16384, seq_len=512)
    with torch.device("meta"):
        model = PlainGPT(GPT(c, seed=None))
        tokens = torch.zeros(2, 512, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(tokens, tokens).backward()
    assert counter.get_total_flops() == pytest.approx(
        2 * 512 * c.matmul_flops_per_token(causal=False), rel=1e-9
    )
    scores = c.matmul_flops_per_token(causal=False) - c.matmul_flops_per_token()
    # the half that the causal mask hides
    assert scores == 3 * c.n_layers * 2 * 512 * c.n_heads * c.head_dim

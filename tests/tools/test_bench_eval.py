"""The bar of `tools/bench.py eval`: what a window's matrix products cost."""

from gpt.config.shape import ModelConfig
from gpt.data.windows import FIRST_TOKEN, Window
from tools.benchmarks.evaluator import products

SHAPE = ModelConfig(2, h_dim=8, mlp_dim=32, n_heads=2, head_dim=4, vocab_size=100, seq_len=16)


def test_products_of_a_window_by_hand():
    """8 x 24 + 8 x 8 weights in attention, 2 x 8 x 32 in an MLP; scores and values of 2 layers,
    causal: half of 2 x 2 x 8 x 16 each. Of 16 tokens 4 go through the last MLP and the head."""
    attention = 16 * 2 * (2 * (192 + 64) + 2 * 8 * 16)
    mlps = (16 + 4) * 2 * 512
    head = 4 * 2 * 8 * 100
    assert products(SHAPE, Window(64, 16, 4)) == attention + mlps + head


def test_a_short_window_attends_to_less():
    one = 2 * (2 * (192 + 64) + 2 * 8) + 2 * 2 * 512 + 2 * 8 * 100
    assert products(SHAPE, FIRST_TOKEN) == one

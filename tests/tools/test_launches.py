"""What a GPU is given for a micro-batch, counted on the meta device: ceilings, so that no cast,
copy or sum comes back unseen; and sums by hand."""

import json

import pytest
import torch
from conftest import ROOT

import gpt.model
from gpt.config.shape import ModelConfig, load_presets
from tools.benchmarks import launches, paper
from tools.benchmarks.launches import kernels, moved

pytest.importorskip("triton")

SMALL = ModelConfig(**load_presets()["small"], vocab_size=16384, seq_len=512)
ROWS = 32
# Of forward and backward of `small` with 32 x 512 tokens in bf16. Raise them only for what is worth
# it on a GPU, and say there why.
MOST_KERNELS = 355
MOST_BYTES = 35.3e9
MOST_BYTES_OF_ADDITIONS = 0.67e9  # to the gradients of earlier micro-batches: 6 a parameter
BLOCK = ModelConfig(1, 768, 3072, 12, 64, vocab_size=64, seq_len=64)


@pytest.fixture(scope="module")
def small():
    return launches.micro_batch(SMALL, ROWS)


def test_small_stays_below_its_ceilings(small):
    both = small.forward + small.backward
    print(f"{kernels(both)} kernels, {moved(both) / 1e9:.3f} GB")
    assert kernels(both) <= MOST_KERNELS and moved(both) <= MOST_BYTES
    assert kernels(small.additions) == 149 and moved(small.additions) <= MOST_BYTES_OF_ADDITIONS


def test_committed_figures_are_of_these_launches(small):
    """If not: `tools/bench.py --paper --accumulation 4 --json FILE` writes them anew."""
    both = small.forward + small.backward
    facts = json.loads((ROOT / "tools/bench_results/paper_small.json").read_text(encoding="utf-8"))
    counted = [facts["kernels_of_a_micro_batch"], facts["bytes_of_a_micro_batch"]]
    assert counted == [kernels(both), moved(both)]
    assert f"{moved(both) / 1e9:.1f} GB" in paper.text(facts)


def test_products_are_those_of_the_shape(small):
    """By the formula of gpt.config.shape, which counts attention's backward pass as two products a
    product of forward, not two and a half."""
    both = small.forward + small.backward
    products = sum(launch.flops for launch in both if launch.size)
    attention = 3 * sum(launch.flops for launch in both if launch.kind == launches.ATTENTION)
    tokens = ROWS * SMALL.seq_len
    assert products + attention == tokens * SMALL.matmul_flops_per_token()
    # three products a weight matrix: 12 blocks of 4, and the head
    of_kind = [
        sum(launch.kind == kind for launch in both)
        for kind in (launches.PRODUCT, launches.INPUT_GRADIENT, launches.WEIGHT_GRADIENT)
    ]
    assert of_kind == [49] * 3


def test_bytes_of_the_large_operations_are_those_by_hand(small):
    """In units of one (N, C) matrix in 16 bits: q, k, v and the result forward, and the gradients
    beside them backward; a hidden layer is four."""
    unit = 2 * ROWS * SMALL.seq_len * SMALL.h_dim
    by_name = {}
    for launch in small.forward + small.backward:
        by_name[launch.name] = by_name.get(launch.name, 0) + launch.bytes
    logits = 2 * ROWS * SMALL.seq_len * SMALL.vocab_size
    assert by_name["_scaled_dot_product_flash_attention"] == pytest.approx(48 * unit, rel=0.01)
    backward = by_name["_scaled_dot_product_flash_attention_backward"]
    assert backward == pytest.approx(96 * unit, rel=0.01)
    assert by_name["gelu_forward"] == pytest.approx(96 * unit, rel=0.01)
    assert by_name["gelu_backward"] == pytest.approx(144 * unit, rel=0.03)
    assert by_name["layer_norm_forward"] == pytest.approx(98 * unit, rel=0.01)
    assert by_name["cross_entropy"] == pytest.approx(2 * logits, rel=0.01)


def a_cast(heads):
    return lambda x, *rest: heads(x.float().to(x.dtype), *rest)


def a_copy(heads):
    return lambda *inputs: tuple(part.contiguous() for part in heads(*inputs))


def a_sum(heads):
    def with_a_sum(x, weight, bias, *rest):
        q, k, v = heads(x, weight, bias, *rest)
        torch.sum(q.detach(), (0, 2))
        return q, k, v

    return with_a_sum


@pytest.mark.parametrize("plant", [a_cast, a_copy, a_sum])
def test_what_comes_back_is_seen(plant, monkeypatch):
    """In a block, of which `small` has twelve: a kernel and 25 MB each, beyond its ceilings."""
    before = launches.micro_batch(BLOCK, 256)
    monkeypatch.setattr(gpt.model, "linear_heads", plant(gpt.model.linear_heads))
    after = launches.micro_batch(BLOCK, 256)
    more = [
        measure(after.forward + after.backward) - measure(before.forward + before.backward)
        for measure in (kernels, moved)
    ]
    assert more[0] >= 1 and more[1] >= 2 * 256 * BLOCK.seq_len * BLOCK.h_dim


def test_without_triton_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(launches.triton_shared, "OBSTACLE", ("it is not installed", "install it"))
    with pytest.raises(launches.UserError) as told:
        launches.micro_batch(BLOCK, 1)
    assert "it is not installed" in str(told.value)

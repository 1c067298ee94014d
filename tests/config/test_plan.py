import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt.config.batch import plan_batch
from gpt.config.resolve import ACCUMULATION, BATCH, MICRO, load
from gpt.config.schedule import CosineSchedule
from gpt.config.shape import ModelConfig, load_presets
from gpt.errors import UserError
from gpt.model import GPT
from tools.benchmarks.plain_gpt import PlainGPT

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def published_schedule(steps, max_lr, min_lr, warmup, decay):
    """The baseline's formula: min(s, w)/w * [min + (1 + cos(pi * min(s, d)/d))/2 * (max - min)], in
    long double."""
    s = np.asarray(steps, np.longdouble)
    cosine = np.cos(np.longdouble(np.pi) * np.minimum(s, decay) / decay)
    return np.minimum(s, warmup) / warmup * (min_lr + (1 + cosine) / 2 * (max_lr - min_lr))


def test_schedule_of_24h_is_exact_at_every_step():
    schedule = load(CONFIGS / "24h.json").schedule
    steps = np.arange(1, 36529 + 100)
    wanted = published_schedule(steps, 6e-4, 6e-6, 200, 36529)
    found = np.array([schedule.lr(int(step)) for step in steps])
    assert np.max(np.abs(found - wanted) / wanted) < 1e-12
    assert found[-1] == found[36528] == pytest.approx(6e-6, rel=1e-12)


def test_schedule_at_points_known_by_hand():
    schedule = CosineSchedule(max_lr=1.0, min_lr=0.0, warmup_steps=0, decay_steps=4)
    assert [schedule.lr(s) for s in (2, 4, 5)] == pytest.approx([0.5, 0.0, 0.0], abs=1e-15)
    assert CosineSchedule(1.0, 1.0, 10, 100).lr(1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "given, wanted",
    [
        ((256, None, 8, 1), (256, 32, 8, 1)),
        ((256, None, 8, 8), (256, 4, 8, 8)),
        ((256, 4, None, 8), (256, 4, 8, 8)),
        ((None, 4, 2, 8), (64, 4, 2, 8)),
        ((None, 4, None, 2), (8, 4, 1, 2)),
        ((16, None, None, 2), (16, 8, 1, 2)),
        ((16, 4, 2, 2), (16, 4, 2, 2)),
        ((256, 32, None, 8), (256, 32, 1, 8)),
        ((256, 32, None, 64), (256, 4, 1, 64)),
        ((16, 3, None, 2), (16, 2, 4, 2)),
        ((72, 6, None, 8), (72, 3, 3, 8)),
        ((254, 32, None, 1), (254, 2, 127, 1)),
        ((7, 100, None, 7), (7, 1, 1, 7)),
    ],
)
def test_batch_is_solved(given, wanted):
    plan = plan_batch(*given)
    assert (plan.train_batch_size, plan.micro_size, plan.accumulation, plan.world_size) == wanted
    # beside an accumulation a micro batch is exact
    limits = given[1] if given[2] is None else None
    assert plan.micro_limit == limits


def test_a_limit_takes_the_largest_that_fits():
    """Against a search; one that divides, which DeepSpeed takes too, is taken as it is."""
    for share, limit, ranks in itertools.product(range(1, 61), range(1, 61), (1, 8)):
        plan = plan_batch(share * ranks, limit, None, ranks)
        assert plan.micro_size * plan.accumulation == share and plan.micro_size <= limit
        assert not any(share % larger == 0 for larger in range(plan.micro_size + 1, limit + 1))


@pytest.mark.parametrize(
    "given",
    [
        (256, None, 8, 3),
        (256, None, 512, 1),
        (16, 4, 4, 2),
        (3, None, 1, 4),
        (3, 1, None, 4),
        (256, 32, None, 6),
        (16, 3, 5, 1),
        (3, None, None, 2),
    ],
)
def test_batch_that_does_not_fit_says_what_would(given):
    advice = (
        "(with|so many passes take|train_batch_size must be a multiple of the ranks, for example)"
    )
    with pytest.raises(
        UserError, match=rf"is not (micro batch|a multiple of) .* rank\(s\): {advice}"
    ):
        plan_batch(*given)


def test_batch_advice_is_right():
    with pytest.raises(UserError) as caught:
        plan_batch(24, None, 5, 4)
    assert (
        str(caught.value)
        == "train_batch_size 24 is not a multiple of gradient_accumulation_steps 5 x 4 rank(s):"
        " with 4 rank(s) gradient_accumulation_steps can be 1, 2, 3, 6"
    )
    for accumulation in (1, 2, 3, 6):
        plan_batch(24, None, accumulation, 4)
    with pytest.raises(UserError) as caught:
        plan_batch(256, 64, 2, 8)
    assert str(caught.value).endswith(
        "so many passes take micro batches of 16: set train_micro_batch_size_per_gpu to "
        "that, or leave one of the two out"
    )
    assert plan_batch(256, 16, 2, 8).micro_size == 16


def test_advice_for_ranks_that_do_not_divide():
    with pytest.raises(UserError) as caught:
        plan_batch(256, None, 8, 6)
    assert str(caught.value).endswith(
        "for example 240 or 288; 256 sequences fit 1, 2, 4, 8 rank(s)"
    )
    assert [plan_batch(fitting, None, 8, 6).micro_size for fitting in (240, 288)] == [5, 6]
    with pytest.raises(UserError) as caught:
        plan_batch(256, 32, None, 6)
    assert (
        str(caught.value)
        == "train_batch_size 256 is not a multiple of 6 rank(s): train_batch_size must be a"
        " multiple of the ranks, for example 252 or 258; 256 sequences fit 1, 2, 4, 8 rank(s)"
    )


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


@pytest.mark.parametrize(
    "name, preset, batch, accumulation, steps, speed",
    [
        ("6h", "small", 128, 4, 18265, 55416),
        ("12h", "small", 128, 4, 36529, 55416),
        ("24h", "small", 256, 8, 36529, 55416),
        ("48h", "medium", 256, 32, 21908, 16618),
        ("96h", "medium", 256, 32, 43817, 16618),
    ],
)
def test_compute_classes_are_the_published_ones(name, preset, batch, accumulation, steps, speed):
    config = load(CONFIGS / f"{name}.json")
    options = config.options
    assert (options.preset, config.batch.train_batch_size, config.batch.accumulation) == (
        preset,
        batch,
        accumulation,
    )
    assert options.max_train_steps == config.schedule.decay_steps == steps
    assert options.tokens_per_second == speed
    hours = steps * batch * 512 / speed / 3600
    assert hours == pytest.approx(int(name[:-1]), rel=1e-4)
    assert (config.schedule.max_lr, config.schedule.min_lr, config.schedule.warmup_steps) == (
        6e-4,
        6e-6,
        200,
    )
    assert (options.log_terminal_every, options.eval_every) == (100, 500)
    assert (options.log_grads_every, options.log_ckpt_every) == (1000, 1000)
    adam = config.deepspeed["optimizer"]
    assert (
        adam["type"] == "Adam"
        and adam["params"]["betas"] == [0.9, 0.95]
        and adam["params"]["eps"] == 1e-8
    )
    assert adam["params"]["weight_decay"] == 0 and config.deepspeed["gradient_clipping"] == 0
    assert config.precision == "fp16" and config.deepspeed["fp16"]["loss_scale"] == 0
    assert config.zero_stage == 1
    assert (config.model.seq_len, config.model.vocab_size) == (512, 16384)


SHARED_OUT = {  # file -> micro batch x accumulation on 1, 2, 4, 8 and 64 GPUs
    "6h": [(32, 4), (32, 2), (32, 1), (16, 1), (2, 1)],
    "12h": [(32, 4), (32, 2), (32, 1), (16, 1), (2, 1)],
    "24h": [(32, 8), (32, 4), (32, 2), (32, 1), (4, 1)],
    "48h": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "96h": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "mini": [(32, 4), (32, 2), (32, 1), (16, 1), (2, 1)],
    "large_zero2": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "xl_zero3": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "xl_zero3_offload": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
}


def test_shipped_batches_on_any_number_of_gpus():
    for name, wanted in SHARED_OUT.items():
        for ranks, (micro_size, accumulation) in zip((1, 2, 4, 8, 64), wanted, strict=True):
            config = load(CONFIGS / f"{name}.json", ranks)
            batch, deepspeed = config.batch, config.deepspeed
            found = (batch.micro_size, batch.accumulation)
            assert (
                found == (deepspeed[MICRO], deepspeed[ACCUMULATION]) == (micro_size, accumulation)
            )
            assert micro_size * accumulation * ranks == batch.train_batch_size == deepspeed[BATCH]


def test_every_shipped_config_loads_and_is_plain_json():
    files = sorted(CONFIGS.glob("*.json"))
    assert {f.stem for f in files} >= {"quickstart", "mini", "6h", "12h", "24h", "48h", "96h"}
    for file in files:
        config = load(file)
        assert config.zero_stage >= 1
        assert json.loads(file.read_text())["gradient_clipping"] == 0.0
        assert math.isfinite(config.schedule.lr(1))

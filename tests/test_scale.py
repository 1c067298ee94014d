"""Time on many GPUs, on paper: against closed forms, and against a ring that is played out hop by hop."""

import pytest
from conftest import ROOT, tiny_run

from gpt.command_line import parse_command_line
from gpt.config import load, resolve
from gpt.dry_run import report
from gpt.errors import UserError
from gpt.plan import BatchPlan, ModelConfig
from gpt.scale import HOP_SECONDS, on_ranks, ring, step

MODEL = ModelConfig(n_layers=4, h_dim=64, mlp_dim=256, n_heads=4, head_dim=16, vocab_size=100, seq_len=32)
SIZE = 2 * MODEL.parameters()  # bytes in 16 bits
SLOW_LINK = 1e3  # bytes per second: latencies vanish beside it


def played_ring(size, ranks, bandwidth):
    """Seconds until each rank has every rank's piece: in each round all pass on the piece that they got last."""
    held, seconds = [{rank} for rank in range(ranks)], 0.0
    passing = list(range(ranks))
    while any(len(pieces) < ranks for pieces in held):
        passing = [passing[rank - 1] for rank in range(ranks)]
        for rank, piece in enumerate(passing):
            held[rank].add(piece)
        seconds += HOP_SECONDS + size / ranks / bandwidth
    return seconds


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 1024])
def test_a_ring_takes_the_hops_that_it_has(ranks):
    assert ring(1e9, ranks, 25e9) == pytest.approx(played_ring(1e9, ranks, 25e9))


def communicating(stage, ranks, accumulation=1):
    batch = BatchPlan(ranks * accumulation, 1, accumulation, ranks)
    return step(MODEL, batch, stage, "fp16", 1e6, SLOW_LINK).communicating


@pytest.mark.parametrize("ranks", [2, 4, 1024])
@pytest.mark.parametrize("accumulation", [1, 8])
def test_volumes_of_the_stages(ranks, accumulation):
    once = (ranks - 1) / ranks * SIZE / SLOW_LINK
    expected = [2 * once, 2 * once, (1 + accumulation) * once, 3 * accumulation * once]
    assert [communicating(stage, ranks, accumulation) for stage in range(4)] == pytest.approx(expected, rel=0.01)
    assert [communicating(stage, 1, accumulation) for stage in range(4)] == [0, 0, 0, 0]


def test_a_step_known_by_hand():
    """8 x 32 tokens on 2 GPUs of 64 tokens/s: 2 s. fp32 gradients over a link that takes their bytes in 1 s: half of them
    go out and half come back, in 1 s."""
    batch = BatchPlan(8, 4, 1, 2)
    found = step(MODEL, batch, 0, "fp32", 64.0, 4 * MODEL.parameters())
    assert (found.computing, found.communicating) == pytest.approx((2.0, 1.0), rel=1e-4)
    assert (found.seconds, found.overlapped, found.share, found.efficiency) == pytest.approx((3, 2, 1 / 3, 2 / 3), rel=1e-4)


@pytest.mark.parametrize("batch, ranks, expected", [
    (BatchPlan(256, 32, 8, 1), 4, BatchPlan(256, 32, 2, 4)), (BatchPlan(256, 32, 8, 1), 64, BatchPlan(256, 4, 1, 64)),
    (BatchPlan(72, 6, 12, 1), 8, BatchPlan(72, 3, 3, 8)), (BatchPlan(256, 32, 8, 1), 512, None)])  # fmt: skip
def test_a_batch_on_other_ranks(batch, ranks, expected):
    assert on_ranks(batch, ranks) == expected


def test_the_dry_run_tells_of_1024_gpus():
    config = load(ROOT / "ds_configs/24h.json", 64, {"train_batch_size": 1024})
    lines = report(config, None, interconnect=25.0).splitlines()
    rows = {line[:36].strip(): line[36:].split() for line in lines}
    # 1024 x 512 tokens over 64 GPUs of 55,416 tokens/s; 4 bytes of gradients and weights, 63 of 64 parts of them
    assert float(rows["computing, ms a step"][1]) == pytest.approx(1000 * 1024 * 512 / 64 / 55416, abs=0.1)
    wire, hops = 4 * 110_615_040 * 63 / 64 / 25e9, 2 * 63 * HOP_SECONDS
    assert float(rows["communicating, ms a step"][1]) == pytest.approx(1000 * (wire + hops), abs=0.1)
    assert rows["1 rank(s), 2 x 512 each"] == ["100.0%"] * 4
    efficiencies = [float(value.rstrip("%")) for value in rows["1,024 rank(s), 1 x 1 each"]]
    assert efficiencies == sorted(efficiencies, reverse=True) and 0 < efficiencies[3] < efficiencies[0] < 90


def test_what_cannot_be_estimated_is_said():
    assert "scaling        unknown: set tokens_per_second" in report(resolve(tiny_run(), "tiny"), None, 25.0)
    uneven = resolve(tiny_run(gpt={"tokens_per_second": 1000}), "tiny")
    assert "     16 ranks: train_batch_size 8 is not shared out evenly to so many" in report(uneven, None, 25.0)
    for value in ("0", "-1", "nan", "inf"):
        with pytest.raises(UserError, match="--interconnect takes a positive number of GB/s, beside --dry_run"):
            parse_command_line(["--ds_config", "x.json", "--dry_run", "--interconnect", value])
    with pytest.raises(UserError, match="beside --dry_run"):
        parse_command_line(["--ds_config", "x.json", "--interconnect", "25"])

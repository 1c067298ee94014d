"""Time on many GPUs, on paper: against closed forms, and against a ring that is played out hop by
hop."""

import json
import sys

import pytest
from conftest import ROOT, tiny_run, write_run

from gpt.compute.costs import GPTCosts
from gpt.compute.dry_run import report
from gpt.compute.many_gpus import HOP_SECONDS, on_ranks, ring, step
from gpt.config.batch import BatchPlan
from gpt.config.command_line import parse_command_line
from gpt.config.resolve import load, resolve
from gpt.config.shape import ModelConfig
from gpt.errors import UserError

MODEL = ModelConfig(
    n_layers=4, h_dim=64, mlp_dim=256, n_heads=4, head_dim=16, vocab_size=100, seq_len=32
)
SIZE = 2 * MODEL.parameters()  # bytes in 16 bits
SLOW_LINK = 1e3  # bytes per second: latencies vanish beside it


def played_ring(size, ranks, bandwidth):
    """Seconds until each rank has every rank's piece: in each round all pass on the piece that they
    got last."""
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


def communicating(stage, ranks, accumulation=1, **zero):
    batch = BatchPlan(ranks * accumulation, 1, accumulation, ranks)
    return step(GPTCosts(MODEL), batch, stage, "fp16", 1e6, SLOW_LINK, zero).communicating


@pytest.mark.parametrize("ranks", [2, 4, 1024])
@pytest.mark.parametrize("accumulation", [1, 8])
def test_volumes_of_the_stages(ranks, accumulation):
    once = (ranks - 1) / ranks * SIZE / SLOW_LINK
    expected = [2 * once, 3 * once, (1 + 2 * accumulation) * once, 3 * accumulation * once]
    volumes = [
        communicating(stage, ranks, accumulation, stage3_max_reuse_distance=0) for stage in range(4)
    ]
    assert volumes == pytest.approx(expected, rel=0.01)
    # so small that all stay
    assert communicating(3, ranks, accumulation) == pytest.approx(2 * accumulation * once, rel=0.01)
    half = communicating(3, ranks, accumulation, stage3_max_reuse_distance=MODEL.parameters())
    assert half == pytest.approx(2.5 * accumulation * once, rel=0.01)
    assert [communicating(stage, 1, accumulation) for stage in range(4)] == [0, 0, 0, 0]


def test_a_step_known_by_hand():
    """8 x 32 tokens on 2 GPUs of 64 tokens/s: 2 s. fp32 gradients over a link that takes their
    bytes in 1 s: half of them go out and half come back, in 1 s."""
    batch = BatchPlan(8, 4, 1, 2)
    estimate = step(GPTCosts(MODEL), batch, 0, "fp32", 64.0, 4 * MODEL.parameters(), {})
    assert (estimate.computing, estimate.communicating) == pytest.approx((2.0, 1.0), rel=1e-4)
    assert (
        estimate.seconds,
        estimate.overlapped,
        estimate.share,
        estimate.efficiency,
    ) == pytest.approx((3, 2, 1 / 3, 2 / 3), rel=1e-4)


@pytest.mark.parametrize(
    "launching, seconds, overlapped, efficiency",
    [(0.5, 3.0, 2.0, 2 / 3), (1.0, 3.0, 2.0, 2 / 3), (2.0, 5.0, 4.0, 0.4)],
)
def test_a_gpu_that_waits_for_its_host(launching, seconds, overlapped, efficiency):
    """The step above in two micro-batches of a second: the slower of host and GPU sets the pace."""
    batch = BatchPlan(8, 2, 2, 2)
    estimate = step(GPTCosts(MODEL), batch, 0, "fp32", 64.0, 4 * MODEL.parameters(), {}, launching)
    assert (estimate.computing, estimate.launching) == pytest.approx((2.0, 2 * launching))
    assert (estimate.seconds, estimate.overlapped) == pytest.approx((seconds, overlapped), rel=1e-4)
    assert estimate.efficiency == pytest.approx(efficiency, rel=1e-4)


def test_volumes_are_what_deepspeed_sends(tmp_path, run_command):
    """Counted in its calls of two ranks, whose ring passes on half of everything."""
    runs = []
    expected = []
    once = SIZE / 2 / SLOW_LINK
    for stage, distance in ((0, 0), (1, 0), (2, 0), (3, 0), (3, 10**9)):
        zero = {"stage": stage, "reduce_bucket_size": 20000, "allgather_bucket_size": 20000}
        zero |= (
            {
                "stage3_param_persistence_threshold": 0,
                "stage3_prefetch_bucket_size": 0,
                "stage3_max_reuse_distance": distance,
            }
            if stage == 3
            else {}
        )
        runs.append(
            write_run(
                tmp_path,
                f"{stage}-{distance}",
                zero_optimization=zero,
                gpt={"h_dim": 64, "n_layers": 4},
            )
        )
        expected.append(communicating(stage, 2, 2, stage3_max_reuse_distance=distance) / once)
    done = run_command(
        [sys.executable, ROOT / "tests/support/traffic_run.py", *runs],
        tmp_path,
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == pytest.approx(
        expected, rel=0.03
    )


@pytest.mark.parametrize(
    "batch, ranks, expected",
    [
        (BatchPlan(256, 32, 8, 1), 4, BatchPlan(256, 32, 2, 4, 32)),
        (BatchPlan(256, 32, 8, 1), 64, BatchPlan(256, 4, 1, 64, 32)),
        (BatchPlan(256, 4, 1, 64, 32), 1, BatchPlan(256, 32, 8, 1, 32)),
        (BatchPlan(72, 6, 12, 1), 8, BatchPlan(72, 3, 3, 8, 6)),
        (BatchPlan(256, 32, 8, 1), 512, None),
    ],
)
def test_a_batch_on_other_ranks(batch, ranks, expected):
    assert on_ranks(batch, ranks) == expected


def test_the_dry_run_tells_of_1024_gpus():
    config = load(ROOT / "ds_configs/24h.json", 64, {"train_batch_size": 1024})
    lines = report(config, None, interconnect=25.0).splitlines()
    rows = {line[:36].strip(): line[36:].split() for line in lines}
    # 1024 x 512 tokens over 64 GPUs of 55,416 tokens/s; 2 bytes a gradient, twice, and a weight; 63
    # of 64 parts of them
    assert float(rows["computing, ms a step"][0]) == pytest.approx(
        1000 * 1024 * 512 / 64 / 55416, abs=0.1
    )
    # in three buckets of 50,000,000 elements
    wire = 6 * 110_615_040 * 63 / 64 / 25e9
    hops = 3 * 3 * 63 * HOP_SECONDS
    assert float(rows["communicating, ms a step"][0]) == pytest.approx(
        1000 * (wire + hops), abs=0.1
    )
    assert rows["1 rank(s), 32 x 32 each"] == ["100.0%"] * 3  # fp16 has no stage 0
    # 16 x 512 tokens a GPU in one pass; what its host launches meanwhile, test_host_time.py adds up
    assert rows["launching meanwhile, ms a step"] == ["10.1", "13.1", "26.5"]
    efficiencies = [float(value.rstrip("%")) for value in rows["1,024 rank(s), 1 x 1 each"]]
    assert 0 < efficiencies[2] < efficiencies[1] < efficiencies[0] < 90


def test_what_cannot_be_estimated_is_said():
    assert "scaling        unknown: set tokens_per_second" in report(
        resolve(tiny_run(), "tiny"), None, 25.0
    )
    uneven = resolve(tiny_run(gpt={"tokens_per_second": 1000}), "tiny")
    assert "     16 ranks: train_batch_size 8 is not shared out evenly to so many" in report(
        uneven, None, 25.0
    )
    for value in ("0", "-1", "nan", "inf"):
        with pytest.raises(
            UserError, match="--interconnect takes a positive number of GB/s, beside --dry_run"
        ):
            parse_command_line(["--ds_config", "x.json", "--dry_run", "--interconnect", value])
    with pytest.raises(UserError, match="beside --dry_run"):
        parse_command_line(["--ds_config", "x.json", "--interconnect", "25"])

"""Norms of weights, gradients and updates: how much they cost a step."""

import torch
from conftest import tiny_run
from dispatched import Launches
from fake_cuda import fake_cuda
from forked import fork_ranks
from live_storages import LiveStorages

from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.model import GPT

CASES = [(0, "fp32"), (1, "fp16"), (2, "bf16"), (3, "fp16")]


def make(stage, precision, world, **gpt):
    half = {} if precision == "fp32" else {precision: {"enabled": True}}
    if precision == "fp16":
        half["fp16"]["initial_scale_power"] = 4
    config = resolve(
        tiny_run(zero_optimization={"stage": stage, "reduce_bucket_size": 10000}, gpt=gpt, **half),
        "test",
        world.size,
    )
    with torch.device("meta"):
        model = GPT(config.model, None)
    engine = boundary.Engine(model, config, world, model.initial_weights(0))
    tokens = torch.randint(
        config.model.vocab_size,
        (2, config.batch.micro_size, config.model.seq_len + 1),
        generator=torch.Generator().manual_seed(0),
    ).numpy()
    engine.step(tokens)
    return engine, tokens, config.model.parameters()


def in_a_rank(work, capfd):
    def connected():
        world = boundary.connect()
        with fake_cuda() as waits:
            for stage, precision in CASES:
                work(stage, precision, world, waits)
        boundary.disconnect()

    assert fork_ranks(1, connected)[0][0] == 0, capfd.readouterr().err


def test_norms_take_few_launches_and_one_look(capfd):
    def work(stage, precision, world, waits):
        run, tokens, _ = make(stage, precision, world)
        launches, looks = [], []
        for want in (False, True):
            waits.clear()
            with Launches() as counted:
                assert run.step(tokens, want_norms=want).applied
            launches.append(counted.total)
            looks.append(
                sum(times for kind, times in waits.kinds.items() if kind.startswith("Tensor"))
            )
        tensors = len(list(run.module.parameters()))
        print(
            f"ZeRO {stage}, {precision}, {tensors} tensors: norms take {launches[1] - launches[0]}"
            f" launches, {looks[1] - looks[0]} look(s)"
        )
        assert launches[1] - launches[0] < 20 < tensors
        assert looks[1] - looks[0] == 1

    in_a_rank(work, capfd)


def test_norms_keep_four_bytes_a_parameter(capfd):
    def work(stage, precision, world, waits):
        peaks = []
        with LiveStorages() as live:
            run, tokens, parameters = make(
                stage, precision, world, h_dim=128, mlp_dim=512, vocab_size=256, seq_len=8, last_n=8
            )
            for want in (False, True):
                live.restart()
                assert run.step(tokens, want_norms=want).applied
                peaks.append(live.peak)
        assert (peaks[1] - peaks[0]) / parameters < 4.1

    in_a_rank(work, capfd)

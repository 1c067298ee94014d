"""Passes as one CUDA graph, on a CPU that answers as a GPU does: every number of a run is what it
is without the graph, and a graph that cannot be captured is done without."""

import plain_run
import pytest
import torch
from fake_graph import REFUSAL, fake_graphs
from tiny_engines import batch, make, on_ranks

from gpt.engine import boundary, cuda_graph
from gpt.metrics.activations import ActivationStatistics

STEPS = 7
SAVED, WATCHED, REFUSED, LOADED = 1, 2, 3, 5
SMALLEST = {"n_layers": 1, "vocab_size": 64, "seq_len": 8, "last_n": 4}
MUON = {"type": "Muon", "params": {"weight_decay": 0.1}}
OVERFLOWING = {"enabled": True, "initial_scale_power": 20, "hysteresis": 1}
# name -> what a run is beside the smallest, as tiny_engines.make takes it
QUICK = {
    "bf16, summed in fp32": {"precision": "bf16"},
    "fp16, whose scale sinks": {"others": {"fp16": OVERFLOWING}},
    "fp32, Muon": {"others": {"optimizer": MUON}, "zero": {"contiguous_gradients": False}},
}
SLOW = {
    "bf16, summed in bf16": {
        "precision": "bf16",
        "others": {"data_types": {"grad_accum_dtype": "bf16"}},
    },
    "fp32, blocks computed again": {"activation_checkpointing": True},
}


def course(world, folder, cuda_graph, settings):
    """All that a user may see of a run that saves, watches, refuses a batch and goes back."""
    settings = {**SMALLEST, **settings, "cuda_graph": cuda_graph}
    engine, config = make(world, 1, accumulation=3, ranks_batch=6, **settings)
    assert engine.notices == []
    found = []
    for step in range(STEPS):
        if step == LOADED:
            engine.load(folder, "saved")
        watch = ActivationStatistics(engine.module) if step == WATCHED else None
        marks = []
        result = engine.step(
            batch(config, step + 100 * world.rank),
            want_norms=step % 2 == 0,
            accept=lambda loss: step != REFUSED,
            mark=marks.append,
            watch=watch,
        )
        found.append(
            [
                result.applied,
                result.refused,
                result.loss.item(),
                result.grad_norm.item(),
                result.norms,
                engine.loss_scale,
                marks,
                watch.summary(world) if watch else None,
                engine.probe(batch(config, step)[0, :1, :5]),
            ]
        )
        if step == SAVED:
            assert engine.save(folder, "saved", {}) is None
    found.append([parameter.double().sum().item() for parameter in engine.module.parameters()])
    engine._ds.destroy()
    return found


@pytest.mark.parametrize(
    "cases", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_a_run_by_a_graph_is_the_run_without_it_to_the_last_bit(
    cases, capfd, tmp_path, monkeypatch
):
    monkeypatch.setattr(boundary, "require_acceptable", lambda config: None)  # on a CPU

    def work(world, waits):
        found = {}
        with fake_graphs() as graph:
            for name, settings in cases.items():
                before = torch.get_rng_state()
                usual = course(world, tmp_path / name / "usual", False, settings)
                replays = graph.replays
                graphed = course(world, tmp_path / name / "graphed", True, settings)
                assert torch.equal(before, torch.get_rng_state())
                # the watched step is made without the graph
                assert graph.replays - replays == 3 * (STEPS - 1)
                found[name] = usual, graphed
        return found

    found = on_ranks(2, work, capfd)
    assert list(found) == list(cases)
    for name, (usual, graphed) in found.items():
        assert repr(graphed) == repr(usual), name  # NaN is NaN
        *steps, _ = usual
        assert [step[0] for step in steps].count(True) >= 3, name
        scales = {step[5] for step in steps}
        assert (len(scales) > 1) == name.startswith("fp16")


OF_ONE_STEP = {"cuda_graph": True, "max_train_steps": 1, "max_eval_steps": 1}
WARMING_UP, CAPTURING = "warming up", "capturing"


def test_a_graph_that_one_rank_cannot_capture_is_left_out_by_all(capfd, monkeypatch):
    monkeypatch.setattr(boundary, "require_acceptable", lambda config: None)
    passes = cuda_graph.GraphedPasses._passes
    failing_at = None
    made = 0

    def failing(graphed, watch=None):
        nonlocal made
        made += 1
        if failing_at == WARMING_UP:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        loss = passes(graphed, watch)
        if failing_at == CAPTURING and made > cuda_graph.WARM_UP_PASSES:
            loss.item()
        return loss

    def work(world, waits):
        nonlocal failing_at
        cuda_graph.GraphedPasses._passes = failing  # in this rank's process alone
        found = []
        with fake_graphs() as graph:
            for place in (None, WARMING_UP, CAPTURING):
                failing_at = place if world.rank == 1 else None
                engine, config = make(world, 1, "bf16", cuda_graph=place is not None, **SMALLEST)
                results = [engine.step(batch(config, step)) for step in range(3)]
                figures = [[r.applied, r.loss.item(), r.grad_norm.item()] for r in results]
                found.append([engine.notices, figures])
            assert graph.replays == 0
        return found

    (none, usual), *graphed = on_ranks(2, work, capfd)
    assert none == []
    reasons = (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: " + REFUSAL.partition("\n")[0],
    )
    for reason, (notices, figures) in zip(reasons, graphed, strict=True):
        assert notices == [
            f"cuda_graph has no effect: rank 1 could not capture the passes ({reason}); they are"
            " launched kernel by kernel, as without it"
        ]
        assert figures == usual


def test_a_run_says_that_it_is_an_experiment_and_what_hinders_it(sample, tmp_path, capsys):
    class Hindered(plain_run.PlainEngine):
        notices = ("cuda_graph has no effect: rank 0 could not capture the passes",)

    plain_run.train(tmp_path / "run", sample, engine=Hindered, gpt=OF_ONE_STEP)
    lines = capsys.readouterr().out.splitlines()
    assert f"notice: {Hindered.notices[0]}" in lines
    assert any("compile: none, cuda_graph: experimental" in line for line in lines)

"""What an optimiser step costs a GPU's host: kernels to launch, and times to wait for the device;
and that nothing which is spared changes a number. Counted on the branches that DeepSpeed takes on
CUDA."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_run
from dispatched import Launches
from tiny_engines import batch, make, on_ranks

from gpt.cluster.world import World
from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.engine import boundary
from gpt.engine.gradients import find_by_norm
from gpt.training import loop, trainer

DEPTH_OF_SMALL = {
    "n_layers": 12,
    "h_dim": 16,
    "mlp_dim": 32,
    "vocab_size": 32,
    "seq_len": 8,
    "last_n": 4,
}
MOST_LAUNCHES = 60


def test_an_update_is_a_few_launches_however_many_parameters(capfd):
    def work(world, waits):
        launches_by_case = {}
        for stage in (1, 2, 3):
            for precision in ("fp16", "bf16"):
                engine, config = make(world, stage, precision, **DEPTH_OF_SMALL)
                tokens, launches = batch(config), {}
                engine.step(tokens)
                with Launches() as ran:
                    engine.step(tokens, mark=lambda part: launches.update({part: ran.total}))
                launches_by_case[f"{stage} {precision}"] = launches["step"] - launches["backward"]
        return launches_by_case

    launches_by_case = on_ranks(1, work, capfd)
    print("launches of an update of 149 parameters:", launches_by_case)
    assert len(launches_by_case) == 6
    assert all(0 < launches <= MOST_LAUNCHES for launches in launches_by_case.values()), (
        launches_by_case
    )


def test_bf16_gradients_are_cast_in_the_kernel_that_adds_them(capfd):
    """At ZeRO 1, whose sums are in fp32: a step's first backward pass casts each, the next adds."""

    def work(world, waits):
        engine, config = make(world, 1, "bf16", accumulation=4)
        ran = []  # of each part of the step, in order
        with Launches() as counted:

            def mark(part):
                ran.append((part, counted.names["_to_copy"], counted.names["add_"]))
                counted.names.clear()

            engine.step(batch(config), mark=mark)
        return len(list(engine.module.parameters())), ran

    tensors, ran = on_ranks(1, work, capfd)
    first, second = [counts for part, *counts in ran if part == "backward"][:2]
    assert tensors == 29
    assert [a - b for a, b in zip(first, second)] == [tensors, -tensors]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_waits_twice_for_the_device_however_many_micro_batches(
    stage, sample, tmp_path, capfd
):
    train_step = loop.Loop._train_step

    def work(world, waits):
        steps_by_accumulation = {}
        for accumulation in (1, 4):
            run_dir = tmp_path / f"{stage}-{accumulation}"
            tree = tiny_run(
                zero_optimization={"stage": stage},
                gradient_accumulation_steps=accumulation,
                fp16={"enabled": True},
                gpt={"data_root": str(sample), "run_dir": str(run_dir), "log_terminal_every": 0},
            )
            config = resolve(tree, "test", world.size)
            run = trainer.Trainer(
                config, Dataset(sample), world.rank, world.size, ("torch", "as asked for")
            )
            steps = steps_by_accumulation[accumulation] = []

            def counted(running):
                waits.clear()
                done = train_step(running)
                steps.append([waits.total, [str(place) for place in waits.places]])
                return done

            loop.Loop._train_step = counted  # in this rank's process alone
            run.train(boundary.Engine, world)
            run.stop_request.close()
        return steps_by_accumulation

    steps_by_accumulation = on_ranks(1, work, capfd)
    for accumulation, steps in steps_by_accumulation.items():
        assert len(steps) >= 4
        for total, places in steps[3:]:  # DeepSpeed's own timer would begin with the third
            # shall it update; loss, norm and who was asked to stop
            assert total == 2, (accumulation, places)


def test_the_norm_of_a_large_gradient_is_exact():
    optimizer = SimpleNamespace()
    find_by_norm(optimizer, World(0, 1, torch.device("cpu")))
    for dtype in (torch.float32, torch.bfloat16):
        gradient = torch.full((1 << 22,), 0.01).to(dtype)
        exact = gradient[0].item() * 2**11
        assert optimizer.get_grad_norm_direct([gradient], None).item() == pytest.approx(
            exact, rel=1e-6
        )


PLANTED = {1: math.inf, 3: math.nan}  # {step: what one element of a gradient becomes}


def steps_with_planted(world, stage, precision, zero=()):
    """(applied, loss scale, norm, sum of the weights) of five steps, two of which meet a bad number
    on the last rank."""
    engine, config = make(world, stage, precision, ranks_batch=2, accumulation=2, zero=zero)
    parameter = engine.module.get_parameter("blocks.1.mlp.c_fc.weight")
    results, step = [], 0

    def plant(gradient):
        if world.rank == world.size - 1 and step in PLANTED:
            gradient = gradient.clone()
            gradient.view(-1)[-1] = PLANTED[step]
        return gradient

    parameter.register_hook(plant)
    for step in range(5):
        result = engine.step(batch(config, step))
        weights = sum(
            p.double().abs().sum().item() for p in engine.module.parameters() if p.numel()
        )
        results.append([result.applied, engine.loss_scale, result.grad_norm.item(), weights])
    engine._ds.destroy()
    return results


OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
QUICK = [
    (1, "fp16", {}),
    (1, "bf16", {}),
    (2, "fp16", {}),
    (2, "bf16", {}),
    (3, "fp16", {}),
    (1, "fp16", OFFLOADED),
    (1, "bf16", OFFLOADED),
    (2, "bf16", OFFLOADED),
]
ALL = [
    (stage, precision, zero)
    for stage in (1, 2, 3)
    for precision in ("fp32", "fp16", "bf16")
    for zero in ({}, OFFLOADED)
]
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "size, runs",
    [(2, QUICK), pytest.param(1, ALL, marks=slow), pytest.param(2, ALL, marks=slow)],
    ids=["2-quick", "1-all", "2-all"],
)
def test_what_is_not_finite_is_refused_as_deepspeed_itself_refuses_it(size, runs, capfd):
    """Refusals, loss scales, norms and weights are those of DeepSpeed's own search."""

    def work(world, waits):
        comparisons = []
        for stage, precision, zero in runs:
            ours = steps_with_planted(world, stage, precision, zero)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(boundary, "find_by_norm", lambda optimizer, world: None)
                theirs = steps_with_planted(world, stage, precision, zero)
            comparisons.append([f"{stage} {precision} {zero}", ours, theirs])
        return comparisons

    comparisons = on_ranks(size, work, capfd)
    assert len(comparisons) == len(runs)
    for name, ours, theirs in comparisons:
        assert [applied for applied, *_ in ours] == [True, False, True, False, True], name
        for mine, their in zip(ours, theirs, strict=True):
            assert mine[:2] == their[:2], name
            assert mine[2] == pytest.approx(their[2], rel=1e-5), name
            assert mine[3] == pytest.approx(their[3], rel=1e-7), name


def losses_and_fetches(world, by_block, zero=(), **gpt):
    """(losses and norms of two steps, how often weights were gathered in the second, graphs that a
    compiler made)"""
    zero = {"stage3_param_persistence_threshold": 0, **dict(zero)}
    fetches = []
    with pytest.MonkeyPatch.context() as patch:
        if not by_block:
            patch.setattr(boundary, "_gather_by_block", lambda model: None)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        engine, config = make(world, 3, "fp16", accumulation=1, ranks_batch=2, zero=zero, **gpt)
        coordinator = boundary.deepspeed.runtime.zero.partitioned_param_coordinator
        fetching = coordinator.PartitionedParameterCoordinator
        own = fetching.fetch_sub_module
        patch.setattr(
            fetching,
            "fetch_sub_module",
            lambda *args, **rest: fetches.append(1) or own(*args, **rest),
        )
        steps = []
        for step in range(2):
            fetches.clear()
            result = engine.step(batch(config, step))
            steps += [result.loss.item(), result.grad_norm.item()]
        with torch.no_grad():  # as an evaluation does
            steps.append(engine.probe(batch(config)[0]))
        engine._ds.destroy()
    breaks = torch._dynamo.utils.counters["graph_break"]
    return [
        steps,
        len(fetches),
        torch._dynamo.utils.counters["stats"]["unique_graphs"],
        sum(breaks.values()),
    ]


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=slow)])
def test_under_zero_3_a_block_is_gathered_as_a_whole(size, capfd):
    ways = {
        "plain": {},
        "computed again": {"activation_checkpointing": True},
        "weights in host memory": {"zero": {"offload_param": {"device": "cpu"}}},
    }

    def work(world, waits):
        return {
            name: [
                losses_and_fetches(world, by_block, n_layers=4, **way) for by_block in (True, False)
            ]
            for name, way in ways.items()
        }

    for name, (whole, parts) in on_ranks(size, work, capfd).items():
        assert whole[0] == parts[0], name
        assert whole[1] <= parts[1] / 3, (name, whole[1], parts[1])
    print("weights gathered, by block and by layer:", whole[1], parts[1])


def test_under_zero_3_the_blocks_are_compiled_whole(monkeypatch, capfd):
    monkeypatch.setattr("gpt.model.COMPILE_OPTIONS", {"default": {"backend": "aot_eager"}})

    def work(world, waits):
        return losses_and_fetches(world, True, n_layers=10, compile="default")

    _, _, graphs, breaks = on_ranks(1, work, capfd)
    # the first block has no branch before it
    assert graphs <= 4 and breaks == 0, (graphs, breaks)

"""The fake of tests/support/fake_cuda.py: DeepSpeed takes its CUDA branches under it, and the
numbers stay the CPU's."""

import pytest
import torch
from conftest import tiny_run
from fake_cuda import fake_cuda
from forked import fork_ranks

from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.model import GPT


def train(world, **zero):
    """Losses and gradient norms of three steps of two micro-batches."""
    config = resolve(tiny_run(zero_optimization=zero), "test", world.size)
    with torch.device("meta"):
        model = GPT(config.model, None)
    run = boundary.Engine(model, config, world, model.initial_weights(0))
    tokens = torch.randint(2048, (3, 2, 4, 33), generator=torch.Generator().manual_seed(0))
    steps = [run.step(batch.numpy()) for batch in tokens]
    return [(step.loss.item(), step.grad_norm.item()) for step in steps]


OVERLAPPING = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 20000}


@pytest.mark.parametrize(
    "zero, waiting", [(OVERLAPPING, "device"), ({"stage": 3}, "stream")], ids=["2", "3"]
)
def test_a_run_on_the_branches_of_cuda_finds_the_same(zero, waiting, capfd):
    def work():
        world = boundary.connect()
        wanted = train(world, **zero)
        with fake_cuda() as waits:
            found = train(world, **zero)
        assert found == [pytest.approx(step, rel=1e-5) for step in wanted]
        assert waits.kinds[waiting] >= 6  # at the end of each micro-batch's backward pass
        before = waits.total
        torch.ones(1).item()
        boundary.deepspeed.accelerator.get_accelerator().synchronize()
        assert waits.total == before  # nothing stays behind
        boundary.disconnect()

    ends = fork_ranks(1, work)
    assert ends[0][0] == 0, capfd.readouterr().err

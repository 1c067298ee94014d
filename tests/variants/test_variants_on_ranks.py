"""The variants by the engine on two ranks, against torch alone."""

import pytest
import torch
from tiny_engines import batch, make, on_ranks
from variants import EVERY_OPTION, trainable

STEPS = 4
CASES = {
    "modern, all options": ("modern", EVERY_OPTION),
    "modern": ("modern", {}),
    "lstm": ("lstm", {}),
}


def losses_by_torch(config, variant, options):
    assert config.deepspeed["gradient_clipping"] == 0
    model = trainable(variant, shape=config.model, **options)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(1, STEPS + 1):
        ids = [torch.from_numpy(batch(config, seed=10 * step + rank)) for rank in range(2)]
        rows = torch.cat(ids, 1).flatten(0, 1)
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.schedule.lr(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "case",
    [next(iter(CASES)), *(pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[1:])],
)
def test_ranks_and_stages_make_no_difference(case, capfd):
    variant, options = CASES[case]
    gpt = {"model_file": variant, "model_options": options}

    def work(world, waits):
        by_stage = {}
        for stage in (1, 3):
            engine, config = make(world, stage, **gpt)
            losses = by_stage[f"stage {stage}"] = []
            for step in range(1, STEPS + 1):
                result = engine.step(batch(config, seed=10 * step + world.rank))
                losses.append(sum(world.gather(result.loss.item())) / world.size)
        return {**by_stage, "torch": losses_by_torch(config, variant, options)}

    losses = on_ranks(2, work, capfd)
    print(losses)
    expected = losses.pop("torch")
    assert expected[-1] < expected[0]
    for by_engine in losses.values():
        assert by_engine == pytest.approx(expected, rel=2e-5)

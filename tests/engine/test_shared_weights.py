"""A model whose modules share a weight, saved at every ZeRO stage and gone on with at another."""

import pytest
from own_code_run import write_model
from tiny_engines import batch, make, on_ranks

from gpt.architecture.architecture import Architecture
from gpt.checkpoint.weights import check
from gpt.checkpoint.zero_files import read_state

# at which it is saved, and at which it goes on
STAGES = [(0, 3), (1, 2), (2, 0), (3, 1)]


def test_a_shared_weight_goes_on_at_any_stage(tmp_path, capfd):
    model_file = str(write_model(tmp_path / "mine"))

    def work(world, waits):
        def losses(engine, config, *steps):
            results = [engine.step(batch(config, seed=10 * step + world.rank)) for step in steps]
            return [sum(world.gather(result.loss.item())) / world.size for result in results]

        found = []
        for stage, next_stage in STAGES:
            engine, config = make(world, stage, model_file=model_file)
            losses(engine, config, 1, 2)
            assert engine.save(tmp_path, f"stage{stage}", {"step": 2}) is None
            world.gather(None)  # all have written
            expected = losses(engine, config, 3, 4)
            state = read_state(tmp_path / f"stage{stage}")
            check(state.weights, Architecture.of(config), tmp_path)
            other, config = make(world, next_stage, model_file=model_file)
            other.adopt(state, 1.0)
            found.append((expected, losses(other, config, 3, 4)))
        return found

    found = on_ranks(2, work, capfd)
    first, _ = found[0]
    assert first[1] != pytest.approx(first[0], rel=1e-3)
    for undisturbed, gone_on in found:
        assert undisturbed == pytest.approx(first, rel=1e-5)
        assert gone_on == pytest.approx(first, rel=1e-5)

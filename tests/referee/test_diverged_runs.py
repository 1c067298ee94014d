"""A contender that diverges is a result: packed, and verified like any other."""

import dataclasses
import math

import entry_runs
import pytest
from entry_runs import STEPS, in_this_process, new_entry, small_dataset
from own_code_run import KeepingEngine

from gpt.config.resolve import load
from gpt.errors import AgreedError
from gpt.packs import pack, replay, verify
from gpt.packs.evidence import Evidence
from gpt.referee import judgement, runs
from gpt.referee.judgement import NOT_SHOWN


class CarefulEngine(KeepingEngine):
    """Refuses a step whose gradient is not finite, as DeepSpeed's does."""

    def step(self, *args, **more):
        result = super().step(*args, **more)
        return dataclasses.replace(result, applied=math.isfinite(result.grad_norm.item()))

    def first_nonfinite(self, *args):
        return None


@pytest.mark.parametrize("engine", [KeepingEngine, CarefulEngine])
def test_a_contender_that_diverges_is_packed_and_verified(
    engine, tmp_path, one_thread, monkeypatch
):
    """At its last step, or by giving up before."""
    monkeypatch.setattr(entry_runs, "KeepingEngine", engine)
    entry = new_entry(tmp_path, small_dataset(tmp_path), "--max_lr", 1e30, seeds=[0])
    with in_this_process():
        runs.train(entry.path, None, None)
    verdict = judgement.of_paths([entry.path])
    assert verdict.verdict == NOT_SHOWN
    assert verdict.sentence == (
        "entry is not shown to be better or worse than tiny: entry: seed 0 diverged"
    )
    folder = tmp_path / "pack"
    pack.write(entry.path, folder, with_weights=True)

    def train(file, environment, may_diverge):
        try:
            entry_runs.train_config(load(file), engine=engine)
        except AgreedError:
            assert may_diverge

    monkeypatch.setattr(replay, "_train", train)
    results = verify.make(Evidence(folder, None, True), verify.checks(STEPS), lambda result: None)
    assert {result.name: result.lines for result in results if result.state != verify.OK} == {}

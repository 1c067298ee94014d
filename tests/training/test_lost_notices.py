"""What is only told ends no run, where it cannot be told any more."""

import errno
import shutil
from types import SimpleNamespace

import plain_run
import pytest
from conftest import read_metrics

from gpt.training import trouble
from gpt.training.spikes import SpikeDetector

EVERY_STEP = {"max_train_steps": 3, "eval_every": 0, "log_ckpt_every": 1}


@pytest.fixture
def spike(monkeypatch):
    """The second step's loss is a spike."""
    monkeypatch.setattr(
        SpikeDetector, "score", lambda self, loss: 99.0 if len(self.losses) == 1 else 0.0
    )


def damage_names(root):
    (root / "train" / "names.txt").write_text("{")


@pytest.mark.parametrize("harm", [damage_names, shutil.rmtree], ids=["damaged", "removed"])
def test_a_spike_whose_documents_cannot_be_told(harm, spike, sample, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(sample, root)

    class Harmful(plain_run.PlainEngine):
        def step(self, *args, **options):
            if self._steps == 1:
                harm(root)
            return super().step(*args, **options)

    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, engine=Harmful, gpt={**EVERY_STEP, "data_root": str(root)})
    told = capsys.readouterr().out
    assert "WARNING: which documents batch 1 is made from cannot be told (" in told
    assert "SPIKE: the loss of step 2 is" in told and "done: 3 steps" in told
    (event,) = read_metrics(run_dir, "spike")
    assert event["documents"] == []


def test_a_rewind_that_cannot_be_noted(sample, tmp_path, capsys, monkeypatch):
    scores = iter([0.0, 99.0])
    monkeypatch.setattr(SpikeDetector, "score", lambda self, loss: next(scores, 0.0))

    def full(folder, tag):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "latest"))

    monkeypatch.setattr(trouble, "folders", SimpleNamespace(go_back=full))
    gpt = {**EVERY_STEP, "spike_policy": "rewind", "rewind_batches": 1}
    plain_run.train(tmp_path / "run", sample, gpt=gpt)
    told = capsys.readouterr().out
    assert "latest: No space left on device: until the next checkpoint a restart would" in told
    assert "back to step 1, leaving out the batches 1 to 1" in told and "done: 3 steps" in told

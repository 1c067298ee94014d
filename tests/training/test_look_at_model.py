"""A run's start refuses a model file whose model is not one of a sequence's past alone, before
anything is written."""

import pytest

pytest.importorskip("torch")

import plain_run
from broken_model_files import BAD
from model_files import LAST, changed

from gpt.contract import outputs
from gpt.errors import UserError


def train(folder, sample, *changes):
    (folder / "my.py").write_text(changed(*changes))
    run_dir = folder / "run"
    trainer = plain_run.train(run_dir, sample, gpt={"model_file": str(folder / "my.py")})
    return trainer, run_dir


@pytest.mark.parametrize(
    "name",
    ["both directions within chunks", "a norm over rows", "dropout", "state between calls"],
)
def test_a_run_does_not_begin(tmp_path, sample, name):
    changes, _, sentence = BAD[name]
    with pytest.raises(UserError) as error:
        train(tmp_path, sample, *changes)
    assert str(error.value).startswith(f"{tmp_path}/my.py{sentence}".split(" from position")[0])
    assert not (tmp_path / "run").exists()


def test_an_error_in_forward_ends_it_too(tmp_path, sample):
    with pytest.raises(UserError, match="forward fails"):
        train(tmp_path, sample, (LAST, "x = x + torch.ones(7, 7, 7)"))
    assert not (tmp_path / "run").exists()


def test_a_good_model_trains_without_a_notice(tmp_path, sample):
    trainer, _ = train(tmp_path, sample)
    assert not [notice for notice in trainer.notices if "later tokens" in notice]


def test_a_model_that_would_take_long_is_named_in_a_notice(tmp_path, sample, monkeypatch):
    monkeypatch.setattr(outputs, "START_PRODUCTS", 1000)
    trainer, _ = train(tmp_path, sample)
    notices = [notice for notice in trainer.notices if "later tokens" in notice]
    assert len(notices) == 1
    assert notices[0].startswith("whether my.py ")
    assert "tools/check_model.py looks at it in a small shape" in notices[0]

"""How a run ends whose folder, checkpoints or weights are not what they were."""

import errno
import math
import os
import shutil

import plain_run
import pytest
from conftest import read_metrics, tiny_run

from gpt.checkpoint import folders
from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.errors import AgreedError, AgreedUserError, UserError
from gpt.metrics import sinks
from gpt.training import loop, run_documents
from gpt.training.start import reached

SHORT = {"max_train_steps": 2, "eval_every": 0}


@pytest.fixture(scope="module")
def finished(sample, tmp_path_factory):
    """The folder of a finished run."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    plain_run.train(run_dir, sample, gpt={**SHORT, "log_ckpt_every": 1})
    return run_dir


@pytest.fixture
def stripped(finished, tmp_path):
    """A finished run's folder, its checkpoints removed for room."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    return run_dir


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- Without its checkpoints


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_finished_run_without_checkpoints_is_finished(resume, stripped, sample, capsys):
    before = files(stripped)
    plain_run.train(stripped, sample, gpt={**SHORT, "log_ckpt_every": 1}, resume=resume)
    assert capsys.readouterr().out == (
        f"{stripped} was finished at step 2, and its checkpoints were removed since: nothing to"
        " do\n"
    )
    before.pop(stripped / ".lock")
    after = files(stripped)
    after.pop(stripped / ".lock")
    assert after == before


GONE = "holds a run that came to step 2, and its checkpoints are gone: nothing can go on from it"


@pytest.mark.parametrize(
    "changes, allowed, sentence",
    [
        (
            {"seed": 9},
            [],
            "holds a run with other settings (seed was 0, is 9): name another --run_dir, or give"
            " the settings that it began with; --allow_change seed allows the change on purpose",
        ),
        ({"seed": 9}, ["seed"], GONE),
        ({"max_train_steps": 4}, [], GONE),
    ],
)
def test_another_run_in_its_place_is_refused(changes, allowed, sentence, stripped, sample):
    before = files(stripped)
    with pytest.raises(UserError) as caught:
        plain_run.train(stripped, sample, allowed, gpt={**SHORT, **changes})
    assert sentence in str(caught.value) and "name another --run_dir" in str(caught.value)
    assert files(stripped).keys() == before.keys()
    assert files(stripped)[stripped / "metrics.jsonl"] == before[stripped / "metrics.jsonl"]


def test_a_run_that_begins_anew_needs_a_folder_without_a_run(stripped, sample):
    with pytest.raises(UserError, match="--resume never: .* already holds a run"):
        plain_run.train(stripped, sample, gpt=SHORT, resume="never")


def test_metrics_that_are_gone_are_told(finished, sample, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "metrics.jsonl").unlink()
    plain_run.train(run_dir, sample, gpt={**SHORT, "max_train_steps": 3})
    assert (
        f"notice: {run_dir}/metrics.jsonl is gone, and with it all that was measured until step 2:"
        " bring it back from a copy\n" in capsys.readouterr().out
    )


# ---- Weights that give no number


class Diverging(plain_run.PlainEngine):
    """Its weights are no numbers after its last step, whether or not a save notices it."""

    def step(self, batch, *args, **options):
        result = super().step(batch, *args, **options)
        if self._steps == self.last_step:
            for parameter in self.module.parameters():
                parameter.data.fill_(math.nan)
        return result

    def probe(self, tokens):
        return super().probe(tokens) if self.is_noticed else 1.0

    def first_nonfinite_state(self):
        return super().first_nonfinite_state() if self.is_noticed else None


@pytest.mark.parametrize("is_noticed", [True, False], ids=["by the save", "by the evaluation"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_ends_without_a_finite_loss_has_failed(
    steps, is_noticed, sample, tmp_path, capsys
):
    run_dir = tmp_path / "run"
    engine = type("Engine", (Diverging,), {"last_step": steps, "is_noticed": is_noticed})
    for _ in range(2):  # the same command finds the same
        with pytest.raises(AgreedError) as caught:
            plain_run.train(
                run_dir, sample, engine=engine, gpt={"max_train_steps": steps, "eval_every": 1}
            )
        sentence = str(caught.value)
        assert sentence.startswith(f"the run has diverged: after step {steps} ")
        assert "is not finite; the latest checkpoint is " in sentence
        assert sentence.endswith(": lower max_lr, or set gradient_clipping, in another --run_dir")
        assert "done:" not in capsys.readouterr().out
        assert read_metrics(run_dir)[-1]["event"] == "failed"
    assert read_metrics(run_dir, "eval")[-1]["loss"] is None


def test_what_cannot_change_is_not_offered_to_be_allowed(stripped, sample):
    with pytest.raises(UserError) as caught:
        plain_run.train(stripped, sample, gpt={**SHORT, "n_layers": 1})
    assert "model.n_layers was 2, is 1" in str(caught.value)
    assert str(caught.value).endswith(
        ": name another --run_dir, or give the settings that it began with (model.n_layers cannot"
        " change within a run)"
    )


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_run_that_diverged_at_its_end_is_not_called_finished(has_checkpoint, sample, tmp_path):
    run_dir = tmp_path / "run"
    engine = type("Engine", (Diverging,), {"last_step": 3, "is_noticed": True})
    gpt = {"max_train_steps": 3, "eval_every": 1, "log_ckpt_every": 2}
    with pytest.raises(AgreedError):
        plain_run.train(run_dir, sample, engine=engine, gpt=gpt)
    if not has_checkpoint:
        shutil.rmtree(run_dir / "checkpoints")
    tree = tiny_run(gpt={"data_root": str(sample), "run_dir": str(run_dir), **gpt})
    run = reached(resolve(tree, "tiny"), Dataset(sample))
    assert (run.step, run.finished, run.has_diverged) == (3, False, True)
    if not has_checkpoint:
        with pytest.raises(UserError) as caught:
            plain_run.train(run_dir, sample, engine=engine, gpt=gpt)
        assert str(caught.value) == (
            f"{run_dir} holds a run that diverged at step 3: lower max_lr, or set"
            " gradient_clipping, in another --run_dir"
        )


# ---- Another folder under its name


class Moved(plain_run.PlainEngine):
    """At its third step the run's folder gets another name, and another folder its own."""

    def step(self, batch, *args, **options):
        if self._steps == 2:
            self.run_dir.rename(self.run_dir.with_name("moved"))
            self.run_dir.mkdir()
            (self.run_dir / ".lock").write_text("0123456789abcdef")
        return super().step(batch, *args, **options)


def test_a_run_writes_on_into_the_metrics_that_it_opened(sample, tmp_path, capsys):
    run_dir = tmp_path / "run"
    engine = type("Engine", (Moved,), {"run_dir": run_dir})
    gpt = {"max_train_steps": 3, "eval_every": 0, "log_ckpt_every": 1}
    with pytest.raises(AgreedError) as caught:
        plain_run.train(run_dir, sample, engine=engine, gpt=gpt)
    moved = tmp_path / "moved"
    where = f"the run's folder {run_dir} was renamed: it is {moved} now, with the run as of step "
    assert where in str(caught.value)
    assert f"it is {moved} now; move it back, for nothing more can be saved" in (
        capsys.readouterr().out
    )
    assert [event["step"] for event in read_metrics(moved, "train")] == [1, 2, 3]
    assert [path.name for path in run_dir.iterdir()] == [".lock"]


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_folder_that_went_before_the_first_step(is_replaced, sample, tmp_path):
    run_dir = tmp_path / "run"
    moved = tmp_path / "moved"

    class Early(plain_run.PlainEngine):
        def __init__(self, *args):
            super().__init__(*args)
            if is_replaced:
                run_dir.rename(moved)
                run_dir.mkdir()
            else:
                shutil.rmtree(run_dir)

    with pytest.raises(AgreedUserError) as caught:
        plain_run.train(run_dir, sample, engine=Early, gpt=SHORT)
    where = f"renamed: it is {moved} now" if is_replaced else "removed"
    assert str(caught.value) == f"the run's folder {run_dir} was {where}; nothing was trained"
    assert not run_dir.exists() or not list(run_dir.iterdir())


# ---- Disks that are full at the start

WRITERS = {
    "config.yaml": (loop, "write_config"),
    "documents.json": (run_documents, "write_atomically"),
    "latest": (folders, "write_atomically"),
    "metrics.jsonl": (sinks, "open_own"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_full_at_the_start_is_told(name, finished, sample, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "documents.json").unlink()
    write = getattr(*WRITERS[name])

    def full(path, *rest):
        if os.path.basename(path) == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *rest)

    monkeypatch.setattr(*WRITERS[name], full)
    with pytest.raises(AgreedUserError) as caught:
        plain_run.train(run_dir, sample, gpt={**SHORT, "max_train_steps": 3})
    assert str(caught.value).startswith(str(run_dir))
    assert str(caught.value).endswith(
        f"{name}: No space left on device: make room there, or name another --run_dir; nothing"
        " was trained"
    )

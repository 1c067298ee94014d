"""What TensorBoard and wandb show of a run, of one that was interrupted too."""

import time

import pytest
import wandb
from conftest import read_metrics
from logged import read_tensorboard, read_wandb
from plain_run import PlainEngine, train

from gpt.errors import SilentError, UserError

ALL = {"logger_type": "all", "log_ckpt_every": 2, "eval_every": 3, "tokens_per_second": 1000}
AXES = ("train_tokens", "gigaflops", "seconds", "reference_seconds")
OF_WANDB = ("MODE", "PROJECT", "NAME", "RUN_ID")


@pytest.fixture(autouse=True)
def no_settings_of_wandb(monkeypatch):
    for name in OF_WANDB:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


class FailingEngine(PlainEngine):
    """Fails in its fourth step."""

    def step(self, *args):
        if self._steps == 3:
            raise ValueError("a planted fault")
        return super().step(*args)


def runs_of_wandb(run_dir):
    """[read_wandb(file)] of every process, the first one first."""
    wandb.teardown()  # whatever is written late is written then
    return [read_wandb(path) for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))]


def fail(run_dir, sample, gpt):
    """A run that ends in its fourth step."""
    with pytest.raises(SilentError):
        train(run_dir, sample, engine=FailingEngine, gpt=gpt)
    wandb.finish()  # as the end of the process does
    time.sleep(1.1)  # files are named by the second of their beginning


def values_of(history, key):
    return [(item["step"], item[key]) for item in history if key in item]


def test_loggers_show_what_metrics_hold(sample, tmp_path):
    run_dir = tmp_path / "run"
    train(run_dir, sample, gpt={**ALL, "max_train_steps": 2, "comment": "a comment"})
    lines = read_metrics(run_dir)
    written = [event for event in lines if event["event"] in ("train", "eval")]
    board = read_tensorboard(run_dir / "tensorboard")
    assert [step for step, _ in board["train/loss"]] == [1, 2]
    ((axis_of, history, run),) = runs_of_wandb(run_dir)
    assert (run["project"], run["name"], run["notes"]) == ("gpt", "run", "a comment")
    assert axis_of["train/*"] == "step" and axis_of["eval/*"] == "reference_hours"
    read = [item for item in history if "train/loss" in item or "eval/test/loss" in item]
    assert len(read) == len(written) == 4
    for item, event in zip(read, written):
        for axis in ("step", "train_tokens", "flops", "hours", "reference_hours"):
            assert item[axis] == pytest.approx(event[axis], rel=1e-12)
        prefix = "eval/test" if event["event"] == "eval" else "train"
        assert item[f"{prefix}/loss"] == event["loss"]
    seconds = [event["seconds"]["step"] for event in read_metrics(run_dir, "train")]
    assert [value for _, value in values_of(history, "train/seconds/step")] == seconds
    assert [value for _, value in board["train/seconds/step"]] == pytest.approx(seconds, rel=1e-6)

    last = read_metrics(run_dir, "eval")[-1]
    places = 512, round(last["flops"] / 1e9), round(last["hours"] * 3600), 1
    for axis, place in zip(AXES, places):
        curves = read_tensorboard(run_dir / "tensorboard" / f"over_{axis}")
        of_loss = curves[f"over_{axis}/eval/test/normalised_ppl"]
        assert of_loss[-1] == (place, pytest.approx(last["normalised_ppl"]))


def test_a_run_that_was_interrupted_is_one_curve(sample, tmp_path):
    run_dir = tmp_path / "run"
    train(run_dir, sample, gpt={**ALL, "max_train_steps": 2})
    time.sleep(1.1)
    fail(run_dir, sample, ALL)
    train(run_dir, sample, gpt=ALL)
    assert [event["step"] for event in read_metrics(run_dir, "train")] == [1, 2, 3, 3, 4, 5, 6]
    board = read_tensorboard(run_dir / "tensorboard")
    assert [step for step, _ in board["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in board["eval/test/loss"]] == [0, 2, 3, 6]
    tokens = read_tensorboard(run_dir / "tensorboard/over_train_tokens")
    for kind, steps in (("train", [1, 2, 3, 4, 5, 6]), ("eval/test", [0, 2, 3, 6])):
        places = [place for place, _ in tokens[f"over_train_tokens/{kind}/loss"]]
        assert places == [256 * step for step in steps]

    runs = runs_of_wandb(run_dir)
    assert len(runs) == 3
    assert {run["id"] for _, _, run in runs} == {(run_dir / "wandb/id").read_text().strip()}
    sent = [item for _, history, _ in runs for item in history]
    assert [step for step, _ in values_of(sent, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in values_of(sent, "eval/test/loss")] == [0, 2, 3, 6]


def test_a_run_that_begins_anew_is_another_one(sample, tmp_path):
    """Nothing of the first try was kept, so its curve is not gone on with."""
    gpt = {**ALL, "log_ckpt_every": 0}
    fail(tmp_path / "run", sample, gpt)
    train(tmp_path / "run", sample, gpt={**gpt, "max_train_steps": 2})
    (_, _, first), (_, after, second) = runs_of_wandb(tmp_path / "run")
    assert first["id"] != second["id"]
    assert [step for step, _ in values_of(after, "train/loss")] == [1, 2]
    board = read_tensorboard(tmp_path / "run/tensorboard")
    assert [step for step, _ in board["train/loss"]] == [1, 2]
    assert [step for step, _ in board["eval/test/loss"]] == [0, 2]
    tokens = read_tensorboard(tmp_path / "run/tensorboard/over_train_tokens")
    assert [place for place, _ in tokens["over_train_tokens/eval/test/loss"]] == [0, 512]


class LeapingEngine(PlainEngine):
    """Tells a loss beyond all bounds, once."""

    leaps = [20]

    def step(self, *args):
        result = super().step(*args)
        if self._steps in LeapingEngine.leaps:
            LeapingEngine.leaps.remove(self._steps)
            time.sleep(1.1)  # TensorBoard's files are named by the second
            result.loss.fill_(1e6)
        return result


def test_a_run_that_went_back_is_one_curve(sample, tmp_path):
    gpt = {
        **ALL,
        "max_train_steps": 22,
        "log_ckpt_every": 10,
        "eval_every": 0,
        "spike_policy": "rewind",
        "log_terminal_every": 0,
    }
    train(tmp_path / "run", sample, engine=LeapingEngine, gpt=gpt)
    (rewind,) = read_metrics(tmp_path / "run", "rewind")
    assert (rewind["step"], rewind["to"]) == (20, 10)
    board = read_tensorboard(tmp_path / "run/tensorboard")
    assert [step for step, _ in board["train/loss"]] == list(range(1, 23))
    tokens = read_tensorboard(tmp_path / "run/tensorboard/over_train_tokens")
    places = [place for place, _ in tokens["over_train_tokens/train/loss"]]
    assert places == [256 * step for step in range(1, 23)]
    ((_, history, _),) = runs_of_wandb(tmp_path / "run")
    steps = [step for step, _ in values_of(history, "train/loss")]
    assert steps == list(range(1, 23))


def test_the_environments_names_count_where_the_run_has_none(sample, tmp_path, monkeypatch):
    for name, value in (("PROJECT", "ours"), ("NAME", "mine"), ("RUN_ID", "abcd1234")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    gpt = {"logger_type": "wandb", "max_train_steps": 1}
    train(tmp_path / "run", sample, gpt=gpt)
    monkeypatch.delenv("WANDB_RUN_ID")
    train(tmp_path / "named", sample, gpt={**gpt, "wandb_project_name": "theirs"})
    ((_, _, run),) = runs_of_wandb(tmp_path / "run")
    assert run == {"id": "abcd1234", "project": "ours", "name": "mine", "notes": ""}
    ((_, _, named),) = runs_of_wandb(tmp_path / "named")
    assert (named["project"], named["name"]) == ("theirs", "mine")


def test_a_mode_that_wandb_has_not_is_a_mistake(sample, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(
        UserError,
        match=(
            "the environment's WANDB_MODE is 'nonsense': wandb has offline, online, shared,"
            " disabled, dryrun, run"
        ),
    ):
        train(tmp_path / "run", sample, gpt=ALL)
    assert not (tmp_path / "run").exists()

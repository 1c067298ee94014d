"""Where numbers go when there is no place for them."""

import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import plain_run
import pytest
from conftest import ROOT, write_run

from gpt.errors import UserError
from gpt.metrics import sinks
from gpt.metrics.chain import Follower
from gpt.metrics.events import finite
from gpt.metrics.sinks import Metrics, Wandb

CONFIG = SimpleNamespace(
    options=SimpleNamespace(logger_type="none", wandb_project_name="p", comment=""), sources={}
)


def is_chained(path):
    """Whether each line follows from those before it, of which the first may have no chain."""
    follower = Follower()
    with open(path, "rb") as file:
        return all(follower.follows(line, is_event=True) for line in file)


def test_lines_that_a_disk_does_not_take_are_written_later(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        json.dumps({"event": "train", "step": 0, "padding": "x" * 10**6}) + "\n{half a line"
    )
    metrics = Metrics(active=True)
    metrics.open(tmp_path, CONFIG, {}, kept=None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert len(file.read_text().splitlines()) == 1  # the half is gone
    # ends within the second line
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 70, hard))
    try:
        for step in (1, 2, 3):
            metrics.write({"event": "train", "step": step, "loss": float("nan")})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    warned = (
        "WARNING: metrics.jsonl cannot be written to (File too large): training goes on without"
        " it\n"
    )
    assert not file.read_bytes().endswith(b"\n") and capsys.readouterr().err == warned
    metrics.write({"event": "train", "step": 4, "loss": 1.5})
    metrics.close()
    events = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert [(event["step"], event["loss"]) for event in events] == [
        (1, None),
        (2, None),
        (3, None),
        (4, 1.5),
    ]
    assert is_chained(file)


@pytest.mark.parametrize("how", ["removed", "replaced", "moved with its folder"])
def test_metrics_that_lose_their_name_while_a_run_is_at_work(how, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = Metrics(active=True)
    metrics.open(folder, CONFIG, {}, kept=None)
    metrics.write({"event": "train", "step": 1})
    if how == "moved with its folder":
        folder = folder.rename(tmp_path / "moved")
    else:
        (folder / "metrics.jsonl").unlink()
    if how == "replaced":
        (folder / "metrics.jsonl").write_text('{"event": "train", "step": 1}\n')
    for event in ("train", "eval", "train"):
        metrics.write({"event": event, "step": 2})
    metrics.close()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    told = capsys.readouterr().err
    expected = {
        "removed": ["eval", "train"],
        "replaced": ["train", "eval", "train"],
        "moved with its folder": ["train", "train", "eval", "train"],
    }
    assert kinds == expected[how] and is_chained(folder / "metrics.jsonl")
    assert ("WARNING: metrics.jsonl was removed or replaced" in told) == (how[0] == "r")
    assert not (tmp_path / "run").exists() or folder.name == "run"


def test_what_json_has_no_number_for_is_null():
    content = finite([{"loss": float("nan"), "languini": {"ppl": float("inf"), "tokens": 3}}, 1.5])
    assert (
        json.dumps(content, allow_nan=False)
        == '[{"loss": null, "languini": {"ppl": null, "tokens": 3}}, 1.5]'
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full")
def test_a_run_whose_log_is_on_a_full_disk_goes_on(sample, tmp_path):
    config = write_run(
        tmp_path, gpt={"data_root": str(sample), "max_train_steps": 2, "logger_type": "tb"}
    )
    with open("/dev/full", "w") as log:
        done = subprocess.run(
            [sys.executable, ROOT / "gpt/train.py", "--ds_config", config],
            cwd=tmp_path,
            text=True,
            stdout=log,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/tiny/checkpoints/latest").read_text() == "global_step2\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full")
def test_a_run_whose_metrics_are_on_a_full_disk_goes_on(sample, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sinks, "open_own", lambda path, flags: os.open("/dev/full", os.O_RDWR))
    plain_run.train(tmp_path / "run", sample, gpt={"max_train_steps": 2, "logger_type": "tb"})
    assert capsys.readouterr().err.startswith(
        "WARNING: metrics.jsonl cannot be written to (No space left on device): training goes on"
        " without it\n"
    )
    assert (tmp_path / "run/checkpoints/latest").read_text() == "global_step2\n"


def test_wandb_without_an_account_is_a_mistake(tmp_path, monkeypatch):
    for name, value in (
        ("WANDB_MODE", "online"),
        ("HOME", str(tmp_path)),
        ("NETRC", str(tmp_path / "netrc")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(
        UserError, match="wandb does not begin .*: `wandb login` first, or leave WANDB_MODE unset"
    ):
        Wandb(tmp_path, CONFIG, {}, goes_on=False)

"""A ladder of classes on one trunk, trained in this process."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from conftest import read_metrics, write_run
from plain_run import WEIGHTS, train, train_config

from gpt.config.command_line import parse_command_line
from gpt.config.resolve import load
from gpt.errors import UserError
from gpt.metrics.runs import read_runs
from gpt.training import ladder, sweep

# steps of each class; a cooldown is a quarter of them
LENGTHS = {"short": 4, "mid": 8, "long": 12}
STARTS = {"short": 3, "mid": 6, "long": 9}


def cooldown(steps, **params):
    common = {"max_lr": 3e-3, "min_lr": 1e-4, "warmup_steps": 2, "cooldown_share": 0.25}
    return {"type": "LinearCooldownLR", "params": {**common, "decay_steps": steps, **params}}


def write_class(folder, sample, name, steps, gpt=(), **options):
    own = {"data_root": str(sample), "max_train_steps": steps, "eval_every": 100, "keep_last": 1}
    own |= {"log_ckpt_every": 1, "max_eval_steps": 1}
    scheduler = options.pop("scheduler", cooldown(steps))
    return write_run(folder, name, gpt={**own, **dict(gpt)}, scheduler=scheduler, **options)


@pytest.fixture
def classes(tmp_path, sample):
    return [str(write_class(tmp_path, sample, name, steps)) for name, steps in LENGTHS.items()]


@pytest.fixture
def in_process(monkeypatch):
    """Whatever a sweep starts trains in this process; returns the names of the runs, in order."""
    started = []
    start = subprocess.Popen

    def popen(command, *others, **named):
        if str(sweep.TRAIN) not in command:
            return start(command, *others, **named)
        args = parse_command_line(command[command.index(str(sweep.TRAIN)) + 1 :])
        config = load(args.ds_config, 1, args.overrides)
        started.append(config.run_dir.name)
        train_config(config)
        return SimpleNamespace(wait=lambda: 0, poll=lambda: 0)

    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    return started


def train_ladder(classes, out, train_args=(), seeds=None):
    overrides = parse_command_line(["--ds_config", "", *train_args]).overrides
    runs = ladder.plan_on_trunks(classes, seeds, out, overrides)
    stop = SimpleNamespace(reason=None, wait_for=lambda process: process.wait())
    sweep.train_all(runs, out, ["python"], list(train_args), stop)
    return runs


def weights(run_dir, step):
    path = run_dir / "checkpoints" / f"global_step{step}" / WEIGHTS
    state = torch.load(path, weights_only=True)
    return torch.cat([value.flatten() for value in state.values() if torch.is_tensor(value)])


def test_a_ladder_is_trained_on_one_trunk(classes, sample, tmp_path, in_process):
    out = tmp_path / "out"
    runs = train_ladder(classes, out)
    assert in_process == ["trunk", "short", "mid", "long"]
    for name, steps in LENGTHS.items():
        own = read_metrics(out / name, "train")
        assert [line["step"] for line in own] == list(range(STARTS[name] + 1, steps + 1))
    # however few are kept: these three, and those of every step before are gone
    kept = {path.name for path in (out / "trunks/trunk/checkpoints").glob("global_step*")}
    assert kept == {"global_step3", "global_step6", "global_step9"}
    # the class that nobody trained a trunk for
    train(
        tmp_path / "alone",
        sample,
        gpt=json.loads(open(classes[1]).read())["gpt"] | {"run_dir": str(tmp_path / "alone")},
        scheduler=cooldown(8),
    )
    assert torch.equal(weights(out / "mid", 8), weights(tmp_path / "alone", 8))
    # readers of a ladder's folder see its classes alone
    assert [run.name for run in read_runs([out])] == ["long", "mid", "short"]
    summaries = json.loads((out / "sweep.json").read_text())["runs"]
    told = [(entry["run_dir"], entry["trunk"], entry["steps_of_trunk"]) for entry in summaries]
    assert told == [
        ("trunks/trunk", None, 0),
        ("short", "trunk", 3),
        ("mid", "trunk", 6),
        ("long", "trunk", 9),
    ]
    assert {entry["status"] for entry in summaries} == {"finished"}
    assert ladder.savings(runs) == (
        "trained once: 9 steps; for each class its cooldown, 6 steps in all: together 15 of the 24"
        " steps of runs without a trunk, 38% spared"
    )
    train_ladder(classes, out)
    assert len(in_process) == 4  # nothing was left to do
    # a trunk that was cleaned away is trained again only where a class waits for it
    shutil.rmtree(out / "trunks/trunk")
    assert [run.status for run in train_ladder(classes, out)] == ["spared", *["finished"] * 3]
    assert len(in_process) == 4
    shutil.rmtree(out / "short")
    train_ladder(classes, out)
    assert in_process[4:] == ["trunk", "short"]


def test_a_trunk_is_not_scored_whole(classes, tmp_path):
    runs = ladder.plan_on_trunks(classes, None, tmp_path / "out", {"gpt.final_eval": True})
    assert [run.config.options.final_eval for run in runs] == [False, True, True, True]


@pytest.mark.slow
def test_every_seed_has_a_trunk_and_options_hold_for_all(classes, tmp_path, in_process):
    out = tmp_path / "out"
    options = ["--scheduler.params.cooldown_share", "0.5", "--keep_last", "1"]
    train_ladder(classes[:2], out, options, seeds=[3, 4])
    assert in_process == [
        "trunk-seed3",
        "short-seed3",
        "mid-seed3",
        "trunk-seed4",
        "short-seed4",
        "mid-seed4",
    ]
    assert [line["step"] for line in read_metrics(out / "short-seed4", "train")] == [3, 4]


def test_a_longer_class_lengthens_the_trunk_and_a_shorter_one_cannot_begin(
    classes, sample, tmp_path, in_process, capsys
):
    out = tmp_path / "out"
    train_ladder(classes[1:2], out)
    train_ladder(classes[1:], out)
    assert in_process == ["trunk", "mid", "trunk", "long"]
    assert [line["step"] for line in read_metrics(out / "long", "train")] == [10, 11, 12]
    train_ladder(classes, out)
    assert "short cannot begin: its trunk has no checkpoint of step 3" in capsys.readouterr().out
    assert len(in_process) == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gpt": {"mlp_dim": 48}}, "(model.mlp_dim was 64, is 48)"),
        ({"train_batch_size": 16}, "(train_batch_size was 8, is 16)"),
        ({"scheduler": cooldown(8, max_lr=1e-3)}, "(scheduler.params.max_lr was 0.003, is 0.001)"),
        (
            {"scheduler": cooldown(8, cooldown_share=0)},
            "of the 8 steps of {file} none come before a cooldown, or none in it: give classes with"
            " LinearCooldownLR and a cooldown_share",
        ),
        (
            {
                "scheduler": {
                    "type": "LanguiniCosineLR",
                    "params": {"decay_steps": 8, "warmup_steps": 0},
                }
            },
            "--trunk: {file} has another schedule: give classes with LinearCooldownLR",
        ),
        ({"gpt": {"init_from": "weights"}}, "begins with the weights of another run"),
    ],
)
def test_classes_that_cannot_have_one_trunk(change, sentence, classes, sample, tmp_path):
    file = write_class(tmp_path, sample, "other", 8, **change)
    with pytest.raises(UserError) as caught:
        ladder.plan_on_trunks([classes[0], str(file)], None, tmp_path / "out", {})
    assert str(caught.value).startswith("--trunk: ")
    assert sentence.format(file=file) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gpt.keep_steps", [4]),
        ("gpt.final_eval", False),
        ("scheduler", None),
        ("scheduler.params.max_lr", 1e-07),
        ("optimizer.params.betas", [0.9, 0.95]),
        ("gpt.model_options", {"rope": True, "names": ["a", "b"]}),
        ("gpt.comment", "3 true words"),
    ],
)
def test_a_setting_of_a_run_is_an_option_that_means_it(path, value):
    words = [sweep._spelling(path, []), *sweep._words(value)]
    assert parse_command_line(["--ds_config", "", *words]).overrides == {path: value}

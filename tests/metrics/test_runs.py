"""Runs read back from their folders."""

import json
import math
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, write_run
from synthetic_runs import (
    FLOPS_PER_TOKEN,
    TOKENS_PER_STEP,
    amend,
    config_yaml,
    evaluation,
    synthetic_run,
    train,
    write_lines,
)

from gpt.config.shape import family
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.metrics import chain
from gpt.metrics.run import values
from gpt.metrics.runs import read_runs

RESUME = {"event": "resume", "step": 2}
REWIND = {"event": "rewind", "step": 4, "to": 1, "loss": 9.0, "batches": [2, 3]}
START = {"event": "start", "step": 0, "device": "cpu"}
COURSES = {  # lines -> (step, loss) of training and of evaluation that count
    "undisturbed": (
        [evaluation(0, 8.0), train(1, 7.0), train(2, 6.0), evaluation(2, 6.5)],
        [(1, 7.0), (2, 6.0)],
        [(0, 8.0), (2, 6.5)],
    ),
    "killed and resumed": (
        [
            train(1, 7.0),
            train(2, 6.0),
            evaluation(2, 6.5),
            train(3, 5.0),
            train(4, 4.5),
            RESUME,
            START,
            train(3, 5.1),
        ],
        [(1, 7.0), (2, 6.0), (3, 5.1)],
        [(2, 6.5)],
    ),
    "an evaluation made up for": (
        [train(1, 7.0), train(2, 6.0), evaluation(2, 6.5), RESUME, evaluation(2, 6.6)],
        [(1, 7.0), (2, 6.0)],
        [(2, 6.6)],
    ),
    "rewound": (
        [
            train(1, 7.0),
            evaluation(1, 7.5),
            train(2, 6.0),
            train(3, 5.0),
            evaluation(3, 5.5),
            REWIND,
        ],
        [(1, 7.0)],
        [(1, 7.5)],
    ),
    "begun again without a checkpoint": (
        [
            evaluation(0, 8.0),
            train(1, 7.0),
            train(2, 6.0),
            evaluation(2, 6.5),
            START,
            evaluation(0, 8.0),
            train(1, 7.0),
        ],
        [(1, 7.0)],
        [(0, 8.0)],
    ),
}


@pytest.mark.parametrize("case", COURSES)
def test_lost_steps_do_not_count(case, tmp_path):
    lines, trained, evaluated = COURSES[case]
    config_yaml(tmp_path / "run")
    write_lines(tmp_path / "run", lines)
    (run,) = read_runs([tmp_path / "run"])
    assert [(e["step"], e["loss"]) for e in run.curve("train")] == trained
    assert [(e["step"], e["loss"]) for e in run.curve("eval", "test")] == evaluated
    # it did happen
    assert [e["step"] for e in run.events.get("rewind", [])] == [4] * (case == "rewound")


def test_norms_of_a_step_stand_before_its_training_line(tmp_path):
    config_yaml(tmp_path / "run")
    norms = [
        {"event": "norms", "step": step, "gradient": {"head": float(step)}} for step in (1, 2, 3)
    ]
    write_lines(
        tmp_path / "run",
        [norms[0], train(1, 7.0), norms[1], train(2, 6.0), norms[2], train(3, 5.0), RESUME],
    )
    (run,) = read_runs([tmp_path / "run"])
    assert values(run.curve("norms"), "gradient/head").tolist() == [1.0, 2.0]


def test_splits_are_kept_apart(tmp_path):
    config_yaml(tmp_path / "run")
    write_lines(
        tmp_path / "run", [evaluation(2, 6.0), evaluation(2, 9.0, "python"), evaluation(2, 6.1)]
    )
    (run,) = read_runs([tmp_path / "run"])
    assert run.splits() == ["test", "python"] and run.final()["loss"] == 6.1
    assert [e["loss"] for e in run.curve("eval", "python")] == [9.0]


def test_a_half_written_line_is_no_damage_and_damage_is_named(tmp_path):
    config_yaml(tmp_path / "run")
    whole = json.dumps(train(3, 5.0))
    lines = [
        train(1, 7.0),
        '{"event": "train", "ste\n',
        "[1, 2]\n",
        train(2, 6.0),
        '{"event": "train", "step": true}\n',
        "\n",
        whole[:40],
    ]
    write_lines(tmp_path / "run", lines, end="")
    (run,) = read_runs([tmp_path / "run"])
    assert run.last_step == 2
    assert run.notices == [f"{tmp_path}/run/metrics.jsonl: lines 2, 3, 5 are damaged and left out"]
    write_lines(tmp_path / "run", [train(1, 7.0), whole], end="")  # whole but for its end
    (run,) = read_runs([tmp_path / "run"])
    assert run.last_step == 3 and run.notices == []


def test_axes_of_older_lines_follow_from_the_configuration_but_for_measured_hours(tmp_path):
    synthetic_run(tmp_path / "old", 20, measured=False, tokens_per_second=64.0)
    synthetic_run(tmp_path / "new", 20, measured=True, tokens_per_second=64.0)
    old, new = read_runs([tmp_path / "old", tmp_path / "new"])
    for run in (old, new):
        lines = run.curve("eval", "test")
        assert run.over("steps", lines).tolist() == [0, 10, 20]
        assert run.over("tokens", lines).tolist() == [0, 10 * TOKENS_PER_STEP, 20 * TOKENS_PER_STEP]
        assert run.over("flops", lines).tolist() == [
            0,
            10 * 256 * FLOPS_PER_TOKEN,
            20 * 256 * FLOPS_PER_TOKEN,
        ]
        assert run.over("reference_hours", lines).tolist() == [
            0,
            10 * 256 / 64 / 3600,
            20 * 256 / 64 / 3600,
        ]
    assert old.over("hours", old.curve("train")) is None
    assert new.over("hours", new.curve("train"))[-1] == 0.02


def test_numbers_that_are_none(tmp_path):
    events = [
        {"loss": 1},
        {"loss": None},
        {},
        {"loss": "1"},
        {"loss": True},
        {"loss": 10**400},
        {"loss": {"x": 1}},
    ]
    assert np.array_equal(
        values(events, "loss"), [1, *[np.nan] * 4, np.inf, np.nan], equal_nan=True
    )
    assert values([{"seconds": {"data": 2.5}}, {"seconds": 3.0}], "seconds/data").tolist()[:1] == [
        2.5
    ]


def test_names_are_as_short_as_they_are_distinct(tmp_path):
    for name in ("one/24h", "two/24h", "two/6h"):
        synthetic_run(tmp_path / name, 5)
    assert [run.name for run in read_runs([tmp_path / "one/24h", tmp_path / "two/6h"])] == [
        "24h",
        "6h",
    ]
    assert [
        run.name for run in read_runs([tmp_path / "one", tmp_path / "two", tmp_path / "one/24h"])
    ] == ["one/24h", "two/6h", "two/24h"]


@pytest.mark.parametrize(
    "shape, name",
    [
        ({"preset": "mini"}, "mini"),
        ({"preset": "small", "n_layers": 6}, "6x768"),
        ({}, "2x32-mlp64-attn16"),
        ({"h_dim": 512, "mlp_dim": 2048, "n_heads": 8, "head_dim": 32, "n_layers": 4}, "mini"),
    ],
)
def test_families(shape, name, tmp_path):
    preset = (
        dict.fromkeys(("n_layers", "h_dim", "mlp_dim", "n_heads", "head_dim"))
        if "preset" in shape
        else {}
    )
    assert family(config_yaml(tmp_path / "run", **{**preset, **shape})) == name


def test_what_the_trainer_writes_is_read(sample, tmp_path, run_command):
    config = write_run(
        tmp_path,
        gpt={"data_root": str(sample), "eval_every": 3, "tokens_per_second": 64.0, "seed": 5},
    )
    command = [sys.executable, ROOT / "gpt/train.py", "--ds_config", config]
    for steps in (4, 6):
        done = run_command([*command, "--max_train_steps", steps], tmp_path, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    (run,) = read_runs([tmp_path / "runs/tiny"])
    assert run.finished and run.notices == [] and run.options["seed"] == 5
    assert run.fingerprint == Dataset(sample).fingerprint and run.family == "2x32-mlp64-attn16"
    lines = run.curve("train")
    assert run.over("steps", lines).tolist() == [1, 2, 3, 4, 5, 6]
    assert run.over("tokens", lines).tolist() == [256 * step for step in range(1, 7)]
    assert run.over("flops", lines)[-1] == 6 * 256 * FLOPS_PER_TOKEN
    assert run.over("reference_hours", lines)[-1] == pytest.approx(6 * 256 / 64 / 3600, rel=1e-12)
    assert [e["step"] for e in run.curve("eval", "test")] == [0, 3, 4, 6] and run.final()[
        "bytes"
    ] > 1000
    for tool, options in (
        ("plot", ["--out", "figures"]),
        ("report", ["--out", "report.html"]),
        ("compare", []),
    ):
        done = run_command(
            [sys.executable, ROOT / f"tools/{tool}.py", "runs", *options],
            tmp_path,
            OMP_NUM_THREADS="1",
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (
        "| 1 | tiny | 2x32-mlp64-attn16 | 0.1451 M | 6 x 256 | 1 |"
        f" {run.final()['normalised_ppl']:.4f} | " in done.stdout
    )


def break_config(path, change):
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


MISTAKES = {
    "absent": (
        lambda run: None,
        "{root}/none does not exist: give the folder that training made (--run_dir)",
    ),
    "no metrics": (
        lambda run: (run / "metrics.jsonl").unlink(),
        (
            "{run} holds no run (no metrics.jsonl), nor do the folders "
            "in it: give the folder that training made (--run_dir)"
        ),
    ),
    "no config": (
        lambda run: (run / "config.yaml").unlink(),
        "{run} has no config.yaml, which tells what was run: copy it from the run's folder",
    ),
    "no model": (
        lambda run: break_config(run / "config.yaml", lambda tree: tree.pop("model")),
        "{run}/config.yaml is not the config.yaml of a run: it lacks the blocks `model` and `run`",
    ),
    "no steps": (
        lambda run: break_config(run / "config.yaml", lambda tree: tree["run"].pop("gpt")),
        "{run}/config.yaml does not tell run.gpt.max_train_steps: use the file that training wrote",
    ),
    "a text for a width": (
        lambda run: break_config(
            run / "config.yaml", lambda tree: tree["model"].update(h_dim="32")
        ),
        "{run}/config.yaml: model.h_dim is '32', not a whole number: use the file",
    ),
    "speed 0": (
        lambda run: break_config(
            run / "config.yaml", lambda tree: tree["run"]["gpt"].update(tokens_per_second=0)
        ),
        "{run}/config.yaml: run.gpt.tokens_per_second is 0, must be at least 0.001: use the file",
    ),
    "a hash for the code": (
        lambda run: amend(run, {"code": "abc"}),
        "{run}/config.yaml: code is no block: use the file that training wrote",
    ),
    "a text for tokens": (
        lambda run: amend(run, {"dataset/scored": {"tokens": "5"}}),
        "{run}/config.yaml: dataset.scored.tokens is '5', not a whole number: use the file",
    ),
    "half a change": (
        lambda run: amend(run, {"changes": [{"step": 3}]}),
        "{run}/config.yaml: entry 1 of changes does not tell is, setting, step, was: use the file",
    ),
    "not YAML": (
        lambda run: (run / "config.yaml").write_text("a: [1"),
        "{run}/config.yaml is not YAML",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, tmp_path):
    damage, sentence = MISTAKES[case]
    run = synthetic_run(tmp_path / "run", 5)
    damage(run)
    with pytest.raises(UserError) as error:
        read_runs([tmp_path / "none" if case == "absent" else run])
    assert str(error.value).startswith(sentence.format(root=tmp_path, run=run))


FORGED = {
    "a figure": (
        {"normalised_ppl": 1.5},
        "normalised_ppl is 1.5, and its sums make it 2.117000017",
    ),
    "a sum": ({"total_loss": 1e3}, "loss is 3, and its sums make it 4"),
    "all derived ones": (
        {"loss": 1.0, "ppl": math.e},
        "loss is 1, and its sums make it 3",
    ),
    "all that follow from a sum that is not told": (
        {"text_tokens": ..., "normalised_loss": 0.25, "normalised_ppl": math.exp(0.25)},
        "normalised_loss is 0.25, and the others make it 0.75",
    ),
    "of a line without its sums": (
        {"text_nats": ..., "bits_per_byte": 1.0},
        "bits_per_byte is 1, and the others make it 1.082021281",
    ),
    "a sum of this version's": (
        {"text_nats": ..., "of_tokens": 300},
        "text_nats is None, not a number",
    ),
    "a sum that no divergence explains": (
        {"text_nats": None, "normalised_loss": None, "of_tokens": 300},
        "text_nats is None, not a number",
    ),
    "of a run that diverged": (
        {"total_loss": None, "loss": None, "ppl": 2.0},
        "ppl is 2, and its sums make it nan",
    ),
    "below 0": (
        {"total_loss": -750.0, "text_nats": ..., "loss": -3.0},
        "total_loss is -750, below 0",
    ),
    "a part beyond the whole": (
        {"of_tokens": 200},
        "tokens is 250, more than of_tokens (200)",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_an_evaluation_that_contradicts_itself_is_refused(case, tmp_path):
    figures, problem = FORGED[case]
    run = synthetic_run(tmp_path / "run", 5)
    line = {**evaluation(5, 3.0), **figures}
    line = {name: value for name, value in line.items() if value is not ...}
    write_lines(run, [train(5, 3.0), line])
    with pytest.raises(UserError) as error:
        read_runs([run])
    assert str(error.value) == (
        f"{run}/metrics.jsonl:2 contradicts itself: {problem}: bring back the line that training"
        " wrote"
    )


def test_lines_of_earlier_versions_and_of_runs_that_diverged_are_read(tmp_path):
    earlier = evaluation(5, 3.0)
    for name in ("text_nats", "text_tokens"):
        del earlier[name]
    figures = ("total_loss", "loss", "ppl", "normalised_loss", "normalised_ppl", "bits_per_byte")
    for name, line in {
        "earlier": earlier,
        "diverged": {**evaluation(5, 3.0), **dict.fromkeys((*figures, "text_nats"))},
        "diverged too": {
            **evaluation(5, 3.0, of_tokens=300),
            **dict.fromkeys((*figures, "text_nats")),
        },
    }.items():
        write_lines(synthetic_run(tmp_path / name, 5), [train(5, 3.0), line])
    assert len(read_runs([tmp_path])) == 3


def test_what_cannot_be_used_costs_a_notice_where_notices_are_taken(tmp_path):
    synthetic_run(tmp_path / "good", 5)
    (tmp_path / "empty").mkdir()
    notices = []
    (run,) = read_runs([tmp_path / "empty", tmp_path / "good"], notices)
    reason = (
        f"{tmp_path}/empty holds no run (no metrics.jsonl), nor do the folders in it: give the"
        " folder that training made (--run_dir)"
    )
    assert run.name == "good" and notices == [f"left out: {reason}"]
    with pytest.raises(UserError) as error:
        read_runs([tmp_path / "empty"], [])
    assert str(error.value) == f"no run can be used; {reason}"
    with pytest.raises(UserError, match="typo does not exist"):
        read_runs([tmp_path / "good", tmp_path / "typo"], [])


def test_a_folder_of_runs_is_read_by_rising_numbers(tmp_path):
    for name in ("12h-seed0", "6h-seed10", "6h-seed9", "0.25h", "0.5h", "a"):
        synthetic_run(tmp_path / name, 5)
    assert [run.name for run in read_runs([tmp_path])] == [
        "0.25h",
        "0.5h",
        "6h-seed9",
        "6h-seed10",
        "12h-seed0",
        "a",
    ]


def test_a_copy_of_a_run_is_no_second_run(finished, tmp_path):
    original = finished / "runs/tiny"
    for name in ("a", "b"):
        shutil.copytree(original, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    notices = []
    (run,) = read_runs([tmp_path], notices)
    assert run.name == "a" and notices == ["b is left out: it is a copy of a"]


@contextmanager
def as_nobody():
    """Without root's leave to look into every folder."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_looked_into_is_told():
    folder = Path(tempfile.mkdtemp(prefix="runs-"))  # below folders that are everybody's
    notices = []
    try:
        folder.chmod(0o755)
        for name in ("a", "b", "c"):
            synthetic_run(folder / name, 5)
        (folder / "b").chmod(0o700)
        (folder / "c/metrics.jsonl").chmod(0o600)
        with as_nobody():
            names = [run.name for run in read_runs([folder], notices)]
    finally:
        shutil.rmtree(folder)
    assert names == ["a"] and notices == [
        f"left out: {folder}/b cannot be looked into (Permission denied): have it made readable, or"
        " name the runs that are to be read",
        f"left out: cannot read {folder}/c/metrics.jsonl: Permission denied",
    ]


def test_what_is_no_run_ends_and_costs_a_notice(tmp_path):
    synthetic_run(tmp_path / "a", 5)
    for name in ("pipe", "folder", "nowhere", "endless", "huge"):
        config_yaml(tmp_path / name)
    os.mkfifo(tmp_path / "pipe/metrics.jsonl")
    (tmp_path / "folder/metrics.jsonl").mkdir()
    (tmp_path / "nowhere/metrics.jsonl").symlink_to("/none")
    (tmp_path / "endless/metrics.jsonl").symlink_to("/dev/zero")
    with open(tmp_path / "huge/metrics.jsonl", "w") as file:
        file.truncate(100 << 30)  # of which no disk holds anything
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("/none")
    (tmp_path / "self").symlink_to(".")  # which holds runs, and is none
    notices = []
    (run,) = read_runs([tmp_path], notices)
    reasons = {
        "folder": "Is a directory",
        "nowhere": "No such file or directory",
        "endless": "a pipe or a device, not a file",
        "huge": "more than the 1,073,741,824 bytes that such a file may have",
        "pipe": "a pipe or a device, not a file",
        "gone": "No such file or directory",
        "loop": "Too many levels of symbolic links",
    }
    assert run.name == "a" and len(notices) == len(reasons)
    for name, reason in reasons.items():
        (notice,) = [text for text in notices if f"{tmp_path}/{name}" in text]
        assert reason in notice


def test_a_line_that_is_too_long_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "MOST_BYTES_OF_LINE", 1000)
    config_yaml(tmp_path / "run")
    long = json.dumps({**train(2, 6.0), "more": "x" * 5000}) + "\n"
    write_lines(tmp_path / "run", [train(1, 7.0), long, train(3, 5.0), "y" * 3000], end="")
    (run,) = read_runs([tmp_path / "run"])
    assert [event["step"] for event in run.curve("train")] == [1, 3]
    assert run.notices == [f"{tmp_path}/run/metrics.jsonl: lines 2, 4 are damaged and left out"]


def test_names_that_differ_in_controls_alone_are_told_apart(tmp_path):
    for name in ("a\n", "a\\n"):
        synthetic_run(tmp_path / name, 5)
    names = [run.name for run in read_runs([tmp_path])]
    assert len(set(names)) == 2 and not any("\n" in name for name in names)

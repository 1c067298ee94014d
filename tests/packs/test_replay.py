"""The first steps of a run, trained again: from the pack alone, and held against its log."""

import json

import pytest
import yaml
from entry_runs import STEPS, new_entry, small_dataset
from forger import amend_config, lines_of, renew_head, renew_seal, write_log
from own_code_run import KeepingEngine
from plain_run import train_config

from gpt.compute import hardware
from gpt.config.resolve import load
from gpt.errors import UserError
from gpt.metrics.run import Run
from gpt.packs import pack, replay, rounding, verify
from gpt.packs.evidence import Declared, Evidence, LeftOut
from gpt.packs.replay import Tolerance
from gpt.quantities import quantities
from gpt.referee import runs

RUN = Declared("contender-seed1", "contender", 1)
EXACT = Tolerance(0.0, 0.0)
NEAR = Tolerance(1e-4, 1e-2, "another processor")


@pytest.fixture
def in_process(monkeypatch):
    """Replays train as the pack's runs were trained."""

    def train(file, environment, may_diverge):
        train_config(load(file), engine=KeepingEngine)

    monkeypatch.setattr(replay, "_train", train)


def replayed(folder, steps=2, trusted=True):
    problems = []
    words = replay.gives_the_same_steps(Evidence(folder, None, trusted), problems, steps)
    return problems, words


def test_an_honest_log_is_what_its_seeds_make(packed, in_process):
    problems, words = replayed(packed, 1000)
    assert problems == []
    assert words == f"all {STEPS} steps of 4 runs as in their logs, to the last bit"


def edit(folder, name, kind, step, *quantities):
    """Change figures of a line in the eighth digit, as a forger who renews every hash."""
    run = folder / "runs" / name
    lines = lines_of(run)
    (line,) = [line for line in lines if (line["event"], line["step"]) == (kind, step)]
    for quantity in quantities:
        line[quantity] *= 1 + 1e-8
    write_log(run, lines)
    renew_head(folder, name)
    renew_seal(folder)


def test_an_edited_log_is_named_however_well_it_is_chained(packed, in_process):
    edit(packed, "baseline-seed0", "train", 1, "grad_norm")
    edit(packed, "contender-seed0", "train", 2, "loss")
    run = packed / "runs" / "baseline-seed1"
    lines = lines_of(run)
    for line in lines:
        if line["event"] == "eval" and line["step"] == 0:
            line |= fewer_nats(line)
    write_log(run, lines)
    problems, _ = replayed(packed)
    words = {
        "baseline-seed0": "grad_norm of step 1 is ",
        "contender-seed0": "loss of step 2 is ",
        "baseline-seed1": "total_loss of evaluation 0 is ",
    }
    assert len(problems) == len(words)
    for problem in problems:
        name, _, rest = problem.partition(": ")
        assert rest.startswith(words[name])
        assert rest.endswith("(on a CPU of the same kind it is the same to the last bit)")


def test_a_run_that_did_not_diverge_is_named(packed, in_process):
    """As a forger would have it of the baseline's best trial."""
    run = packed / "runs" / "baseline-seed0"
    lines = [line for line in lines_of(run) if line["step"] <= 2 and line["event"] != "final_eval"]
    write_log(run, [*lines, {"event": "failed", "step": 2, "reason": "so it says", "time": 0.0}])
    problems, _ = replayed(packed, STEPS)
    assert problems == ["baseline-seed0: trained again it goes on, and its log ends at step 2"]


def fewer_nats(line):
    """An evaluation's figures, all of which follow from sums that are a little less."""
    names = ("tokens", "text_tokens", "bytes")
    nats = {name: 0.999 * line[name] for name in ("total_loss", "text_nats")}
    return quantities(**nats, **{name: line[name] for name in names})


@pytest.mark.slow
def test_a_run_of_another_seed_is_named(packed, in_process):
    amend_config(packed / "runs" / RUN.name / "config.yaml", _reseed)
    problems, _ = replayed(packed)
    assert problems and problems[0].startswith(f"{RUN.name}: total_loss of evaluation 0 is ")


def _reseed(tree):
    tree["run"]["gpt"]["seed"] = 7


def test_a_replay_writes_nowhere_else(packed):
    """What a hostile configuration has DeepSpeed write, and where."""
    path = packed / "runs" / RUN.name / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["run"] |= {
        "csv_monitor": {"enabled": True, "output_path": "/home/somebody"},
        "flops_profiler": {"enabled": True, "output_file": "/home/somebody/.profile"},
    }
    config["run"]["gpt"] |= {"logger_type": "all", "keep_steps": [1], "run_dir": "/home/somebody"}
    path.write_text(yaml.safe_dump(config))
    tree = replay.tree_of(Evidence(packed, None, trusted=True), RUN, 3)
    assert "/home/somebody" not in json.dumps({**tree, "gpt": {**tree["gpt"], "run_dir": None}})
    assert tree["gpt"]["logger_type"] == "none"
    assert tree["gpt"]["max_train_steps"] == 3
    assert tree["scheduler"]["params"]["decay_steps"] == STEPS
    assert tree["gpt"]["model_file"] == str(packed / "own.py")


def test_code_that_is_not_as_told_is_not_run(packed):
    file = packed / "own.py"
    file.write_text(file.read_text() + "\nraise SystemExit('run')\n")
    with pytest.raises(UserError, match="own.py .*, and config.yaml tells "):
        replay.tree_of(Evidence(packed, None, trusted=True), RUN, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpt": {"init_from": "runs/6h/export"}}, r"began with the weights of runs/6h/export"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/d"}}},
            "keeps a part of itself on a disk of its machine",
        ),
    ],
)
def test_what_the_pack_alone_cannot_begin_is_left_out(packed, settings, words):
    def change(tree):
        for block, values in settings.items():
            tree["run"].setdefault(block, {}).update(values)

    amend_config(packed / "runs" / RUN.name / "config.yaml", change)
    with pytest.raises(LeftOut, match=words):
        replayed(packed)


def log(losses, start=()):
    """A run with these losses from step 1 on."""
    config = {"run": {"gpt": {"eval_data_split": "test"}}, "precision": "fp32"}
    run = Run("", config)
    run.events["train"] = [
        {"event": "train", "step": step, "loss": loss, "grad_norm": 1.0}
        for step, loss in enumerate(losses, 1)
    ]
    run.events["start"] = [*start]
    return run


@pytest.mark.parametrize(
    ("losses", "tolerance", "words"),
    [
        ([5.0, 4.0], EXACT, None),
        ([5.0, 4.0000001], EXACT, "loss of step 2 is 4.0000001 in its log, and 4.0 trained again"),
        ([5.0, 4.0001], NEAR, None),
        ([5.0, 4.001], NEAR, "(equal would be within 0.0001: another processor)"),
        ([None, 4.0], NEAR, "loss of step 1 is None in its log, and 5.0 trained again"),
    ],
)
def test_a_tolerance_is_what_rounding_may_make(losses, tolerance, words):
    problems = list(replay.differences("r", log(losses), log([5.0, 4.0]), tolerance))
    assert len(problems) == (words is not None)
    assert words is None or words in problems[0]


def start(**facts):
    here = {
        "device": "cpu (x86_64, 2 threads)",
        "processor": hardware.processor(),
        "ranks": 1,
        "versions": hardware.versions(),
    }
    return {"event": "start", "step": 0, **here, **facts}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, []),
        ({"ranks": 2}, ["2 ranks"]),
        ({"device": "NVIDIA H100"}, ["trained on NVIDIA H100"]),
        ({"processor": None}, [f"processor None, here {hardware.processor()}"]),
        (
            {"versions": {**hardware.versions(), "torch": "1.0"}},
            [f"torch 1.0, here {hardware.versions()['torch']}"],
        ),
    ],
)
def test_machines_are_told_apart(facts, words):
    assert rounding.differences(log([1.0], [start(**facts)])) == words


def test_threads_are_the_logs():
    assert rounding.threads_of(log([1.0], [start()])) == 2
    assert rounding.threads_of(log([1.0], [start(device="NVIDIA H100")])) is None
    assert rounding.threads_of(log([1.0])) is None


@pytest.mark.slow
def test_real_runs_are_trained_again_to_the_last_bit(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text("from gpt.variants.lstm import build\n")
    entry = new_entry(tmp_path, small_dataset(tmp_path), seeds=[3], model_file=str(file))
    runs.train(entry.path, None, None)
    pack.write(entry.path, tmp_path / "pack", with_weights=True)
    assert verify.report(tmp_path / "pack", None, STEPS, trusted=True) == 0
    out = capsys.readouterr().out
    assert f"all {STEPS} steps of 2 runs as in their logs, to the last bit" in out

    run = tmp_path / "pack" / "runs" / "contender-seed3"
    lines = lines_of(run)
    for line in lines:
        if line["event"] == "train" and line["step"] == STEPS:
            line["loss"] *= 1 + 1e-7
    write_log(run, lines)
    renew_head(tmp_path / "pack", run.name)
    renew_seal(tmp_path / "pack")
    assert verify.report(tmp_path / "pack", None, STEPS, trusted=True) == 2
    assert f"contender-seed3: loss of step {STEPS} is " in capsys.readouterr().out

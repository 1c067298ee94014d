"""Runs of an entry: trained in turns, evaluated, on record, gone on with."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import psutil
import pytest
from conftest import ROOT, read_metrics

pytest.importorskip("torch")

from entry_runs import in_this_process, lines_of, new_entry, small_dataset, train_here

from gpt.config.saved import read_config
from gpt.errors import RunError, UserError
from gpt.referee import check, final_evaluation, runs, starts, tuning
from gpt.referee import entry as entries
from gpt.results import document_sums
from gpt.training.sweep import SweptRun

EVALUATION = "evaluations/test-step4.json"
DOCUMENTS = "evaluations/test-step4.documents.jsonl"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("books"))


def train(entry, seeds=None):
    with in_this_process():
        runs.train(entry.path, seeds, None)


def trained(entry):
    """(the entry, trained; what was printed)."""
    with mock.patch("builtins.print") as printed:
        train(entry)
    words = [str(call.args[0]) for call in printed.call_args_list if call.args]
    return entry, "\n".join(words)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, dataset, one_thread):
    folder = tmp_path_factory.mktemp("tuned")
    factors = [1.0, 20.0]
    return trained(new_entry(folder, dataset, "--max_lr", 0.01, factors=factors, seeds=[0]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset, one_thread):
    folder = tmp_path_factory.mktemp("finished")
    return trained(new_entry(folder, dataset, seeds=[0]))[0]


@pytest.fixture
def again(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished.path, tmp_path / "entry")
    return entries.read(tmp_path / "entry")


def test_trials_come_first_and_the_sides_take_turns(tuned):
    entry, _ = tuned
    trials = [
        f"tuning/{side}-x{factor}-seed1000"
        for side in ("baseline", "contender")
        for factor in (1.0, 20.0)
    ]
    final = ["runs/baseline-seed0", "runs/contender-seed0"]
    assert [start.run for start in starts.read(entry)] == trials + final
    last = lines_of(entry)[-1]
    assert (last["event"], last["exit_code"], last["status"], last["step"]) == (
        "end",
        0,
        "finished",
        4,
    )


def test_the_best_rate_of_each_side_is_taken_and_told(tuned):
    entry, told = tuned
    for side, own in (("baseline", 0.003), ("contender", 0.01)):
        losses = {}
        for factor in (1.0, 20.0):
            run_dir = entry.tuning_runs / f"{side}-x{factor}-seed1000"
            losses[factor] = read_metrics(run_dir, "final_eval")[-1]["loss"]
        best = min(losses, key=losses.get)
        settings = tuning.trial_settings(entry, side)
        assert tuning.factor_of(entry, side, tuning.trial_losses(entry, side, settings)) == best
        assert f"{side}: {best:g} times its max_lr, at the edge of those tried," in told
        rate = read_config(entry.run_folder(side, 0) / "config.yaml")["run"]["scheduler"]["params"][
            "max_lr"
        ]
        chosen = tuning.settings_of(entry, side)
        assert rate == own * best == chosen["scheduler.params.max_lr"]
        floors = {factor: block["scheduler.params.min_lr"] for factor, block in settings.items()}
        assert floors[20.0] == 20.0 * floors[1.0] > 0
        assert chosen["scheduler.params.min_lr"] == floors[best]
        assert f"{side}-seed0  " in told and f"{rate:g}" in told


def test_check_tells_what_the_trials_came_to(tuned, capsys):
    entry, told = tuned
    check.report(entry.path, with_runs=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line[6:13] == "trials "]
    assert len(lines) == 2 and all(line[21:] in told for line in lines)


def test_a_trial_that_diverged_is_a_trial(tuned):
    entry, _ = tuned
    losses = {1.0: math.nan, 20.0: 5.0}
    assert tuning.factor_of(entry, "baseline", losses) == 20
    with pytest.raises(UserError, match="the trial of the baseline at 20 times its max_lr is not"):
        tuning.factor_of(entry, "baseline", {**losses, 20.0: None})


@pytest.mark.parametrize(
    "was, now, sentence",
    [
        ("max_lr: 0.003\n", "max_lr: 99.0\n", "scheduler.params.max_lr is 99"),
        ("seed: 1000\n", "seed: 0\n", "gpt.seed is 0 there, and 1000 by"),
    ],
    ids=["rate", "seed"],
)
def test_a_trial_that_is_another_is_named(tuned, tmp_path, was, now, sentence):
    shutil.copytree(tuned[0].path, tmp_path / "entry")
    entry = entries.read(tmp_path / "entry")
    file = entry.tuning_runs / "baseline-x1.0-seed1000/config.yaml"
    file.write_text(file.read_text().replace(was, now))
    with pytest.raises(UserError) as caught:
        tuning.settings_of(entry, "baseline")
    assert "baseline-x1.0-seed1000 is not the trial that the entry declares" in str(caught.value)
    assert sentence in str(caught.value)


def test_every_run_is_exported_and_evaluated(tuned):
    entry, told = tuned
    for side in entries.SIDES:
        run_dir = entry.run_folder(side, 0)
        evaluation = json.loads((run_dir / EVALUATION).read_text())
        sums = document_sums.read(run_dir / DOCUMENTS)
        assert evaluation["tokens"] == evaluation["of_tokens"] == sums.tokens.sum()
        assert evaluation["total_loss"] == pytest.approx(sums.nats.sum(), rel=1e-9)
        # training scored the same weights
        in_training = read_metrics(run_dir, "final_eval")[-1]["loss"]
        assert evaluation["loss"] == pytest.approx(in_training, rel=1e-5)
        assert (run_dir / "export/model.safetensors").is_file()
        assert f"{evaluation['normalised_loss']:.5f}" in told
    assert told.endswith(f"next: python tools/referee.py judge {entry.path}")


def test_what_is_finished_is_left_alone(again, capsys):
    before = again.starts.read_bytes()
    with mock.patch.object(final_evaluation, "_run", side_effect=AssertionError):
        with in_this_process_without_children():
            runs.train(again.path, None, None)
    assert again.starts.read_bytes() == before
    assert "--- run" not in capsys.readouterr().out


def in_this_process_without_children():
    return mock.patch.object(SweptRun, "train", side_effect=AssertionError)


@pytest.mark.parametrize("lost", [DOCUMENTS, "export"])
def test_what_is_missing_of_an_evaluation_is_made_again(again, lost):
    run_dir = again.run_folder("contender", 0)
    before = (run_dir / EVALUATION).read_text()
    if lost == "export":
        shutil.rmtree(run_dir / lost)
        (run_dir / EVALUATION).unlink()
    else:
        (run_dir / lost).unlink()
    count = len(lines_of(again))
    train(again)
    assert json.loads((run_dir / EVALUATION).read_text())["loss"] == json.loads(before)["loss"]
    assert (run_dir / DOCUMENTS).is_file() and len(lines_of(again)) == count


def test_an_abandoned_start_stays_on_record(dataset, tmp_path, one_thread, capsys):
    entry = new_entry(tmp_path, dataset, seeds=[0])

    def is_killed(run, launcher, train_args, stop):
        if run.record == "runs/contender-seed0":
            raise SystemExit(137)
        train_here(run, launcher, train_args, stop)

    with in_this_process(), mock.patch.object(SweptRun, "train", is_killed):
        with pytest.raises(SystemExit):
            runs.train(entry.path, None, None)
    train(entry)
    record = starts.read(entry)
    assert [(start.run, start.is_abandoned) for start in record] == [
        ("runs/baseline-seed0", False),
        ("runs/contender-seed0", True),
        ("runs/contender-seed0", False),
    ]
    assert "2 (1 abandoned)" in capsys.readouterr().out


def test_a_run_that_fails_is_on_record_and_tried_again(dataset, tmp_path, one_thread, capsys):
    entry = new_entry(tmp_path, dataset, seeds=[0, 1])

    def fails(run, launcher, train_args, stop):
        run.exit_code = 3
        run.status = "failed"

    with in_this_process(), mock.patch.object(SweptRun, "train", fails):
        with pytest.raises(RunError, match="not finished: baseline-seed0, contender-seed0; what"):
            runs.train(entry.path, [0], None)
    assert [(start.exit_code, start.status) for start in starts.read(entry)] == 2 * [(3, "failed")]
    train(entry, [0])
    assert [start.status for start in starts.read(entry)][2:] == 2 * ["finished"]
    told = capsys.readouterr().out
    assert "declared, and not among these: the seeds 1" in told


def test_a_run_that_diverges_is_a_result(dataset, tmp_path, one_thread, capsys):
    entry = new_entry(tmp_path, dataset, "--max_lr", 1e30, seeds=[0])
    train(entry)
    told = capsys.readouterr().out
    assert "diverged, which is a result, and not trained again: contender-seed0" in told
    assert starts.read(entry)[-1].status == "diverged"
    assert not (entry.run_folder("contender", 0) / "export").exists()
    with in_this_process_without_children():
        runs.train(entry.path, None, None)
    assert len(starts.read(entry)) == 2


def test_a_side_of_which_no_trial_was_good_is_told(dataset, tmp_path, one_thread):
    entry = new_entry(tmp_path, dataset, "--max_lr", 1e30, seeds=[0], factors=[1.0, 2.0])
    with pytest.raises(UserError) as caught:
        train(entry)
    assert "all trials of the contender diverged: make the entry anew with a lower max_lr" in str(
        caught.value
    )
    assert not entry.runs.exists()


def test_an_evaluation_that_fails_ends_the_command(again):
    (again.run_folder("baseline", 0) / EVALUATION).unlink()
    with in_this_process(), mock.patch.object(final_evaluation, "_run", lambda *_: 2):
        with pytest.raises(RunError, match="the evaluation of baseline-seed0 ended with exit code"):
            runs.train(again.path, None, None)


def test_seeds_that_were_not_declared_are_refused(again):
    with pytest.raises(UserError) as caught:
        train(again, [0, 7])
    assert str(caught.value) == (
        f"command line: the seed 7 is not one of those that {again.path}/entry.json declares (0):"
        " seeds are declared before training: give one of those"
    )


def test_a_record_that_was_changed_trains_nothing(again):
    text = again.starts.read_text()
    again.starts.write_text(text.replace('"exit_code": 0', '"exit_code": 1', 1))
    with pytest.raises(UserError, match="starts.jsonl:3 is not chained to the line before it"):
        train(again)


def test_a_pack_is_neither_checked_nor_trained(again):
    (again.path / entries.SEAL).write_text("{}")
    for use in (train, lambda entry: check.report(entry.path, with_runs=False)):
        with pytest.raises(UserError, match="is a pack, which is sealed: use the entry that it"):
            use(again)


def test_two_commands_do_not_train_one_entry(again):
    from gpt.locking import FolderLock

    lock = FolderLock(again.path)
    with pytest.raises(UserError, match="another process trains the runs of .*: wait for it"):
        train(again)
    lock.release()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_goes_on(how, dataset, tmp_path, run_command):
    """With real processes: training by DeepSpeed's engine, evaluations by eval.py."""
    steps = 11
    entry = new_entry(
        tmp_path,
        dataset,
        baseline={"max_train_steps": steps, "eval_every": 1, "log_ckpt_every": 1},
        seeds=[0],
    )
    command = [sys.executable, str(ROOT / "tools/referee.py"), "run", str(entry.path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    contender = entry.run_folder("contender", 0)
    while not (contender / "checkpoints/latest").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.02)
    children = psutil.Process(first.pid).children()
    first.send_signal(how)
    for process in children if how == signal.SIGKILL else []:
        process.kill()
        psutil.wait_procs([process])
    told = first.communicate(timeout=240)[0]
    assert (how == signal.SIGTERM) == ("stopped by SIGTERM: the same command goes on" in told)
    done = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    record = starts.read(entry)
    assert [start.run for start in record] == ["runs/baseline-seed0", *2 * ["runs/contender-seed0"]]
    assert record[1].is_abandoned == (how == signal.SIGKILL)
    assert record[2].step > 0 and record[2].status == "finished"
    for side in entries.SIDES:
        assert (entry.run_folder(side, 0) / f"evaluations/test-step{steps}.json").is_file()
    assert done.stdout.endswith(f"next: python tools/referee.py judge {entry.path}\n")

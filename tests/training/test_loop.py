"""When a run saves and evaluates, and what is lost where it is killed between the two."""

import os
import signal

import pytest
import torch
from conftest import read_metrics, tiny_run
from plain_run import WEIGHTS, train

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import Manifest
from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.evaluation import Evaluator
from gpt.metrics.runs import read_run
from gpt.training.start import reached

EVALUATING = {"eval_every": 3, "log_ckpt_every": 3, "max_eval_steps": 3, "keep_last": 0}


def manifest(run_dir, step):
    checkpoint = Checkpoint.open(run_dir / "checkpoints" / folders.tag_of(step))
    return checkpoint.verify().manifest


def evaluated_steps(run_dir):
    return [event["step"] for event in read_metrics(run_dir, "eval")]


def until_committed(evaluation, run_dir, goes_on):
    """Let a save go on, in the run's own way, until the checkpoint before the n-th evaluation
    stands."""
    while len(read_metrics(run_dir, "checkpoint")) < evaluation - 1:
        goes_on()


def kill_in_evaluation(number, run_dir, sample, **options):
    """Train in a process of its own that is killed in the midst of its `number`-th evaluation, the
    checkpoint before it committed."""
    child = os.fork()
    if child == 0:
        try:
            # of OpenMP's pool a fork gets no thread, and would wait for it for ever
            torch.set_num_threads(1)
            run = Evaluator.run
            left = [number]

            def deadly(evaluator, score, device, goes_on):
                left[0] -= 1
                if left[0]:
                    return run(evaluator, score, device, goes_on)
                until_committed(number, run_dir, goes_on)
                os.kill(os.getpid(), signal.SIGKILL)

            Evaluator.run = deadly
            train(run_dir, sample, **options)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def stop_in_evaluation(step, monkeypatch):
    """A SIGTERM in the midst of the evaluation after `step`, as often as it is tried."""
    add = Evaluator._add

    def stopping(evaluator, *args):
        stopping.calls += 1
        if stopping.calls == stopping.at:
            os.kill(os.getpid(), signal.SIGTERM)
        add(evaluator, *args)

    stopping.calls = 0
    stopping.at = 3 * (step // 3) + 2
    monkeypatch.setattr(Evaluator, "_add", stopping)


def test_a_run_that_is_killed_in_its_last_evaluation_keeps_its_last_step(sample, tmp_path):
    run_dir = tmp_path / "run"
    kill_in_evaluation(3, run_dir, sample, gpt=EVALUATING)
    assert manifest(run_dir, 6).evaluated_step == 3  # so this one is owed
    weights = run_dir / "checkpoints/global_step6" / WEIGHTS
    written = weights.stat().st_mtime_ns
    train(run_dir, sample, gpt=EVALUATING)
    assert [event["step"] for event in read_metrics(run_dir, "train")] == [1, 2, 3, 4, 5, 6]
    assert evaluated_steps(run_dir) == [0, 3, 6]
    assert manifest(run_dir, 6).evaluated_step == 6
    assert weights.stat().st_mtime_ns == written  # the same weights are not written twice


def test_a_kill_in_an_evaluation_on_the_way_costs_no_step(sample, tmp_path):
    run_dir = tmp_path / "run"
    kill_in_evaluation(2, run_dir, sample, gpt=EVALUATING)
    train(run_dir, sample, gpt=EVALUATING)
    assert [event["step"] for event in read_metrics(run_dir, "train")] == [1, 2, 3, 4, 5, 6]
    assert evaluated_steps(run_dir) == [0, 3, 6]


def test_every_checkpoint_tells_of_its_own_evaluation(sample, tmp_path, capsys):
    train(tmp_path / "run", sample, gpt={**EVALUATING, "log_ckpt_every": 2})
    told = {step: manifest(tmp_path / "run", step).evaluated_step for step in (2, 4, 6)}
    assert told == {2: 0, 4: 3, 6: 6}
    saved = [event["step"] for event in read_metrics(tmp_path / "run", "checkpoint")]
    assert saved == [2, 4, 6]  # each once
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    capsys.readouterr()
    train(tmp_path / "run", sample, gpt={**EVALUATING, "log_ckpt_every": 2})
    assert capsys.readouterr().out == (
        f"{tmp_path / 'run'} is at step 6 already, and max_train_steps is 6: nothing to do\n"
    )
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_an_evaluation_that_ends_while_its_checkpoint_is_committed(sample, tmp_path, monkeypatch):
    """The record of it comes after the commit, whose thread writes the same file."""
    commit = folders.commit
    run = Evaluator.run
    committing = []

    def slow(folder, manifest):
        committing.append(manifest.step)
        while manifest.step not in evaluated_steps(tmp_path / "run"):
            pass
        return commit(folder, manifest)

    def until_it_commits(evaluator, score, device, goes_on):
        tally = run(evaluator, score, device, goes_on)
        while (tmp_path / "run/checkpoints/.global_step3.staging").exists() and not committing:
            goes_on()
        return tally

    monkeypatch.setattr(folders, "commit", slow)
    monkeypatch.setattr(Evaluator, "run", until_it_commits)
    train(tmp_path / "run", sample, gpt={**EVALUATING, "max_train_steps": 3})
    assert committing == [3]
    assert manifest(tmp_path / "run", 3).evaluated_step == 3


def test_a_record_that_cannot_be_written_costs_an_evaluation(sample, tmp_path, monkeypatch, capsys):
    write = Manifest.write

    def full(manifest, folder):
        if not folder.name.startswith("."):
            raise OSError(28, "No space left on device", str(folder / "checkpoint.json"))
        write(manifest, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", full)
        gpt = {**EVALUATING, "max_train_steps": 3}
        run = Evaluator.run

        def when_it_stands(evaluator, score, device, goes_on):
            tally = run(evaluator, score, device, goes_on)
            if evaluated_steps(tmp_path / "run"):
                until_committed(2, tmp_path / "run", goes_on)
            return tally

        patched.setattr(Evaluator, "run", when_it_stands)
        train(tmp_path / "run", sample, gpt=gpt)
    assert (
        "WARNING: the checkpoint of step 3 does not tell of its evaluation:"
        in capsys.readouterr().out
    )
    train(tmp_path / "run", sample, gpt=gpt)
    assert evaluated_steps(tmp_path / "run") == [0, 3, 3]
    assert manifest(tmp_path / "run", 3).evaluated_step == 3


@pytest.mark.parametrize("eval_every", [0, 3])
def test_the_last_evaluation_may_score_the_whole_split(eval_every, sample, tmp_path, capsys):
    gpt = {**EVALUATING, "eval_every": eval_every, "final_eval": True, "eval_batch_size": 64}
    train(tmp_path / "run", sample, gpt=gpt)
    tokens = len(Dataset(sample).split("test").tokens)
    (whole,) = read_metrics(tmp_path / "run", "final_eval")
    assert (whole["step"], whole["tokens"], whole["of_tokens"]) == (6, tokens, tokens)
    # all others score the same part, so that they make one curve
    evaluations = read_metrics(tmp_path / "run", "eval")
    assert [event["step"] for event in evaluations] == ([0, 3, 6] if eval_every else [])
    assert len({event["tokens"] for event in evaluations}) <= 1
    assert all(event["tokens"] < event["of_tokens"] == tokens for event in evaluations)
    run = read_run(tmp_path / "run")
    assert run.finished and run.whole()["tokens"] == tokens
    assert f"eval after step 6 on test (all {tokens:,} tokens): loss" in capsys.readouterr().out


def test_a_whole_evaluation_that_is_stopped_is_owed(sample, tmp_path, monkeypatch, capsys):
    gpt = {**EVALUATING, "max_train_steps": 3, "final_eval": True, "eval_batch_size": 256}
    run_dir = tmp_path / "run"

    def is_finished():
        tree = {"data_root": str(sample), "run_dir": str(run_dir), **gpt}
        return reached(resolve(tiny_run(gpt=tree), "tiny"), Dataset(sample))[:2]

    with monkeypatch.context() as patched:
        stop_in_evaluation(3, patched)
        train(run_dir, sample, gpt=gpt)
    assert "stopped by SIGTERM and saved after step 3 of 3" in capsys.readouterr().out
    assert is_finished() == (3, False)
    train(run_dir, sample, gpt=gpt)
    assert is_finished() == (3, True)
    assert evaluated_steps(run_dir) == [0, 3]


def test_a_finished_run_owes_the_whole_split_once_it_is_asked_for(sample, tmp_path):
    gpt = {**EVALUATING, "max_train_steps": 3, "eval_batch_size": 256}
    train(tmp_path / "run", sample, gpt=gpt)
    for _ in range(2):
        train(tmp_path / "run", sample, gpt={**gpt, "final_eval": True})
    last = read_metrics(tmp_path / "run", "eval")[-1]
    (whole,) = read_metrics(tmp_path / "run", "final_eval")
    assert (last["step"], whole["step"]) == (3, 3)
    assert whole["tokens"] == whole["of_tokens"] > last["tokens"]
    assert len(read_metrics(tmp_path / "run", "checkpoint")) == 1

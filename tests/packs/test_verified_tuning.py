"""verify looks at the trials of the tuning as at the final runs: a baseline that was tuned badly
by a forged trial would lose to anything."""

import shutil

import pytest
from entry_runs import STEPS, in_this_process, new_entry, small_dataset
from forger import lines_of, renew_seal, write_log
from own_code_run import KeepingEngine
from plain_run import train_config

from gpt.config.resolve import load
from gpt.packs import pack, replay, verify
from gpt.packs.evidence import Evidence
from gpt.quantities import quantities
from gpt.referee import runs

CHECKS = ("seal", "starts", "settings", "metrics", "curves", "sums", "judgement", "replay")


@pytest.fixture(scope="module")
def tuned_pack(tmp_path_factory):
    """A pack of one seed a side, whose learning rates were chosen from two."""
    folder = tmp_path_factory.mktemp("tuned")
    entry = new_entry(folder, small_dataset(folder), "--max_lr", 2e-3, factors=[0.1, 1], seeds=[0])
    with in_this_process():
        runs.train(entry.path, None, None)
    pack.write(entry.path, folder / "pack", with_weights=True)
    return folder / "pack"


@pytest.fixture
def tuned(tuned_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(
        replay, "_train", lambda file, *_: train_config(load(file), engine=KeepingEngine)
    )
    return shutil.copytree(tuned_pack, tmp_path / "pack")


def failed_lines(folder, names=CHECKS):
    every_check = verify.checks(STEPS)
    checks = {name: every_check[name] for name in names}
    results = verify.make(Evidence(folder, trusted=True), checks, lambda result: None)
    return {result.name: result.lines for result in results if result.state == verify.FAILED}


@pytest.mark.slow
def test_an_honest_tuning_passes(tuned):
    assert failed_lines(tuned) == {}


def test_a_forged_trial_is_named_by_what_it_makes_of_the_final_runs_and_by_a_replay(tuned):
    """All hashes are renewed, and the trial of the worse rate ends best."""
    worse = tuned / "tuning" / "baseline-x0.1-seed1000"
    lines = lines_of(worse)
    for line in lines:
        if line["event"] == "final_eval":
            line |= far_fewer_nats(line)
    write_log(worse, lines)
    renew_seal(tuned)
    lines = failed_lines(tuned)
    assert set(lines) == {"settings", "replay"}
    words = "baseline-seed0/config.yaml: scheduler.params.max_lr is 0.003, and baseline.json at"
    assert words in lines["settings"][0]
    words = f"{worse.name}: total_loss of final evaluation {STEPS} is "
    assert [line[: len(words)] for line in lines["replay"]] == [words]


def far_fewer_nats(line):
    names = ("tokens", "text_tokens", "bytes")
    nats = {name: 0.5 * line[name] for name in ("total_loss", "text_nats")}
    return quantities(**nats, **{name: line[name] for name in names})


def test_a_trial_with_a_gap_in_its_log_is_named(tuned):
    trial = min((tuned / "tuning").iterdir())
    write_log(trial, [line for line in lines_of(trial) if line["event"] != "train"])
    renew_seal(tuned)
    lines = failed_lines(tuned, ["metrics"])
    words = f"{trial / 'metrics.jsonl'} has no line of training at step"
    assert words in lines["metrics"][0]

"""A study of methods: its lengths, its choice of rates, its table, and one from end to end."""

import json
import math
import sys

import pytest
from conftest import ROOT, write_run

from gpt.config.resolve import load
from gpt.errors import UserError
from gpt.training.study import (
    Method,
    Outcome,
    Trial,
    as_markdown,
    best,
    plan,
    read_methods,
    rows,
)

ROPE = "--model_file modern --model_options.rope 100"


def trial(rate, steps=10, name="rope"):
    settings = {"scheduler.params.max_lr": rate, "gpt.max_train_steps": steps}
    return Trial(Method(name, ("--model_file", "rope.py")), settings, 2_000_000)


def test_each_method_gets_the_steps_that_the_flops_buy(sample, tmp_path):
    config = write_run(tmp_path, gpt={"data_root": str(sample), "final_eval": True})
    resolved = load(config)
    per_step = resolved.batch.train_batch_size * resolved.model.seq_len
    # 6 * (weights of the GEMMs) and causal attention, by hand
    shape = resolved.model
    width = shape.n_heads * shape.head_dim
    weights = shape.n_layers * (4 * width * shape.h_dim + 2 * shape.h_dim * shape.mlp_dim)
    weights += shape.vocab_size * shape.h_dim
    flops = 6 * weights + 6 * shape.n_layers * shape.seq_len * width
    wider = Method("wider", ("--mlp_dim", str(2 * shape.mlp_dim)))
    budget = 100.2 * flops * per_step
    (plain,) = plan(config, [Method("plain", ())], [0.5, 1.0], budget)
    assert [each.steps for each in plain] == [100, 100]
    assert [each.rate for each in plain] == [resolved.schedule.max_lr / 2, resolved.schedule.max_lr]
    assert plain[0].settings["scheduler.params.decay_steps"] == 100
    more = 12 * shape.n_layers * shape.h_dim * shape.mlp_dim
    expected = round(budget / ((flops + more) * per_step))
    assert [each.steps for each in plan(config, [wider], [1.0], budget)[0]] == [expected]


def test_the_best_rate_is_that_of_the_lowest_loss():
    trials = [trial(rate) for rate in (1e-3, 2e-3, 4e-3)]
    assert best(trials, [3.0, 2.9, math.nan]).rate == 2e-3
    assert best(trials, [math.nan] * 3) is None


def test_the_table_holds_each_against_the_first():
    rates = (1e-3, 2e-3, 4e-3)
    baseline = Outcome(trial(2e-3, name="baseline"), rates, (3.00, 3.01, 3.02), 0, 1_000)
    rope = Outcome(trial(4e-3), rates, (2.90, 2.92), 1, 900)
    first, second = rows([baseline, rope])
    # s = 0.01 of three: 4.303 * 0.01 / sqrt(3)
    assert first[-4:] == ["10", "0.002", "3.0100 ± 0.0248", ""]
    assert second[-4:-1] == ["10", "0.004 (at the edge)", "2.9100 ± 0.1271 (1 diverged)"]
    assert second[-1].startswith("-0.1000 ± ")
    assert as_markdown([baseline, rope]).splitlines()[1].count("---") == len(first)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("[]", "not a block of names and options"),
        ("{}", "not a block of names and options"),
        ('{"a": 1}', "not a block of names and options"),
        ('{"a": "--x \'"}', "No closing quotation"),
        ('{"../a": ""}', "give letters, digits"),
        ('{"a": "", "a": "--seq_len 64"}', "the key 'a' stands twice"),
        ('{"a": "--mlp_dim 8", "b": "--mlp_dim  8"}', "a and b have the same options"),
        ("{", "methods.json"),
    ],
)
def test_methods_that_are_none_are_refused(tmp_path, text, sentence):
    (tmp_path / "methods.json").write_text(text)
    with pytest.raises(UserError) as caught:
        read_methods(tmp_path / "methods.json")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("--last_n 1", "rope is scored otherwise than baseline: last_n is 1 there"),
        ("--max_eval_steps 1", "max_eval_steps is 1 there"),
        ("--ds_config other.json", "--ds_config is not for a method"),
        ("--dry_run", "--dry_run is not for a method"),
        ("--init_from runs/other", "--init_from is not for a method"),
        ("--seed 3", "--seed is not for a method"),
        ("--max_train_steps 5", "--max_train_steps is not for a method"),
        ("--final_eval false --eval_every 0", "neither final_eval nor eval_every"),
        ("--scheduler.type WarmupLR --scheduler.params.warmup_max_lr 0.1", "no schedule of the"),
    ],
)
def test_methods_that_would_not_be_comparable_are_refused(sample, tmp_path, words, sentence):
    config = write_run(tmp_path, gpt={"data_root": str(sample), "final_eval": True})
    methods = [Method("baseline", ()), Method("rope", tuple(words.split()))]
    with pytest.raises(UserError) as caught:
        plan(config, methods, [1.0], 1e12)
    assert sentence in str(caught.value)


@pytest.mark.slow
def test_a_study_from_end_to_end(sample, tmp_path, run_command):
    config = write_run(
        tmp_path, gpt={"data_root": str(sample), "eval_every": 2, "final_eval": True}
    )
    (tmp_path / "methods.json").write_text(
        json.dumps({"baseline": "", "wild": "--max_lr 1e12", "rope": ROPE})
    )
    command = [sys.executable, ROOT / "tools/study.py", "--ds_config", config, "--methods"]
    command += ["methods.json", "--factors", "1", "2", "--seeds", "1", "2", "--out", "study"]
    command += ["--flops", "3e9", "--markdown", "table.md"]
    done = run_command([*command], tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text()
    assert table.count("±") == 3 and "| diverges |" in table
    again = run_command([*command], tmp_path)
    assert (tmp_path / "table.md").read_text() == table
    assert "rope" not in again.stdout.partition("method")[0]

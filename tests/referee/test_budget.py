"""The steps that equal compute gives, against numbers worked out by hand."""

import json

import pytest
from measured import measurement_of, steps_of, write_entry, write_side

from gpt.config.resolve import read
from gpt.errors import UserError
from gpt.referee import budget
from gpt.referee.entry import BASELINE, CONTENDER

# of the tiny GPT, 6 per weight of a product and 12 L T d / 2 of causal attention:
# 6 (2 (4 x 32 x 16 + 2 x 32 x 64) + 32 x 2048) + 12 x 2 x 32 x 16 / 2 = 473,088, and with an
# MLP of 512 6 (2 (4 x 32 x 16 + 2 x 32 x 512) + 32 x 2048) + 6,144 = 817,152
WIDE_FLOPS = 817_152


def trained(entry, side):
    """The configuration that is trained."""
    overrides = {**entry.overrides(side), **budget.settings(entry, side)}
    return read(entry.config_file(side), 1, overrides).settle()


def reference_hours(config):
    tokens = config.options.max_train_steps * config.batch.train_batch_size * config.model.seq_len
    return tokens / config.options.tokens_per_second / 3600


def test_over_hours_the_steps_follow_the_measured_throughputs(tmp_path):
    baseline = steps_of(1000)
    baseline["gpt"]["tokens_per_second"] = 55_416
    contender = {**steps_of(1000), "train_batch_size": 16}
    contender["gpt"] = {**contender["gpt"], "mlp_dim": 512}
    entry = write_entry(tmp_path / "e", "hours", baseline, contender)
    # five quarters of the baseline's, a hundredth up and down
    rates = {BASELINE: [1000, 1000, 1000, 1000], CONTENDER: [1240, 1260, 1250, 1250]}
    measurement_of(entry, rates, published=55_416).write(entry.measured)
    ours, theirs = trained(entry, CONTENDER), trained(entry, BASELINE)
    # 256,000 tokens x 1.25 / (16 x 32)
    assert ours.options.max_train_steps == ours.schedule.decay_steps == 625
    assert theirs.options.max_train_steps == theirs.schedule.decay_steps == 1000
    assert ours.schedule.warmup_steps == theirs.schedule.warmup_steps == 2
    assert theirs.options.tokens_per_second == 55_416
    assert ours.options.tokens_per_second == pytest.approx(55_416 * 1.25, rel=1e-4)
    assert ours.options.reference_flops_per_token == WIDE_FLOPS
    assert reference_hours(ours) == pytest.approx(reference_hours(theirs), rel=1e-3)


def test_sides_that_cannot_be_told_apart_train_as_many_tokens(tmp_path):
    entry = write_entry(tmp_path / "e", "hours", steps_of(1000), steps_of(1000))
    rates = {BASELINE: [1000, 1000, 1000, 1000], CONTENDER: [1010, 995, 1008, 1003]}
    measurement_of(entry, rates).write(entry.measured)
    ours, theirs = budget.of(entry)[CONTENDER], budget.of(entry)[BASELINE]
    assert ours == theirs
    # this device is the reference, where none is published
    assert ours.settings == {
        "gpt.max_train_steps": 1000,
        "scheduler.params.decay_steps": 1000,
        "gpt.tokens_per_second": 1000,
    }


def test_a_contender_that_is_slower_by_less_than_the_noise_gets_no_tokens_for_it(tmp_path):
    entry = write_entry(tmp_path / "e", "hours", steps_of(1000), steps_of(1000))
    rates = {BASELINE: [1000, 1000, 1000, 1000], CONTENDER: [700, 1100, 600, 1050]}
    measurement_of(entry, rates).write(entry.measured)
    with pytest.raises(UserError) as caught:
        budget.of(entry)
    sentence = str(caught.value)
    assert "the contender's throughput over the baseline's is 0.8" in sentence
    assert "equal compute over hours needs 3%: measure again on a quieter machine" in sentence


@pytest.mark.parametrize("known", [None, {BASELINE: 473_088, CONTENDER: WIDE_FLOPS}])
def test_over_flops_the_steps_follow_the_models_costs(tmp_path, known):
    entry = write_entry(
        tmp_path / "e", "flops", steps_of(1000), {**steps_of(2), "gpt": {"mlp_dim": 512}}
    )
    # 1000 x 473,088 / 817,152 = 578.95
    steps = {"gpt.max_train_steps": 579, "scheduler.params.decay_steps": 579}
    assert budget.settings(entry, CONTENDER, known) == steps
    assert budget.settings(entry, BASELINE, known)["gpt.max_train_steps"] == 1000


def test_a_model_file_is_not_run_where_its_flops_are_known(tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "own.py").write_text("raise RuntimeError\n")
    contender = steps_of(2)
    contender["gpt"]["model_file"] = "own.py"
    entry = write_entry(tmp_path / "e", "flops", steps_of(1000), contender)
    flops = {BASELINE: 100, CONTENDER: 50}
    assert budget.settings(entry, CONTENDER, flops)["gpt.max_train_steps"] == 2000


@pytest.mark.parametrize("known", [{}, {BASELINE: 100}, {BASELINE: 0, CONTENDER: 5}])
def test_flops_that_are_not_known_are_not_found_by_running_the_model(tmp_path, known):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "own.py").write_text("raise RuntimeError\n")
    contender = steps_of(2)
    contender["gpt"]["model_file"] = "own.py"
    entry = write_entry(tmp_path / "e", "flops", steps_of(1000), contender)
    with pytest.raises(UserError, match=r"FLOPs per token of the \w+'s model are not known"):
        budget.settings(entry, CONTENDER, known)


def test_over_tokens_the_steps_follow_the_batch(tmp_path):
    contender = {**steps_of(3), "train_batch_size": 24}
    entry = write_entry(tmp_path / "e", "tokens", steps_of(1000), contender)
    # 8 x 32 x 1000 / (24 x 32) = 333.3
    assert budget.of(entry)[CONTENDER].steps == 333
    assert budget.of(entry)[CONTENDER].tokens == 333 * 24 * 32


def test_less_than_one_step(tmp_path):
    contender = {**steps_of(1000), "train_batch_size": 64}
    entry = write_entry(tmp_path / "e", "tokens", steps_of(3), contender)
    with pytest.raises(UserError) as caught:
        budget.of(entry)
    assert str(caught.value) == (
        f"equal compute over tokens is 768 tokens for the contender of {entry.path}, less than one"
        " of its steps (2,048 tokens): give it a smaller train_batch_size, or the baseline more"
        " steps"
    )


@pytest.mark.parametrize("side", [BASELINE, CONTENDER])
def test_a_schedule_that_does_not_follow_the_steps(tmp_path, side):
    options = {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}}
    sides = {"baseline": (), "contender": (), side: options}
    entry = write_entry(tmp_path / "e", "tokens", **sides)
    with pytest.raises(UserError) as caught:
        budget.of(entry)
    assert str(caught.value) == (
        f"{entry.config_file(side)} has no schedule of the trainer's own, whose decay_steps follow"
        " the steps: give it one of LanguiniCosineLR, LinearCooldownLR"
    )


def test_hours_need_a_measurement(tmp_path):
    entry = write_entry(tmp_path / "e")
    with pytest.raises(UserError) as caught:
        budget.of(entry)
    assert str(caught.value) == (
        f"the throughputs of {entry.path} are not measured yet (no measured.json): run `python"
        f" tools/referee.py measure {entry.path}`"
    )


CHANGES = {
    "shape": {"gpt": {"mlp_dim": 65}},
    "micro batch": {"gradient_accumulation_steps": 4},
    "precision": {"bf16": {"enabled": True}},
    "optimizer": {"optimizer": {"type": "SGD", "params": {}}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_measurement_of_another_configuration(tmp_path, change):
    entry = write_entry(tmp_path / "e")
    rates = {BASELINE: [1000, 1000], CONTENDER: [1000, 1000]}
    measurement_of(entry, rates).write(entry.measured)
    budget.of(entry)
    write_side(entry, CONTENDER, gpt={"seed": 5, "run_dir": "elsewhere"})
    budget.of(entry)
    write_side(entry, CONTENDER, **CHANGES[change])
    with pytest.raises(UserError) as caught:
        budget.of(entry)
    assert str(caught.value) == (
        f"{entry.measured} is of another contender than {entry.config_file(CONTENDER)} is now: run"
        f" `python tools/referee.py measure {entry.path}` again"
    )


def forge_tokens(tree):
    """A contender that is said to take twice the tokens in its steps."""
    facts = tree["sides"][CONTENDER]
    facts["tokens_per_step"] *= 2
    facts["tokens_per_second"] *= 2
    tree["ratio"] = {name: 2 * value for name, value in tree["ratio"].items()}


def forge_published(tree):
    """A class that is said to be made for half the throughput."""
    tree["reference"] = {"tokens_per_second": 500, "off": 1.0}


@pytest.mark.parametrize(
    "forge, sentence",
    [
        (forge_tokens, "is of another contender than"),
        (forge_published, "has the class's throughput as 500, and"),
    ],
)
def test_a_measurement_that_was_made_consistent_again(tmp_path, forge, sentence):
    baseline = steps_of(1000)
    baseline["gpt"]["tokens_per_second"] = 1000
    entry = write_entry(tmp_path / "e", "hours", baseline, steps_of(1000))
    rates = {BASELINE: [1000, 1000], CONTENDER: [1100, 1100]}
    tree = measurement_of(entry, rates, published=1000).as_dict()
    entry.measured.write_text(json.dumps(tree))
    assert budget.of(entry)[CONTENDER].steps == 1100
    forge(tree)
    entry.measured.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=sentence):
        budget.of(entry)


def test_a_measurement_of_other_code_or_of_a_moved_entry(tmp_path):
    (tmp_path / "e").mkdir()
    code = tmp_path / "e" / "own.py"
    code.write_text("A = 1\n")
    entry = write_entry(tmp_path / "e", contender={"gpt": {"model_file": "own.py"}})
    rates = {BASELINE: [1000, 1000], CONTENDER: [1000, 1000]}
    measurement_of(entry, rates).write(entry.measured)
    moved = write_entry(tmp_path / "moved", contender={"gpt": {"model_file": "own.py"}})
    for name in ("own.py", "measured.json"):
        (moved.path / name).write_text((entry.path / name).read_text())
    assert budget.of(moved) == budget.of(entry)
    code.write_text("A = 2\n")
    with pytest.raises(UserError, match="is of another contender than"):
        budget.of(entry)

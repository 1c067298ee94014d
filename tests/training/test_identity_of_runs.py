"""What a run writes of what it is, and of what was changed on its way."""

import copy

import plain_run
import pytest
import yaml
from conftest import read_metrics, tiny_run

from gpt.config.code import code_of
from gpt.config.identity import digest
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.metrics.runs import read_run
from gpt.training import start


def saved(run_dir):
    return yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))


def options(steps, batch=8, **gpt):
    """Of a run that evaluates nothing; its schedule is as long whatever the steps."""
    return {
        "train_batch_size": batch,
        "gpt": {"max_train_steps": steps, "eval_every": 0, "log_ckpt_every": 2, **gpt},
    }


def test_config_yaml_and_events_tell_what_the_run_is(sample, tmp_path):
    run_dir = tmp_path / "run"
    trainer = plain_run.train(run_dir, sample, **options(2, variant="rope"))
    config = saved(run_dir)
    assert config["code"] == code_of()
    assert config["kernels"] == "torch" and config["changes"] == []
    assert config["parameters"] == trainer.config.model.parameters()
    assert config["dataset"]["train"]["documents"] != config["dataset"]["scored"]["documents"]
    (event,) = read_metrics(run_dir, "start")
    assert event["identity"] == digest(config)
    assert (event["variant"], event["seed"]) == ("rope", 0)
    assert event["code"]["hash"] == config["code"]["hash"]
    assert event["command"]
    in_checkpoint = saved(run_dir / "checkpoints" / "global_step2")
    assert digest(in_checkpoint) == digest(config)


def test_a_seed_is_the_same_run_and_another_batch_is_not(sample, tmp_path):
    for name, changes in (("a", {}), ("b", {"seed": 5}), ("c", {"batch": 4})):
        plain_run.train(tmp_path / name, sample, **options(1, **changes))
    first, second, third = (digest(saved(tmp_path / name)) for name in "abc")
    assert first == second != third


def test_tokens_of_a_run_whose_batch_was_changed_are_those_that_it_saw(sample, tmp_path):
    run_dir = tmp_path / "run"
    seq_len = plain_run.train(run_dir, sample, **options(4)).config.model.seq_len
    plain_run.train(run_dir, sample, allowed=["train_batch_size"], **options(6, batch=16))
    tokens = [event["train_tokens"] for event in read_metrics(run_dir, "train")]
    assert tokens == [sequences * seq_len for sequences in (8, 16, 24, 32, 48, 64)]
    (resume,) = read_metrics(run_dir, "resume")
    entry = {"step": 4, "setting": "train_batch_size", "was": 8, "is": 16}
    assert resume["changed"] == [entry] == saved(run_dir)["changes"]
    run = read_run(run_dir)
    assert run.tokens_until(6) == 64 * seq_len
    # and it stays so when the run goes on as it is
    plain_run.train(run_dir, sample, allowed=["train_batch_size"], **options(7, batch=16))
    assert read_metrics(run_dir, "train")[-1]["train_tokens"] == 80 * seq_len
    assert saved(run_dir)["changes"] == [entry]
    assert read_metrics(run_dir, "resume")[-1]["changed"] == []


def test_going_back_before_a_change_undoes_it(sample, tmp_path):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(4))
    plain_run.train(run_dir, sample, allowed=["train_batch_size"], **options(6, batch=16))
    plain_run.train(run_dir, sample, resume="global_step2", **options(3))
    assert saved(run_dir)["changes"] == []


def test_other_code_goes_on_and_is_told(sample, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(2))
    code = copy.deepcopy(code_of())
    was = code["hash"]
    code |= {"hash": "abc", "parts": {**code["parts"], "model": "abc"}}
    monkeypatch.setattr(start, "code_of", lambda: code)
    plain_run.train(run_dir, sample, **options(3))
    assert f"notice: changed on resuming: code was {was}, is abc" in capsys.readouterr().out
    (entry,) = saved(run_dir)["changes"]
    assert (entry["step"], entry["setting"]) == (2, "code")


def test_an_allowed_change_to_what_is_usual_is_allowed_again(sample, tmp_path):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, gradient_predivide_factor=2.0, **options(2))
    for steps in (3, 4):  # the same command goes on
        plain_run.train(run_dir, sample, allowed=["gradient_predivide_factor"], **options(steps))
    assert len(saved(run_dir)["changes"]) == 1


def test_another_method_is_refused_and_another_name_is_none(sample, tmp_path):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(2))
    with pytest.raises(UserError, match="other settings .seed was 0, is 5.: name another"):
        plain_run.train(run_dir, sample, **options(3, seed=5))
    assert read_metrics(run_dir)[-1]["step"] == 2
    plain_run.train(run_dir, sample, **options(3, variant="rope"))
    assert saved(run_dir)["changes"] == [] and read_run(run_dir).variant == "rope"


@pytest.mark.parametrize("key", ["max_lr", "scheduler.params.max_lr", "scheduler"])
def test_a_setting_may_be_allowed_by_its_path_its_option_or_its_block(key, sample, tmp_path):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(2))
    scheduler = tiny_run()["scheduler"]
    params = {**scheduler["params"], "max_lr": 0.001}
    changed = {**options(3), "scheduler": {**scheduler, "params": params}}
    plain_run.train(run_dir, sample, allowed=[key], **changed)
    (entry,) = saved(run_dir)["changes"]
    assert (entry["setting"], entry["is"]) == ("scheduler.params.max_lr", 0.001)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"last_n": 8}, "last_n was 16, is 8"),
        ({"max_eval_steps": 3}, "max_eval_steps was 2, is 3"),
        ({"eval_batch_size": 4}, "eval_batch_size was 16, is 4"),
        ({"eval_data_split": "python"}, "eval_data_split was test, is python"),
        ({"tokens_per_second": 7.0}, "tokens_per_second was not set, is 7"),
    ],
)
def test_one_curve_holds_one_measure(changes, words, sample, tmp_path, capsys):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(2))
    with pytest.raises(UserError) as caught:
        plain_run.train(run_dir, sample, **options(3, **changes))
    sentence = str(caught.value)
    del caught  # which keeps the lock of the run's folder
    assert f"{run_dir} holds a run with other settings ({words}): name another" in sentence
    (key,) = changes
    plain_run.train(run_dir, sample, allowed=[key], **options(3, **changes))
    assert f"notice: changed on resuming: {words}\n" in capsys.readouterr().out
    assert [entry["setting"] for entry in saved(run_dir)["changes"]] == [key]


def test_a_whole_split_is_the_same_in_batches_of_any_size(sample, tmp_path):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(1, max_eval_steps=-1))
    plain_run.train(run_dir, sample, **options(2, max_eval_steps=-1, eval_batch_size=4))
    assert saved(run_dir)["changes"] == []


@pytest.mark.parametrize("key", ["dataset", "dataset.tokenizer"])
def test_another_tokenizer_is_let_in_by_nothing(key, sample, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(1))
    facts = Dataset.facts
    monkeypatch.setattr(
        Dataset, "facts", lambda self, scored: {**facts(self, scored), "tokenizer": "0" * 64}
    )
    with pytest.raises(UserError) as caught:
        plain_run.train(run_dir, sample, allowed=[key], **options(2))
    assert str(caught.value) == (
        f"--allow_change {key}: dataset.tokenizer is another one, and that cannot change within a"
        " run: name another --run_dir"
    )


def test_a_refusal_tells_what_would_allow_it_and_what_nothing_does(sample, tmp_path):
    run_dir = tmp_path / "run"
    plain_run.train(run_dir, sample, **options(1))
    with pytest.raises(UserError) as caught:
        plain_run.train(run_dir, sample, **options(2, seed=5, last_n=8))
    sentence = str(caught.value)
    assert sentence.endswith(
        "--allow_change seed --allow_change last_n allows the change on purpose"
    )
    with pytest.raises(UserError) as caught:
        plain_run.train(run_dir, sample, **options(2, seed=5, n_layers=3))
    sentence = str(caught.value)
    assert sentence.endswith(
        "or give the settings that it began with (model.n_layers cannot change within a run)"
    )
    del caught  # which keeps the lock of the run's folder
    with pytest.raises(
        UserError, match="--allow_change model.n_layers: model.n_layers was ., is 3, and"
    ):
        plain_run.train(run_dir, sample, allowed=["n_layers"], **options(2, n_layers=3))

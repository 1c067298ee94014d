"""Mistakes of all kinds come in one report, each with the place where its value stands."""

from pathlib import Path

import pytest
from conftest import tiny_run

from gpt.config.draft import Draft
from gpt.config.resolve import complete, load, resolve
from gpt.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def test_five_mistakes_in_24h_come_with_their_lines(tmp_path):
    text = (CONFIGS / "24h.json").read_text()
    for right, wrong in (
        ('"gradient_clipping"', '"gradient_cliping"'),
        ('"loss_scale": 0', '"loss_scale": "0"'),
        ('"stage": 1', '"stage": 5'),
        ('"preset": "small"', '"preset": "smal"'),
        ('"train_batch_size": 256', '"train_batch_size": 257'),
    ):
        assert right in text
        text = text.replace(right, wrong)
    path = tmp_path / "24h.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path, 2)
    lines = str(caught.value).splitlines()
    assert lines[0] == "24h.json: 5 mistakes"
    for line in lines[1:]:
        number = int(line.split("24h.json:")[1].split(":")[0])
        named = line.split()[2].rpartition(".")[2]
        assert f'"{named}"' in text.splitlines()[number - 1], line


def test_mistakes_about_the_data_stand_in_the_same_report():
    draft = complete(Draft(tiny_run(gradient_cliping=1), "tiny"))
    draft.add([f"{draft.get('gpt.seed')} {draft.get('train_batch_size')}"])
    with pytest.raises(UserError) as caught:
        draft.settle()
    assert str(caught.value).splitlines()[2] == "  2. 0 8"


def test_parameters_of_a_mistaken_scheduler_are_not_compared():
    tree = tiny_run()
    tree["scheduler"]["type"] = []
    tree["scheduler"]["params"]["warmup_steps"] = [1]
    with pytest.raises(UserError, match=r"^tiny: scheduler.type is \[\], "):
        resolve(tree, "tiny")


def test_a_mistaken_shape_is_told_where_it_stands(tmp_path):
    text = (
        (CONFIGS / "24h.json")
        .read_text()
        .replace('"preset": "small"', '"preset": "small", "h_dim": "768"')
    )
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=r"^mine.json:23: gpt.h_dim is '768', not a whole number"):
        load(tmp_path / "mine.json")


def test_values_that_contradict_each_other():
    both = tiny_run(fp16={"enabled": True}, bf16={"enabled": True})
    with pytest.raises(
        UserError, match="fp16.enabled and bf16.enabled are both true: set one to false"
    ):
        resolve(both, "tiny")
    for block in ("fp16", "bf16"):
        with pytest.raises(UserError, match="zero_optimization.stage is 0 with 16-bit training"):
            resolve(tiny_run(zero_optimization={"stage": 0}, **{block: {"enabled": True}}), "tiny")


def test_a_path_beside_a_stage_too_low_is_not_missed():
    offload = {"device": "nvme", "nvme_path": "/nvme"}
    tree = tiny_run(zero_optimization={"stage": 1, "offload_param": offload})
    with pytest.raises(UserError) as caught:
        resolve(tree, "tiny")
    assert str(caught.value) == (
        "tiny: zero_optimization.offload_param needs stage 3 or more, and the stage is 1"
    )


def test_all_mistakes_come_in_one_report():
    tree = tiny_run(gradient_cliping=1, train_batch_size="8", gpt={"sed": 1})
    with pytest.raises(UserError) as caught:
        resolve(tree, "tiny")
    assert str(caught.value).splitlines()[0] == "tiny: 3 mistakes"
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == ["1.", "2.", "3."]


def test_an_option_of_our_schedule_needs_our_schedule(tmp_path):
    tree = tiny_run()
    tree["scheduler"] = {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}
    tree["optimizer"] = {"type": "Adam", "params": {"lr": 1e-3}}
    assert resolve(tree, "tiny").schedule is None
    with pytest.raises(
        UserError,
        match="--max_lr sets a parameter of LanguiniCosineLR, but the scheduler is WarmupLR",
    ):
        resolve(tree, "tiny", 1, {"scheduler.params.max_lr": 1.0})


def test_of_thousands_of_mistakes_the_first_are_told():
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(**{f"key{number}": 1 for number in range(300)}), "tiny")
    lines = str(caught.value).splitlines()
    assert lines[0] == "tiny: 300 mistakes"
    assert lines[-1] == "  and 200 more"
    assert len(lines) == 102


def test_a_mistake_is_one_line_whatever_its_key_holds():
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(**{"a\x1b[2J\nb": 1}), "tiny")
    assert str(caught.value) == r"tiny: a\x1b[2J\nb is not a known key"


def test_a_long_value_is_cut():
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(train_batch_size=["x"] * 1000), "tiny")
    assert "(5,000 characters), not a whole number" in str(caught.value)


def test_parameters_of_a_scheduler_that_is_none():
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(scheduler={"type": "x", "params": {"total_num_steps": "a"}}), "tiny")
    assert str(caught.value).startswith("tiny: scheduler.type is 'x', must be one of ")

"""config.yaml written and read back, and edited by hand in between."""

import os

import pytest
import yaml
from conftest import tiny_run

from gpt.config.identity import curve
from gpt.config.keys import LONGEST_TEXT
from gpt.config.resolve import read, resolve
from gpt.config.saved import read_config, read_run_config, saved_config, write_config
from gpt.errors import UserError


@pytest.fixture
def saved(tmp_path):
    config = resolve(tiny_run(), "tiny")
    path = tmp_path / "config.yaml"
    write_config(path, saved_config(config, {"root": "data", "fingerprint": "1"}, {}, 5, "torch"))
    return path


def edit(path, place, value):
    """Set the value at a dotted path of a config.yaml."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    block = tree
    *parents, last = place.split(".")
    for name in parents:
        block = block.setdefault(name, {})
    block[last] = value
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")


def test_what_training_writes_is_read_back(saved):
    config = read_run_config(saved)
    assert config["run"]["gpt"]["max_train_steps"] == 6
    assert config["run"]["optimizer"]["params"]["betas"] == [0.9, 0.95]


@pytest.mark.parametrize(
    "place, value, problem",
    [
        ("run.gpt.last_n", "x", "run.gpt.last_n is 'x', not a whole number"),
        ("run.gpt", "x", "run.gpt is no block"),
        ("run.gpt.eval_every", None, "run.gpt.eval_every is null"),
        ("run.gpt.eval_every", "x", "run.gpt.eval_every is 'x', not a whole number"),
        ("run.gpt.eval_data_split", ["a"], "run.gpt.eval_data_split is ['a'], not a text"),
        ("run.zero_optimization", "x", "run.zero_optimization is no block"),
        ("run.optimizer.type", ["Adam"], "run.optimizer.type is ['Adam'], not a text"),
        ("run.optimizer.params.betas", 5, "run.optimizer.params.betas is 5, not two numbers"),
        ("run.scheduler.params", [1], "run.scheduler.params is no block"),
        ("dataset.root", 5, "dataset.root is 5, not a text"),
        ("dataset.fingerprint", 5, "dataset.fingerprint is 5, not a text"),
        ("dataset", "x", "dataset is no block"),
        ("sources", [1], "sources is no block"),
        ("sources.gpt", 1, "sources.gpt is 1, not a text"),
        ("batch.micro_size", "x", "batch.micro_size is 'x', not a whole number"),
        ("name", 5, "name is 5, not a text"),
        ("model.n_layers", 10**9, "model.n_layers is 1000000000, must be at most 10000"),
    ],
)
def test_a_value_edited_by_hand_is_named(saved, place, value, problem):
    edit(saved, place, value)
    with pytest.raises(UserError) as error:
        read_config(saved)
    assert str(error.value).startswith(f"{saved}: {problem}")


@pytest.mark.parametrize(
    "text", ["a: 2001-99-99", "!!int x", "{null: 1}", "5", "a: &a [*a]", "[" * 50, "a: !!x 1", ""]
)
def test_a_file_that_is_no_config(saved, text):
    saved.write_text(text, encoding="utf-8")
    for reader in (read_config, read):
        with pytest.raises(UserError, match="is not YAML|is not the config.yaml of a run"):
            reader(saved)


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    for reader in (read_config, read):
        with pytest.raises(UserError, match=r"cannot read .*: a pipe or a device"):
            reader(path)


@pytest.mark.parametrize("rate", [1e-5, 1.0, 2.0**53, 1e30, 1e308])
def test_a_rate_that_was_changed_is_read_back(saved, rate):
    before = resolve(tiny_run(), "tiny")
    after = resolve(tiny_run(), "tiny", overrides={"scheduler.params.max_lr": rate})
    was, now = (curve(saved_config(config, {}, {}, 5, None)) for config in (before, after))
    path = "scheduler.params.max_lr"
    change = {"step": 3, "setting": path, "was": was[path], "is": now[path]}
    edit(saved, "changes", [change])
    assert read_config(saved)["changes"] == [change]


@pytest.mark.parametrize("text", ["a", "\u6f22", "\U0001f600", "a\n", "a: #'\"", "\x1b"])
def test_the_longest_texts_are_read_back(tmp_path, text):
    names = ("run_dir", "init_from", "variant", "comment", "data_root", "wandb_project_name")
    gpt = dict.fromkeys(names, (text * LONGEST_TEXT)[:LONGEST_TEXT])
    config = resolve(tiny_run(gpt=gpt), "tiny")
    write_config(tmp_path / "config.yaml", saved_config(config, {}, {}, 5, "torch"))
    assert gpt.items() <= read_config(tmp_path / "config.yaml")["run"]["gpt"].items()


def test_a_value_that_occurs_twice_is_written_twice(tmp_path):
    betas = [0.9, 0.95]
    write_config(tmp_path / "config.yaml", {"a": betas, "b": {"c": betas}})
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "&" not in text and "*" not in text
    assert yaml.safe_load(text) == {"a": betas, "b": {"c": betas}}

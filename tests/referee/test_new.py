"""A new entry's folder: whole or not at all, and each side the run that it says."""

import json
import os
import sys

import pytest
from conftest import write_run

pytest.importorskip("torch")

from entry_runs import new_entry, small_dataset
from model_files import changed

from gpt.config.resolve import load
from gpt.errors import UserError
from gpt.referee import entry as entries

MODEL = "import part\n\n\ndef build(shape, base=1.0):\n    return part.build(shape, base)\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("books"))


@pytest.fixture
def model_file(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "rope.py").write_text(MODEL)
    (folder / "part.py").write_text(changed())
    (folder / "beside.py").write_text("not imported\n")
    return folder / "rope.py"


def resolved(entry, side):
    return load(entry.config_file(side), 1, entry.overrides(side))


def test_both_sides_are_the_run_and_the_options_are_the_contenders(dataset, tmp_path):
    entry = new_entry(tmp_path, dataset, "--max_lr", 0.1, "--optimizer.type", "AdamW", name="x")
    assert sorted(path.name for path in entry.path.iterdir()) == [
        "baseline.json",
        "contender.json",
        "entry.json",
    ]
    assert entries.read(entry.path) == entry
    assert (entry.name, entry.claim.class_name, entry.claim.baseline) == ("x", "tiny", "tiny")
    source = tmp_path / "tiny.json"
    assert resolved(entry, "baseline").fingerprint == load(source).fingerprint
    overrides = {"scheduler.params.max_lr": 0.1, "optimizer.type": "AdamW"}
    assert resolved(entry, "contender").fingerprint == load(source, 1, overrides).fingerprint


def test_folder_and_seed_of_the_file_are_left_out(dataset, tmp_path):
    entry = new_entry(tmp_path, dataset, baseline={"seed": 3, "run_dir": "runs/mine"})
    for side in entries.SIDES:
        assert not {"seed", "run_dir"} & entry.tree(side)["gpt"].keys()


def test_code_of_ones_own_goes_with_the_entry(dataset, tmp_path, model_file):
    entry = new_entry(tmp_path, dataset, model_file=str(model_file))
    assert entry.tree("contender")["gpt"]["model_file"] == "rope.py"
    assert sorted(path.name for path in entry.path.glob("*.py")) == ["part.py", "rope.py"]
    code = load(tmp_path / "tiny.json", 1, {"gpt.model_file": str(model_file)}).model_code
    elsewhere = tmp_path / "else where"
    entry.path.rename(elsewhere)
    moved = resolved(entries.read(elsewhere), "contender").model_code
    assert moved.hash == code.hash and moved.path == elsewhere / "rope.py"


@pytest.mark.parametrize(
    "model, option, sentence",
    [
        ("modern", "bais", "model_options.bais is no option of modern"),
        (None, "bse", "build takes no option 'bse' (did you mean 'base'?)"),
    ],
)
def test_an_option_that_the_model_does_not_have(
    model, option, sentence, dataset, tmp_path, model_file
):
    """No baseline is trained before that is known."""
    model = model or str(model_file)
    with pytest.raises(UserError) as caught:
        new_entry(tmp_path, dataset, f"--model_options.{option}", 2, model_file=model)
    assert sentence in str(caught.value)
    assert not (tmp_path / "entry").exists()


def test_a_variant_stays_a_name(dataset, tmp_path):
    entry = new_entry(tmp_path, dataset, "--model_options.rope", 100, model_file="modern")
    assert entry.tree("contender")["gpt"]["model_file"] == "modern"
    assert entry.tree("contender")["gpt"]["model_options"] == {"rope": 100}
    assert entry.overrides("contender") == {} and not list(entry.path.glob("*.py"))


def test_what_the_referee_needs_is_set_for_both_and_told(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset, baseline={"final_eval": False, "eval_every": 0})
    told = capsys.readouterr().out
    assert "notice: final_eval is set to true for both" in told
    assert "notice: eval_every is set to 500 for both" in told
    assert "notice: the contender is the baseline under another name, a null entry" in told
    for side in entries.SIDES:
        options = resolved(entry, side).options
        assert options.final_eval and options.eval_every == 500
    assert entry.tree("baseline") == entry.tree("contender")


def test_the_vocabulary_of_the_dataset_stands_in_both(dataset, tmp_path):
    entry = new_entry(tmp_path, dataset, baseline={"vocab_size": None})
    for side in entries.SIDES:
        assert entry.tree(side)["gpt"]["vocab_size"] == 300


def test_the_dataset_is_named_as_it_is_seen_from_anywhere(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    entry = new_entry(tmp_path, "books")
    for side in entries.SIDES:
        assert entry.tree(side)["gpt"]["data_root"] == str(dataset)


def test_a_throughput_of_another_model_is_not_taken_over(dataset, tmp_path):
    speed = {"tokens_per_second": 1000.0}
    entry = new_entry(tmp_path, dataset, "--mlp_dim", 128, baseline=speed)
    assert resolved(entry, "baseline").options.tokens_per_second == 1000
    assert resolved(entry, "contender").options.tokens_per_second is None


BAD = {
    "the length": (("--max_train_steps", 9), {}, "--max_train_steps is not for a method"),
    "the schedule's": (("--decay_steps", 9), {}, "--decay_steps is not for a method"),
    "a seed": (("--seed", 1), {}, "--seed is not for a method: seeds are given by --seeds"),
    "a folder": (("--run_dir", "x"), {}, "--run_dir is not for a method"),
    "a warm start": (("--init_from", "x"), {}, "--init_from is not for a method"),
    "a branch": (("--branch_from", "x"), {}, "--branch_from is not for a method"),
    "a dry run": (("--dry_run",), {}, "--dry_run is not for a method"),
    "an unknown option": (("--max_lrr", 1), {}, "unknown option --max_lrr (did you mean"),
    "a mistyped one of its own": (("--factorz", 1), {}, "(did you mean '--factors'?)"),
    "a mistaken value": (("--max_lr", -1), {}, "scheduler.params.max_lr is -1, must be above 0"),
    "no dataset": (("--data_root", "nowhere"), {}, "nowhere"),
    "no file": (
        (),
        {"source": "6x"},
        "--from 6x: there is no such file, and no class",
    ),
    "no model file": ((), {"model_file": "no.py"}, "no.py"),
    "a name with a slash": ((), {"name": "a/b"}, "name must be of letters, digits"),
    "a class": ((), {"class_name": "6 h"}, "claim.class must be of letters, digits"),
    "no seed": ((), {"seeds": [-1]}, "a seed must be a whole number"),
    "a seed twice": ((), {"seeds": [1, 1]}, "seeds has one twice"),
    "a factor twice": ((), {"factors": [1.0, 1.0]}, "tuning.factors has one twice"),
    "a factor below 0": ((), {"factors": [-1.0, 1.0]}, "tuning.factors must be above 0"),
    "a factor that is none": ((), {"factors": [float("nan"), 1.0]}, "must be above 0, and nan"),
    "one factor": ((), {"factors": [0.5]}, "tuning.factors has 0.5 alone, which is never tried"),
    "tuned on a final seed": (
        (),
        {"factors": [0.5, 1.0], "tuning_seed": 0},
        "the seed 0 of the tuning is in seeds",
    ),
}


@pytest.mark.parametrize("options, args, sentence", BAD.values(), ids=list(BAD))
def test_a_mistake_leaves_nothing(dataset, tmp_path, options, args, sentence):
    with pytest.raises(UserError) as caught:
        new_entry(tmp_path, dataset, *options, **args)
    assert sentence in str(caught.value)
    assert os.listdir(tmp_path) == ["tiny.json"]


def test_a_folder_that_is_there_is_left_alone(dataset, tmp_path):
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "mine").write_text("")
    with pytest.raises(UserError, match="entry exists already: remove it first"):
        new_entry(tmp_path, dataset)
    assert os.listdir(tmp_path / "entry") == ["mine"]


def test_two_files_of_one_name_are_refused(dataset, tmp_path, model_file):
    (tmp_path / "part.py").write_text(changed() + "# another\n")
    with pytest.raises(UserError) as caught:
        new_entry(
            tmp_path,
            dataset,
            baseline={"model_file": str(tmp_path / "part.py")},
            model_file=str(model_file),
        )
    assert f"{model_file.with_name('part.py')}: the baseline has another file of that name" in str(
        caught.value
    )
    assert not (tmp_path / "entry").exists()


def test_the_command_takes_options_of_train_beside_its_own(
    dataset, tmp_path, load_tool, monkeypatch, capsys
):
    source = write_run(tmp_path, gpt={"data_root": str(dataset), "vocab_size": 300})
    tool = load_tool("referee")
    words = ["new", tmp_path / "e", "--from", source, "--seeds", 4, 5, "--max_lr", 0.1]
    words += ["--optimizer.params.betas", 0.8, 0.9, "--over", "flops"]
    monkeypatch.setattr(sys, "argv", ["referee.py", *map(str, words)])
    tool.main()
    assert capsys.readouterr().out.endswith(f"next: referee.py check {tmp_path / 'e'}\n")
    entry = entries.read(tmp_path / "e")
    assert entry.seeds == (4, 5) and entry.claim.over == "flops"
    assert entry.tree("contender")["optimizer"]["params"]["betas"] == [0.8, 0.9]
    assert json.loads((tmp_path / "e/contender.json").read_text())["gpt"]["final_eval"] is True
    assert tool.mistake("run", tmp_path / "e", "--max_lr", 0.1) == (
        "command line: run does not know --max_lr"
    )

"""A run of a model of the user's own that goes on, or begins with given weights: with which
code, and what of it lies in the run's folder."""

import pytest
from own_code_run import MIXING, train_own, write_model
from plain_run import train

from gpt.checkpoint.weights import consolidate
from gpt.config.own_code import read_own_code
from gpt.config.resolve import load
from gpt.config.saved import read_config
from gpt.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
ALLOW = ["model_file"]


@pytest.fixture
def run(tmp_path, sample):
    """A run of two steps by tmp_path/mine/own.py."""
    train_own(tmp_path / "run", sample, write_model(tmp_path / "mine"))
    return tmp_path / "run"


def code_of(path):
    return read_own_code(str(path), "gpt.model_file")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def mistake(*arguments, **gpt):
    """The sentence by which a run is refused, whose folder is free again then."""
    try:
        train_own(*arguments, **gpt)
    except UserError as error:
        return str(error)
    raise AssertionError("it was not refused")


def test_a_changed_file_is_refused_and_goes_on_when_that_is_meant(run, tmp_path, sample, capsys):
    before = code_of(tmp_path / "mine/own.py")
    changed = write_model(tmp_path / "mine", cap=5.0)
    assert mistake(run, sample, changed, max_train_steps=3) == (
        f"{run} holds a run with other settings (model_file was {before}, is {code_of(changed)}):"
        " name another --run_dir, or give the settings that it began with; --allow_change"
        " model_file allows the change on purpose"
    )
    assert (run / "code/own.py").read_bytes() == before.files["own.py"]
    train_own(run, sample, changed, ALLOW, max_train_steps=3)
    assert f"changed on resuming: model_file was {before}, is" in capsys.readouterr().out
    assert (run / "code/own.py").read_bytes() == changed.read_bytes()
    kept = run / "checkpoints/global_step2/own.py"
    assert kept.read_bytes() == before.files["own.py"]


def test_a_file_beside_it_is_part_of_it(run, tmp_path, sample):
    changed = write_model(tmp_path / "mine", mixing=MIXING + "# another\n")
    with pytest.raises(UserError, match="model_file was own.py .*, is own.py "):
        train_own(run, sample, changed, max_train_steps=3)


def test_the_same_code_goes_on_from_wherever_it_lies(run, tmp_path, sample):
    moved = write_model(tmp_path / "moved", "renamed.py")
    moved.write_bytes((tmp_path / "mine/own.py").read_bytes())
    train_own(run, sample, moved, max_train_steps=3)
    train_own(run, sample, run / "code/own.py", max_train_steps=4)
    assert names_in(run / "code") == ["mixing.py", "own.py", "renamed.py"]
    assert read_config(run / "config.yaml")["changes"] == []


def test_weights_that_do_not_fit_the_changed_model(run, tmp_path, sample):
    wider = {"model_options": {"inner": 32}, "max_train_steps": 3}
    model_file = tmp_path / "mine/own.py"
    with pytest.raises(UserError) as error:
        train_own(run, sample, model_file, ["model_options"], **wider)
    assert str(error.value) == (
        f"{run}/checkpoints/global_step2: body.up.weight has the shape (24, 32), the run's model"
        f" ({code_of(model_file)}) says (32, 32)"
    )


def test_the_first_weights_of_another_model(run, tmp_path, sample, capsys):
    consolidate(run / "checkpoints", run / "export", trusted=True)
    first = {"init_from": str(run / "export")}
    sharper = write_model(tmp_path / "sharper", cap=5.0)
    train_own(tmp_path / "sharp", sample, sharper, **first)
    told = capsys.readouterr().out
    assert "notice: the first weights are of another model: model_file was " in told
    with pytest.raises(UserError, match=r"does not fit the run's model \(the GPT\): \S+ is miss"):
        train(tmp_path / "gpt", sample, gpt=first)
    wider = {"model_options": {"inner": 32}}
    with pytest.raises(UserError, match=r"body.down.weight has the shape \(32, 24\), the run"):
        train_own(tmp_path / "wide", sample, sharper, **first, **wider)
    assert not (tmp_path / "wide").exists() and not (tmp_path / "gpt").exists()


def test_a_folder_that_no_run_made_is_left_as_it_is(tmp_path, sample):
    mine = write_model(tmp_path / "project/code")
    for run_dir, sentence in (
        (tmp_path / "project", "project/code was not made by a run: "),
        (tmp_path / "other", "other/code is a file, where a run wants to be kept"),
        (tmp_path / "third", "third/code is a link that leads nowhere"),
    ):
        run_dir.mkdir(exist_ok=True)
        if run_dir.name == "other":
            (run_dir / "code").write_text("mine")
        if run_dir.name == "third":
            (run_dir / "code").symlink_to("nowhere")
        with pytest.raises(UserError, match=sentence):
            train_own(run_dir, sample, mine)
        assert [path.name for path in run_dir.iterdir()] == ["code"]
    # a run of the GPT keeps no code there
    train(tmp_path / "project", sample, gpt={"max_train_steps": 1, "final_eval": False})
    assert names_in(tmp_path / "project/code") == ["mark", "mixing.py", "own.py"]


def test_what_a_kill_left_of_the_code_goes(run, tmp_path, sample):
    leftover = run / "code/.own.py.0123abcd.new"
    leftover.write_text("half")
    train_own(run, sample, tmp_path / "mine/own.py", max_train_steps=3)
    assert not leftover.exists()


def test_two_files_of_one_name(tmp_path, sample):
    model_file = write_model(tmp_path / "mine")
    optimizer_file = tmp_path / "theirs/own.py"
    optimizer_file.parent.mkdir()
    optimizer_file.write_text("import torch\n")
    with pytest.raises(UserError) as error:
        train_own(tmp_path / "run", sample, model_file, optimizer_file=str(optimizer_file))
    assert (
        f"gpt.optimizer_file has {optimizer_file}, and model_file another file of that name,"
        f" {model_file}: rename one of them" in str(error.value)
    )


def test_a_config_yaml_goes_on_with_code_that_the_command_names(run, tmp_path, sample):
    config = run / "config.yaml"
    mine = str(tmp_path / "mine/own.py")
    with pytest.raises(UserError) as error:
        load(config)
    assert str(error.value) == (
        f"{config}: gpt.model_file is {mine}, and a config.yaml runs no code by itself: give"
        f" --model_file {mine} to have that file run"
    )
    assert load(config, overrides={"gpt.model_file": mine}).model_code == code_of(mine)

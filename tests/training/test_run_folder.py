"""A run writes over nothing that no run wrote."""

import json
import os
import shutil
from pathlib import Path

import plain_run
import pytest
from conftest import write_run

from gpt.errors import UserError
from gpt.training import sweep
from gpt.training.run_folder import require_own

SHORT = {"max_train_steps": 2, "eval_every": 0}


def contents(folder):
    """{path: bytes, or what a link names} of all that lies in a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


FOREIGN = {
    "another program's config.yaml": ("config.yaml", "my: settings\n"),
    "a config.yaml that is no YAML": ("config.yaml", "{{ cookiecutter.name }}: [\n"),
    "other metrics": ("metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2}\nno end'),
    "metrics without an end": ("metrics.jsonl", "my precious thesis"),
    "other documents": ("documents.json", '["a", "b"]\n'),
    "another program's checkpoints": ("checkpoints/.model.new", "weights"),
    "another program's TensorBoard": ("tensorboard/events.out.tfevents.1", "events"),
    "another program's wandb": ("wandb/id", "not hexadecimal"),
    "weights": ("model.safetensors", "weights"),
    "a checkpoint": ("checkpoint.json", "{}"),
}


@pytest.mark.parametrize("name, text", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_that_no_run_wrote_is_refused_and_stays(name, text, sample, tmp_path):
    run_dir = tmp_path / "project"
    path = run_dir / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    before = contents(run_dir)
    with pytest.raises(UserError, match="name another --run_dir") as caught:
        plain_run.train(run_dir, sample, gpt={**SHORT, "logger_type": "tb"})
    assert str(run_dir) in str(caught.value)
    assert contents(run_dir) == before


@pytest.fixture(scope="module")
def finished(sample, tmp_path_factory):
    """The folder of a finished run."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    plain_run.train(run_dir, sample, gpt=SHORT)
    return run_dir


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "documents.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_a_run_appends_to_is_never_a_link_or_a_pipe(kind, name, finished, sample, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    victim = tmp_path / "thesis"
    shutil.move(run_dir / name, victim)
    before = victim.read_bytes()
    if kind == "link":
        (run_dir / name).symlink_to(victim)
    else:
        os.mkfifo(run_dir / name)
    with pytest.raises(UserError, match=f"{name} is a link or no file"):
        plain_run.train(run_dir, sample, gpt={**SHORT, "max_train_steps": 3})
    assert victim.read_bytes() == before


@pytest.mark.parametrize("within", [".", "train", "mine/run"])
def test_no_run_is_kept_in_a_dataset(within, sample, tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(sample, dataset)
    with pytest.raises(UserError) as caught:
        require_own(dataset / within)
    assert str(caught.value) == (
        f"--run_dir {dataset / within} is in the dataset {dataset}: name a folder outside of it"
    )


@pytest.mark.parametrize("left", ["", '{"event": "sta', '{"event": "start", "step": 0}\n{"ev'])
def test_what_a_kill_leaves_is_the_runs_own(left, finished, sample, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "metrics.jsonl").write_text(left)
    plain_run.train(run_dir, sample, gpt=SHORT)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("train") == 2


def test_the_folder_that_training_refuses_a_dry_run_refuses_too(sample, tmp_path, run_command):
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    train = Path(__file__).resolve().parents[2] / "gpt" / "train.py"
    done = run_command(
        ["python", train, "--ds_config", config, "--dry_run", "--run_dir", config], tmp_path
    )
    assert done.returncode == 2
    assert f"{config} is a file, where a run wants to be kept" in done.stderr


@pytest.mark.parametrize("text", ["[]", "{}", "my sweeps", '{"runs": [{"name": "a"}]}', None])
def test_a_sweep_writes_over_no_file_of_something_else(text, sample, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    if text is None:
        (tmp_path / "victim").write_text('{"runs": []}')
        (out / "sweep.json").symlink_to(tmp_path / "victim")
    else:
        (out / "sweep.json").write_text(text)
    before = contents(out)
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    runs = sweep.plan([str(config)], None, out, {})
    with pytest.raises(UserError) as caught:
        sweep.train_all(runs, out, [], [], stop=None)
    assert str(caught.value) == (
        f"{out / 'sweep.json'} was not written by a sweep, which would write over it: name another"
        " --out, or move that file away"
    )
    assert contents(out) == before


def test_a_sweep_looks_at_every_folder_before_its_first_run(sample, tmp_path):
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    folder = tmp_path / "out" / "tiny-seed1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("my: settings\n")
    with pytest.raises(UserError, match=f"{folder}/config.yaml .*, and a run would write over it"):
        sweep.plan([str(config)], [0, 1], tmp_path / "out", {})


def test_a_disk_that_is_not_mounted_is_told(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    with pytest.raises(UserError, match="run is a link that leads nowhere: mend it, or name"):
        require_own(tmp_path / "run")


def test_a_folder_of_other_files_is_no_hindrance(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    require_own(tmp_path)
    require_own(tmp_path / "new")


def test_what_a_kill_left_of_a_file_goes_with_the_next_start(finished, sample, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    for name in (".config.yaml.0123abcd.new", ".documents.json.0123abcd.new", ".mine.new"):
        (run_dir / name).write_text("half")
    plain_run.train(run_dir, sample, gpt=SHORT)
    assert [path.name for path in run_dir.glob("*.new")] == [".mine.new"]


def test_a_copy_of_hard_links_leaves_the_first_run_as_it_is(finished, sample, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir, copy_function=os.link)
    before = (finished / "metrics.jsonl").read_bytes()
    (run_dir / ".lock").unlink()
    plain_run.train(run_dir, sample, gpt={**SHORT, "max_train_steps": 3})
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert (run_dir / "metrics.jsonl").read_bytes().startswith(before)

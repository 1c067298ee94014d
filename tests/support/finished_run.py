"""A finished run of six steps, to damage and to go on from."""

import shutil
import sys

import pytest
from conftest import ROOT, write_run

TRAIN = ROOT / "gpt" / "train.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sample, run_command):
    """A run of six steps with a checkpoint at each, of which the last three are kept."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_run(folder, gpt={"data_root": str(sample), "log_ckpt_every": 1})
    command = [sys.executable, TRAIN, "--ds_config", config]
    done = run_command(command, folder, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    # a run that compiles nothing loads no compiler
    assert "deepspeed.runtime.engine" in done.stderr and "torch._dynamo" not in done.stderr
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def go_on(run, run_command, *options, steps=8):
    """The same command again, for more steps."""
    command = [
        sys.executable,
        TRAIN,
        "--ds_config",
        run / "tiny.json",
        "--max_train_steps",
        steps,
        *options,
    ]
    return run_command(command, run)


def damage(path, how):
    """Spoil a file: flipped, truncated or missing."""
    content = path.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()

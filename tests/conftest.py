import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

# Of what workers and their ranks compute on the machine's cores, threads would only wait for one
# another. Before torch is imported, which reads this once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from devices import pytest_configure  # noqa: F401  (a hook)
from without_torch import ABSENT, skip_if_it_was_needed

from gpt.errors import UserError
from gpt.prepare.sample import prepare_sample

pytest_plugins = ["finished_run", "sample_vocab", "trained_entry"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The sample dataset's folder, built once. Tests read it; none changes it."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    prepare_sample(folder, say=lambda text: None)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """On tensors as small as these, threads only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def run_command():
    """run_command([...], cwd=…) -> CompletedProcess of a command with this interpreter's folder
    first on PATH."""

    def run(command, cwd, timeout=240, **env):
        command = [str(part) for part in command]
        if command[0] in ABSENT:
            pytest.skip(f"{command[0]} is not installed")
        done = subprocess.run(
            command,
            cwd=cwd,
            timeout=timeout,
            text=True,
            capture_output=True,
            env=environment(**env),
        )
        skip_if_it_was_needed(done.stderr)
        return done

    return run


def environment(**env):
    """This process's, for commands in any folder: this interpreter's first on PATH, none
    relative."""

    def absolute(variable):
        folders = os.environ.get(variable, "").split(os.pathsep)
        return os.pathsep.join(os.path.abspath(folder) for folder in folders if folder)

    path = os.pathsep.join([str(Path(sys.executable).parent), absolute("PATH")])
    return {**os.environ, "PATH": path, "PYTHONPATH": absolute("PYTHONPATH"), **env}


def tiny_run(**options):
    """A config for tests: two layers, 8 sequences of 32 tokens a step, the sample's vocabulary."""
    gpt = {
        "n_layers": 2,
        "h_dim": 32,
        "mlp_dim": 64,
        "n_heads": 2,
        "head_dim": 8,
        "vocab_size": 2048,
        "seq_len": 32,
        "last_n": 16,
        "max_eval_steps": 2,
        "eval_every": 0,
        "max_train_steps": 6,
        "log_ckpt_every": 0,
        "log_terminal_every": 1,
        "log_grads_every": 0,
    }
    tree = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 1},
        "scheduler": {
            "type": "LanguiniCosineLR",
            "params": {"max_lr": 3e-3, "warmup_steps": 2, "decay_steps": 6},
        },
        "gpt": {**gpt, **options.pop("gpt", {})},
    }
    return {**tree, **options}


def write_run(folder, name="tiny", **options):
    """Write `tiny_run(**options)` to folder/name.json; returns the path."""
    path = Path(folder) / f"{name}.json"
    path.write_text(json.dumps(tiny_run(**options)), encoding="utf-8")
    return path


def read_metrics(run_dir, event=None):
    lines = (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # the last one may be half written
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [e for e in events if event is None or e["event"] == event]


def load_command(name, folder="tools"):
    """A command as a module. Commands put the project's folder first in sys.path; it is left as it
    was."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture
def load_tool(monkeypatch):
    """load_tool("sample") -> the module tools/sample.py, whose main() runs in this process:
    `mistake(*argv)` returns the sentence of the UserError that it ends with."""

    def load(name, folder="tools"):
        tool = load_command(name, folder)

        def mistake(*argv):
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
            with pytest.raises(UserError) as error:
                tool.main()
            return str(error.value)

        tool.mistake = mistake
        return tool

    # what a command tells its own process, as train.py does of its rank, is for no other test
    with mock.patch.dict(os.environ):
        yield load

"""Which tests see a GPU. Each case is a pytest of its own, beside the project's settings."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

CONFTEST = f"""
import sys

sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
from devices import pytest_configure
"""
TESTS = """
import os

import pytest


def tell():
    with open("seen", "a") as file:
        print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("DS_ACCELERATOR"), file=file)


def test_usual():
    tell()


@pytest.mark.slow
def test_slow():
    tell()


@pytest.mark.gpu
def test_on_gpu():
    tell()
"""


@pytest.fixture
def project(tmp_path):
    """A folder with the project's settings and rule, and tests that tell which devices they see."""
    for name, text in (
        ("conftest.py", CONFTEST),
        ("test_gpu.py", TESTS),
        ("test_other.py", TESTS),
        (
            "setup.cfg",
            (ROOT / "setup.cfg").read_text(encoding="utf-8").replace("testpaths = tests", ""),
        ),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def seen(project, options, added=""):
    """What the tests see on a machine with the GPUs 0 and 1: once for every one that runs."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", "PYTEST_ADDOPTS": added}
    for name in list(environment):
        if name == "DS_ACCELERATOR" or name.startswith("PYTEST_XDIST"):
            del environment[name]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=project,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (project / "seen").read_text().splitlines()


HIDDEN, KEPT = " cpu", "0,1 None"


@pytest.mark.parametrize(
    "options, wanted",
    [
        ([], [HIDDEN] * 4),
        (["-m", "slow"], [HIDDEN] * 2),
        (["-m", "not gpu"], [HIDDEN] * 4),
        (["-m", "gpu"], [KEPT] * 2),
        (["-m=gpu"], [KEPT] * 2),
        (["-mgpu"], [KEPT] * 2),
        (["-m", "gpu and not slow"], [KEPT] * 2),
        (["test_gpu.py"], [KEPT] * 2),
        (["./test_gpu.py::test_on_gpu"], [KEPT]),
        (["test_other.py", "-k", "gpu"], [HIDDEN]),
        (["-n", "1"], [HIDDEN] * 4),
        (["-n", "1", "-m", "gpu"], [KEPT] * 2),
    ],
)
def test_gpus_are_seen_by_the_tests_that_need_them(project, options, wanted):
    assert seen(project, options) == wanted


def test_options_of_the_environment_count(project):
    assert seen(project, [], added="-m gpu") == [KEPT] * 2


def test_this_suite_follows_the_rule():
    """Here, unless someone asks for this file together with the GPU's."""
    from devices import asked_for

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and os.environ["DS_ACCELERATOR"] == "cpu"
    assert not asked_for("not slow", ["tests"]) and not asked_for(
        "gpu(", ["tests/tools/test_gpu_check.py"]
    )


@pytest.mark.slow
def test_ranks_of_the_launcher_do_not_take_a_gpu(tmp_path, run_command):
    """DeepSpeed's launcher gives its ranks CUDA_VISIBLE_DEVICES of its own."""
    (tmp_path / "rank.py").write_text(
        "import os\nprint('rank sees', os.environ['CUDA_VISIBLE_DEVICES'], "
        "os.environ['DS_ACCELERATOR'])\n"
    )
    done = run_command(["deepspeed", "--num_gpus", 1, "--master_port", 29697, "rank.py"], tmp_path)
    assert "rank sees 0 cpu" in done.stdout, done.stdout + done.stderr


def test_commands_are_found_from_every_folder(tmp_path, run_command, monkeypatch):
    """With packages in a folder: `PYTHONPATH=.site PATH=.site/bin:$PATH python -m pytest`."""
    (tmp_path / ".site/bin").mkdir(parents=True)
    (tmp_path / ".site/greeting.py").write_text("print('good day')\n")
    (tmp_path / ".site/bin/greet").write_text(f"#!{sys.executable}\nimport greeting\n")
    (tmp_path / ".site/bin/greet").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f".site/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", ".site")
    assert run_command(["greet"], "/").stdout == "good day\n"

"""The fuzzer takes good inputs for good, finds planted faults of each kind, and its seeded tries
break no rule."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT

from gpt import errors
from gpt.config import resolve

from . import families, material, server, tries
from .workspace import Workspace

# of each family in the usual suite; `python -m tests.fuzz` goes on for hours
TRIES = 6
# of whole runs, which take longer
TRIES_OF_TRAINING = 2


@pytest.fixture(scope="module")
def good_inputs(tmp_path_factory):
    server.prepare_server()
    folder = tmp_path_factory.mktemp("fuzz") / "material"
    material.make(folder)
    return folder


@pytest.fixture
def fuzzer(good_inputs, tmp_path):
    return tries.Fuzzer(tmp_path, good_inputs)


@pytest.mark.parametrize("family", sorted(families.FAMILIES.keys() - families.SLOW.keys()))
def test_no_try_breaks_a_rule(fuzzer, family):
    for number in range(TRIES_OF_TRAINING if family == "training" else TRIES):
        result = fuzzer.try_one(family, 0, number)
        assert result.broken == [], f"{family} {number}: {result.command}\n{result.traceback}"


def test_every_command_takes_good_inputs(good_inputs, tmp_path):
    for command in (*families.COMMANDS, *families.OF_INPUTS):
        space = Workspace(tmp_path / "w", good_inputs)
        space.add(*families.ALL_INPUTS)
        outcome, broken, _ = tries.run_in(space, command)
        space.remove()
        # there is no node2, and nothing that trains
        fails = command in (*families.OF_HOSTFILE, *families.OF_SWEEP)
        assert (outcome.code == 0) != fails, (command, outcome.stderr.decode())
        assert broken == [], command


# ---- Planted faults: what a command does instead of telling a mistake


def leave_process():
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)


def write_to_victim():
    Path("victim", "thesis.txt").write_text("272ed3293e2208e4")


def leave_file():
    os.close(tempfile.mkstemp()[0])


def raise_error():
    raise ZeroDivisionError("planted")


PLANTED = {
    "traceback": lambda: os.write(2, b"Traceback (most recent call last):\n  planted\n"),
    "unforeseen": raise_error,
    "hang": lambda: time.sleep(600),
    "memory": lambda: bytes(1 << 40),
    "control": lambda: os.write(1, b"\x1b]0;planted\x07"),
    "outside": write_to_victim,
    "signal": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit code": lambda: os._exit(3),
    "left file": leave_file,
    "sentences": lambda: os.write(2, b"error: one\nerror: two\n"),
    "process": leave_process,
}


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_fault_is_found(good_inputs, tmp_path, monkeypatch, rule):
    monkeypatch.setattr(server, "SECONDS_OF_CHILDREN", 0.2)

    def plant():
        read = resolve.read

        def strike(*args):
            try:
                return read(*args)
            except errors.UserError:
                PLANTED[rule]()
                raise

        resolve.read = strike

    seconds = 2.0 if rule == "hang" else server.SECONDS
    fuzzer = tries.Fuzzer(tmp_path, good_inputs, plant, seconds)
    broken = set()
    for number in range(TRIES):
        broken |= {failure.rule for failure in fuzzer.try_one("json", 0, number).broken}
        if rule in broken:
            return
    pytest.fail(f"{rule} is not found, only {broken}")


def test_a_failure_is_kept_and_runs_again(good_inputs, tmp_path):
    """The case's folder is all that is needed."""

    def plant():
        resolve.read = lambda *args: os.kill(os.getpid(), signal.SIGSEGV)

    fuzzer = tries.Fuzzer(tmp_path, good_inputs, plant)
    results = [fuzzer.try_one("json", 0, number) for number in range(TRIES)]
    failed = next(result for result in results if result.broken)
    case = fuzzer.keep(failed, tmp_path / "failures")
    assert "signal: ended by signal 11" in (case / "broken.txt").read_text()
    # without the fault
    outcome, broken, _ = tries.again(case, tmp_path / "again")
    assert outcome.code in (0, 2) and broken == []


def test_the_command_counts_and_tells(good_inputs, tmp_path):
    options = ["--tries", "2", "--families", "hostfile", "json", "--material", good_inputs]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *map(str, options), "--out", tmp_path / "failures"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split() == "family tries exit 0 exit 1 exit 2 failures".split()
    assert [row.split()[:2] for row in rows] == [["hostfile", "2"], ["json", "2"]]
    assert not (tmp_path / "failures").exists()

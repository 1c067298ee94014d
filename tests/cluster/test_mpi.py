"""Two ranks under Open MPI's mpirun itself (Debian's package openmpi-bin)."""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from conftest import ROOT, environment, read_metrics, write_run

PORT = 29731
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="not installed: openmpi-bin"),
]


@pytest.fixture
def start(sample, tmp_path):
    """start(*options) -> mpirun's process, whose run is tmp_path/run and output tmp_path/out."""
    processes = []

    def start(*options):
        gpt = {"data_root": str(sample), "run_dir": "run", "max_train_steps": 10**6}
        write_run(tmp_path, gpt={**gpt, "log_terminal_every": 0})
        launcher = ["mpirun", "--oversubscribe", "-np", "2", "-x", f"MASTER_PORT={PORT}"]
        if os.geteuid() == 0:
            launcher.append("--allow-run-as-root")
        with open(tmp_path / "out", "w") as out:
            process = subprocess.Popen(
                [*launcher, "python", ROOT / "gpt/train.py", "--ds_config", "tiny.json", *options],
                cwd=tmp_path,
                env=environment(OMP_NUM_THREADS="1"),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def printed(folder):
    return (folder / "out").read_text()


def test_ranks_of_mpirun_train_to_the_end(start, tmp_path):
    assert start("--max_train_steps", "3").wait(120) == 0, printed(tmp_path)
    assert ", 2 x cpu; " in printed(tmp_path)
    assert printed(tmp_path).count("done: 3 steps") == 1


def test_mpirun_passes_on_a_request_to_stop(start, tmp_path):
    process = start("--stopped_file", "stopped")
    end = time.monotonic() + 120
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or len(read_metrics(tmp_path / "run", "train")) < 5:
        assert time.monotonic() < end and process.poll() is None, printed(tmp_path)
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    step = read_metrics(tmp_path / "run", "train")[-1]["step"]
    assert f"stopped by SIGUSR1 and saved after step {step} of 1000000" in printed(tmp_path)
    assert (tmp_path / "stopped").read_text() == f"{step}\n"


def test_a_port_that_another_run_holds(start, tmp_path):
    with socket.create_server(("127.0.0.1", PORT)):
        assert start().wait(120) != 0
    assert f"give mpirun -x MASTER_PORT={PORT + 1}" in printed(tmp_path)
    assert not (tmp_path / "run").exists()

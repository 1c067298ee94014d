"""Signals to each process of a launched run, and launchers that die: nothing is lost, and nothing trains on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, read_metrics, write_run

from gpt import checkpoint

TRAIN = ROOT / "gpt" / "train.py"
QUICK = [("deepspeed", "TERM")]
SLOW = [(who, name) for who in ("deepspeed", "launch", "rank") for name in ("TERM", "INT", "KILL", "USR1") if (who, name) not in QUICK]


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"{what} took more than {seconds} s")


def steps_done(run_dir):
    return len(read_metrics(run_dir, "train")) if (run_dir / "metrics.jsonl").exists() else 0


def tree(process):
    """The launcher's process, its launch.py and the ranks."""
    below = psutil.Process(process.pid).children(recursive=True)
    launch = [p for p in below if "deepspeed.launcher.launch" in p.cmdline()]
    ranks = [p for p in below if str(TRAIN) in p.cmdline() and p not in launch]
    return {"deepspeed": [psutil.Process(process.pid)], "launch": launch, "rank": ranks}


def check(who, name, port, sample, folder, run_command):
    """Start two ranks, send the signal to one process, wait until all are gone, and go on to the end."""
    config = write_run(folder, gpt={"data_root": str(sample), "max_train_steps": 100_000, "log_ckpt_every": 5,
                                    "log_terminal_every": 0})  # fmt: skip
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(port), str(TRAIN), "--ds_config", str(config)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run_dir = folder / "runs/tiny"
    with open(folder / "out", "w") as out:
        started = subprocess.Popen(command, cwd=folder, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}, stdout=out,
                                   stderr=out, start_new_session=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    everyone = []
    try:
        wait_for(lambda: steps_done(run_dir) >= 8, 90, "the first steps")
        processes = tree(started)
        everyone = sum(processes.values(), [])
        assert len(processes["rank"]) == 2
        processes[who][0].send_signal(getattr(signal, f"SIG{name}"))
        started.wait(60)
        wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in everyone), 60, "ending")
    finally:
        for process in everyone or [psutil.Process(started.pid)]:
            if process.is_running():
                process.kill()
    notices = []
    tag = checkpoint.newest_good(run_dir / "checkpoints", notices)
    assert notices == []
    saved, done = int(tag.removeprefix("global_step")), steps_done(run_dir)
    if (who, name) == ("rank", "KILL"):  # the one that is left cannot save what the other held
        assert saved >= 5
    else:
        assert saved == done, (folder / "out").read_text()
        assert f"saved after step {saved} of 100000: the same command goes on" in (folder / "out").read_text()
    again = run_command([*command, "--max_train_steps", str(saved + 2)], folder, OMP_NUM_THREADS="1")
    assert again.returncode == 0 and f"resuming runs/tiny after step {saved}" in again.stdout, again.stderr


@pytest.mark.parametrize("who, name", QUICK)
def test_a_signal_saves_and_ends_all(who, name, sample, tmp_path, run_command):
    check(who, name, 29641 + QUICK.index((who, name)), sample, tmp_path, run_command)


@pytest.mark.slow
@pytest.mark.parametrize("who, name", SLOW)
def test_every_other_signal_to_every_other_process(who, name, sample, tmp_path, run_command):
    check(who, name, 29651 + SLOW.index((who, name)), sample, tmp_path, run_command)


def test_a_run_outlives_the_shell_that_started_it(sample, tmp_path):
    config = write_run(tmp_path, gpt={"data_root": str(sample), "max_train_steps": 40})
    subprocess.run(f"{sys.executable} {TRAIN} --ds_config {config} > out 2>&1 &", shell=True, cwd=tmp_path, check=True)
    out = tmp_path / "out"  # which the shell in the background has yet to make
    wait_for(lambda: out.exists() and "done: 40 steps" in out.read_text(), 120, "the run")

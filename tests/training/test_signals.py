"""Signals to a process that waits in C, and to each one of a launched run; launchers that die:
nothing is lost, and nothing trains on."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, read_metrics, write_run
from without_torch import needs_torch

from gpt.checkpoint import folders
from gpt.cluster import launch
from gpt.cluster.launch import LAUNCH, RUNNER, TORCH
from gpt.training import signals
from gpt.training.signals import StopRequest

TRAIN = ROOT / "gpt" / "train.py"
QUICK = [("deepspeed", "TERM")]
SLOW = [
    (who, name)
    for who in ("deepspeed", "launch", "rank")
    for name in ("TERM", "INT", "KILL", "USR1")
    if (who, name) not in QUICK
]
SLOW.append(("everyone", "INT"))  # as Ctrl-C in a terminal


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
    """Start two ranks, send the signal to one process, wait until all are gone, and go on to the
    end."""
    config = write_run(
        folder,
        gpt={
            "data_root": str(sample),
            "max_train_steps": 100_000,
            "log_ckpt_every": 5,
            "log_terminal_every": 0,
        },
    )
    command = [
        "deepspeed",
        "--num_gpus",
        "2",
        "--master_port",
        str(port),
        str(TRAIN),
        "--ds_config",
        str(config),
        "--stopped_file",
        "stopped",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run_dir = folder / "runs/tiny"
    with open(folder / "out", "w") as out:
        started = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    everyone = []
    try:
        wait_for(lambda: steps_done(run_dir) >= 8, 90, "the first steps")
        processes = tree(started)
        everyone = sum(processes.values(), [])
        assert len(processes["rank"]) == 2
        if who == "everyone":
            os.killpg(started.pid, signal.SIGINT)
        else:
            processes[who][0].send_signal(getattr(signal, f"SIG{name}"))
        started.wait(60)
        wait_for(
            lambda: (
                not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in everyone)
            ),
            60,
            "ending",
        )
    finally:
        for process in everyone or [psutil.Process(started.pid)]:
            if process.is_running():
                process.kill()
    deaths = (folder / "out").read_text().count("is gone without a word")
    assert deaths == ((who, name) == ("rank", "KILL")), (folder / "out").read_text()
    notices = []
    tag = folders.newest_good(run_dir / "checkpoints", notices)
    assert notices == []
    saved = int(tag.removeprefix("global_step"))
    done = steps_done(run_dir)
    if (who, name) == ("rank", "KILL"):  # the one that is left cannot save what the other held
        assert saved >= 5
        assert not (folder / "stopped").exists()
    else:
        assert saved == done, (folder / "out").read_text()
        assert (folder / "stopped").read_text() == f"{saved}\n"
        assert (
            f"saved after step {saved} of 100000: the same command goes on"
            in (folder / "out").read_text()
        )
    if who == "everyone":
        assert started.returncode == -signal.SIGINT
        assert (folder / "out").read_text().count("notice: deepspeed may still print") == 1
    again = run_command(
        [*command, "--max_train_steps", str(saved + 2)], folder, OMP_NUM_THREADS="1"
    )
    assert again.returncode == 0 and f"resuming runs/tiny after step {saved}" in again.stdout, (
        again.stderr
    )


@needs_torch
@pytest.mark.parametrize("who, name", QUICK)
def test_a_signal_saves_and_ends_all(who, name, sample, tmp_path, run_command):
    check(who, name, 29641 + QUICK.index((who, name)), sample, tmp_path, run_command)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("who, name", SLOW)
def test_every_other_signal_to_every_other_process(who, name, sample, tmp_path, run_command):
    check(who, name, 29651 + SLOW.index((who, name)), sample, tmp_path, run_command)


IN_C = """
import signal, sys, threading, time
# the tests themselves may run under nohup
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.path[:0] = sys.argv[1:]
from forked import wait_in_c
from gpt.training.signals import StopRequest
stop = StopRequest()
def watch():
    time.sleep(0.3)  # until the main thread is there
    print("ready", flush=True)
    while not stop.reason:
        time.sleep(0.01)
    print(stop.reason, flush=True)
threading.Thread(target=watch, daemon=True).start()
wait_in_c()
"""


@needs_torch
@pytest.mark.parametrize("first", ["TERM", "INT", "USR1", "USR2", "HUP", "XCPU"])
def test_a_signal_is_heard_while_the_main_thread_waits_in_c(first):
    command = [sys.executable, "-c", IN_C, ROOT, ROOT / "tests" / "support"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    end = threading.Timer(30, process.kill)  # the main thread never comes back by itself
    end.start()
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, f"SIG{first}"))
        assert process.stdout.readline() == f"SIG{first}\n"
        assert process.poll() is None
        if first != "INT":
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        end.cancel()
        process.kill()
        process.wait()


@needs_torch
def test_a_launchers_sigterm_beside_the_terminals_sigint_is_one_request():
    """Both at once, as a rank gets them that was busy while someone pressed Ctrl-C."""
    command = [sys.executable, "-c", IN_C, ROOT, ROOT / "tests" / "support"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    end = threading.Timer(30, process.kill)
    end.start()
    try:
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        assert process.stdout.readline() in ("SIGINT\n", "SIGTERM\n")
        time.sleep(0.3)
        assert process.poll() is None
    finally:
        end.cancel()
        process.kill()
        process.wait()


def test_under_nohup_a_lost_terminal_is_no_request():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: stop.reason, 30, "hearing one")
        stop.close()
        assert stop.reason == "SIGUSR1"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


SAVED = """
import sys
sys.path[:0] = sys.argv[1:]
from gpt.training.signals import StopRequest
stop = StopRequest()
stop.run_is_over()
print("saved", flush=True)
sys.stdin.readline()
"""


def test_signals_after_the_save_change_no_exit_code():
    process = subprocess.Popen(
        [sys.executable, "-c", SAVED, ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "saved\n"
        for _ in range(20):
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                process.send_signal(number)
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_handlers_and_wakeup_descriptor_are_given_back():
    handler, (receiver, sender) = signal.getsignal(signal.SIGUSR1), socket.socketpair()
    sender.setblocking(False)
    before = signal.set_wakeup_fd(sender.fileno())
    try:
        stop = StopRequest()
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: stop.reason == "SIGUSR1", 30, "hearing it")
        assert stop.seconds_ago() >= 0
        stop.close()
        assert signal.getsignal(signal.SIGUSR1) == handler
        assert signal.set_wakeup_fd(before) == sender.fileno()
        assert not any(thread.is_alive() for thread in stop._threads)
    finally:
        signal.set_wakeup_fd(before)
        receiver.close()
        sender.close()


@pytest.mark.parametrize(
    "kind, reason, words",
    [
        (RUNNER, "SIGINT", "deepspeed may still print its own KeyboardInterrupt,"),
        # Ctrl-C, of which deepspeed.launcher.launch makes a SIGTERM
        (RUNNER, "SIGTERM", "deepspeed may still print its own KeyboardInterrupt,"),
        (TORCH, "SIGINT", "torchrun may still print its own SignalException,"),
        (TORCH, "SIGTERM", "torchrun may still print its own SignalException,"),
        (TORCH, "SIGUSR1", None),
        (RUNNER, "the launcher is gone", None),
        (None, "SIGINT", None),  # one process, or mpirun
    ],
)
def test_what_a_launcher_prints_after_the_run_is_told_before(kind, reason, words, monkeypatch):
    above = [LAUNCH, kind] if kind == RUNNER else [kind]
    monkeypatch.setattr(launch, "_kind", lambda process: process)
    monkeypatch.setattr(signals, "launchers", lambda: above if kind else [])
    monkeypatch.setattr(signals, "_watched", lambda: ([], None))
    stop = StopRequest()
    part = stop.launchers_part(reason)
    stop.close()
    if words is None:
        assert part is None
    else:
        assert part == f"{words} and end with an exit code other than 0: the run is saved"


@pytest.mark.parametrize("heeded", [True, False])
def test_without_a_launcher_only_those_who_do_not_act_are_ended(heeded, monkeypatch):
    ended = []
    orphaned = [(os.getpid(), -1)], None
    monkeypatch.setattr(signals, "_watched", lambda: orphaned)
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    stop = StopRequest()
    wait_for(lambda: stop.reason == "the launcher is gone", 30, "noticing it")
    if heeded:
        stop.heeded()
    stop._threads[1].join()
    stop.close()
    assert ended == ([] if heeded else [1])


@needs_torch
def test_a_run_outlives_the_shell_that_started_it(sample, tmp_path):
    config = write_run(tmp_path, gpt={"data_root": str(sample), "max_train_steps": 40})
    subprocess.run(
        f"{sys.executable} {TRAIN} --ds_config {config} > out 2>&1 &",
        shell=True,
        cwd=tmp_path,
        check=True,
    )
    out = tmp_path / "out"  # which the shell in the background has yet to make
    wait_for(lambda: out.exists() and "done: 40 steps" in out.read_text(), 120, "the run")

"""tools/sweep.py: a ladder of runs that is ended in the middle, and goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, read_metrics, write_run
from without_torch import needs_torch

SWEEP = ROOT / "tools" / "sweep.py"
STEPS = 200


@pytest.fixture(scope="module")
def ladder(tmp_path_factory, sample):
    folder = tmp_path_factory.mktemp("ladder")
    for name, steps, is_fp16 in (("short", 3, True), ("long", STEPS, False)):
        write_run(
            folder,
            name,
            # these processes have no GPU, and train it in fp32
            fp16={"enabled": is_fp16},
            gpt={
                "data_root": str(sample),
                "max_train_steps": steps,
                "eval_every": STEPS,
                "log_ckpt_every": 20,
                "log_terminal_every": 100,
                "tokens_per_second": 1000,
            },
        )
    return folder


def summary(folder):
    return {
        entry["name"]: entry
        for entry in json.loads((folder / "out/sweep.json").read_text())["runs"]
    }


@needs_torch
@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_sweep_that_is_ended_goes_on(how, ladder, tmp_path, run_command):
    command = [
        sys.executable,
        str(SWEEP),
        "--classes",
        str(ladder / "short.json"),
        str(ladder / "long.json"),
        "--seeds",
        "3",
        "--out",
        "out",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    long = tmp_path / "out/long-seed3"
    while not (long / "checkpoints/latest").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    training = psutil.Process(first.pid).children()
    first.send_signal(how)
    told, _ = first.communicate(timeout=240) if how == signal.SIGTERM else ("", None)
    for process in training if how == signal.SIGKILL else []:
        process.kill()
        psutil.wait_procs([process])
    first.wait()
    first.stdout.close()
    if how == signal.SIGTERM:
        assert first.returncode == 0 and "stopped by SIGTERM: the same command goes on" in told
        assert summary(tmp_path)["long-seed3"]["status"] == "unfinished" and read_metrics(
            long, "stopped"
        )
    short = (tmp_path / "out/short-seed3/metrics.jsonl").read_text()
    second = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert second.returncode == 0, second.stdout + second.stderr
    # was finished, and is left alone
    assert (tmp_path / "out/short-seed3/metrics.jsonl").read_text() == short
    (resumed,) = read_metrics(long, "resume")
    assert 20 <= resumed["step"] < STEPS
    assert f"--- run 2 of 2: long-seed3, from step {resumed['step']} of {STEPS}" in second.stdout
    for name, steps in (("short-seed3", 3), ("long-seed3", STEPS)):
        found = summary(tmp_path)[name]
        last = read_metrics(tmp_path / "out" / name, "eval")[-1]
        assert (found["status"], found["step"], found["steps"], found["seed"]) == (
            "finished",
            steps,
            steps,
            3,
        )
        hours = steps * 256 / 1000 / 3600 if name == "long-seed3" else None
        assert found["reference_hours"] == (hours and pytest.approx(hours))
        assert (last["step"], last["normalised_ppl"]) == (steps, found["normalised_ppl"])
        assert f"{found['normalised_ppl']:.4f}" in second.stdout
    assert re.search(r"\nshort-seed3 +3 +- ", second.stdout)
    with open(tmp_path / "out/short-seed3/metrics.jsonl", "a") as file:
        file.write('{"event": "chec')  # a kill can leave half a line behind
    # they take room, and all figures are in the metrics
    shutil.rmtree(tmp_path / "out/short-seed3/checkpoints")
    third = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert third.returncode == 0 and "--- run" not in third.stdout, third.stdout + third.stderr
    assert (tmp_path / "out/short-seed3/metrics.jsonl").read_text() == short + '{"event": "chec'
    assert f"{summary(tmp_path)['short-seed3']['normalised_ppl']:.4f}" in third.stdout
    done = run_command([*command, "--max_lr", "0.1"], tmp_path)
    assert done.returncode == 2
    assert (
        "out/short-seed3 holds a run with other settings (scheduler.params.max_lr was 0.003, is"
        " 0.1)" in done.stderr
    )


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(ladder, tmp_path, run_command):
    bad = tmp_path / "bad.json"  # a mistake that only the device tells
    bad.write_text(
        (ladder / "short.json").read_text().replace('"n_heads"', '"kernels": "triton", "n_heads"')
    )
    done = run_command(
        [sys.executable, SWEEP, "--classes", bad, ladder / "short.json", "--out", "out"], tmp_path
    )
    assert done.returncode == 1 and "error: not finished: bad; " in done.stderr
    assert {name: entry["status"] for name, entry in summary(tmp_path).items()} == {
        "bad": "failed",
        "short": "finished",
    }


def test_a_run_that_diverged_is_told_and_not_trained_again(ladder, tmp_path, run_command):
    command = [sys.executable, SWEEP, "--classes", ladder / "short.json", "--out", "out"]
    command += ["--max_lr", "1e30", "--max_train_steps", "1", "--eval_every", "1"]
    metrics = tmp_path / "out/short/metrics.jsonl"
    events = []
    for is_first in (True, False):
        done = run_command(command, tmp_path)
        assert done.returncode == 1
        assert done.stderr.endswith(
            "error: diverged: short; they are not trained again: lower max_lr, or set"
            " gradient_clipping, in another --out\n"
        )
        assert ("--- run 1 of 1" in done.stdout) == is_first
        assert re.search(r"\nshort +1 +\S+ +diverged\n", done.stdout)
        entry = summary(tmp_path)["short"]
        assert (entry["status"], entry["step"]) == ("diverged", 1)
        events.append(metrics.read_text())
    assert events[0] == events[1]


BAD = [
    (["--out", "o"], "the following arguments are required: --classes"),
    (["--classes", "6x", "--out", "o"], "cannot read the config 6x: No such file or directory"),
    (["--classes", "a.json", "a.json", "--out", "o"], "the class "),
    (["--classes", "a.json", "--seeds", "1", "1", "--out", "o"], "the seed 1 is given twice"),
    (
        ["--classes", "a.json", "--out", "o", "--seed", "1"],
        "is not for a sweep: --out and --seeds name the runs",
    ),
    (
        ["--classes", "a.json", "--out", "o", "--max_lr", "-1"],
        "scheduler.params.max_lr is -1, must be above 0",
    ),
    (
        ["--classes", "a.json", "--out", "o", "--ds_config=b.json"],
        "--ds_config is not for a sweep: give --classes",
    ),
    (["--classes", "a.json", "--out", "o", "--gpt", "null"], "--gpt is not for a sweep"),
    (["--classes", "a.json", "--out", "o", "--data_root", "nowhere"], "nowhere"),
    (
        ["--classes", "a.json", "--out", "o", "--launcher", "deepspee --num_gpus 2"],
        "--launcher deepspee: there is no such command",
    ),
    (
        ["--classes", "a.json", "--out", "o", "--sedes", "1"],
        "unknown option --sedes (did you mean '--seeds'?)",
    ),
    (
        ["--classes", "a.json", "--out", "o", "--launcher", "x 'y"],
        "--launcher x 'y: No closing quotation",
    ),
    (["--classes", "6h", "a.json", "--out", "o"], "data/books holds no dataset"),
]


@pytest.mark.parametrize(
    "options, sentence", [pytest.param(*case, id=" ".join(case[0])) for case in BAD]
)
def test_a_mistake_ends_before_the_first_run(options, sentence, ladder, tmp_path, run_command):
    Path(tmp_path / "a.json").write_text((ladder / "short.json").read_text())
    done = run_command([sys.executable, SWEEP, *options], tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

"""Numbers that go wrong, and ranks that hang: what a run does about faults that
tests/support/planted.py plants in it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, read_metrics, write_run
from safetensors.torch import load_file

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import Manifest
from gpt.checkpoint.weights import consolidate
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams, batch_index
from gpt.training.spikes import SpikeDetector

PLANTED = ROOT / "tests" / "support" / "planted.py"
LEARNING = {"max_train_steps": 44, "log_ckpt_every": 10, "keep_last": 0, "log_terminal_every": 0}


def config_of(folder, sample, stage=1, gpt=(), **options):
    schedule = {
        "type": "LanguiniCosineLR",
        "params": {"max_lr": 0.02, "warmup_steps": 2, "decay_steps": 60},
    }
    return write_run(
        folder,
        scheduler=schedule,
        zero_optimization={"stage": stage},
        gpt={"data_root": str(sample), **LEARNING, **dict(gpt)},
        **options,
    )


def planted(run_command, folder, config, fault, *options, ranks=1, port=29701, **env):
    start = (
        [sys.executable]
        if ranks == 1
        else ["torchrun", "--master_port", port, "--nproc_per_node", ranks]
    )
    return run_command(
        [*start, PLANTED, fault, "--ds_config", config, *options],
        folder,
        OMP_NUM_THREADS="1",
        **env,
    )


def weights(run_dir, out):
    consolidate(run_dir / "checkpoints", out)
    return load_file(out / "model.safetensors")


def same(weights, other):
    if weights.keys() != other.keys():
        return False
    return all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize(
    "losses, loss",
    [([1.0, 2.0, 3.0, 4.0] * 5, 9.0), (np.random.default_rng(0).normal(3, 1, 200), 5.0)],
)
def test_robust_z_scores(losses, loss):
    last = np.asarray(losses)[-64:]
    middle = np.median(last)
    # the normal's third quartile
    expected = (loss - middle) / (np.median(np.abs(last - middle)) / 0.6744897501960817)
    detector = SpikeDetector()
    for value in losses:
        detector.add(float(value))
    assert detector.score(loss) == pytest.approx(expected, rel=1e-4)
    assert detector.score(float("nan")) == float("inf")
    assert SpikeDetector(losses[:15]).score(1e9) == 0


def test_batches_left_out_shift_those_after_them():
    left_out = [7, 3, 4]
    expected = [index for index in range(40) if index not in left_out]
    assert [batch_index(step, left_out) for step in range(len(expected))] == expected


def test_documents_of_a_batch(sample):
    dataset = Dataset(sample)
    split = dataset.split("train")
    streams = Streams(dataset.split("train"), 3, 100)
    end = 2
    for index in (0, 7, 900):
        batch = streams.batch(index)
        names = streams.documents(index)
        whole = {
            name: np.append(tokens, end)
            for name, tokens in zip(
                split.names(), np.split(split.tokens[:], np.cumsum(split.doc_tokens + 1)[:-1])
            )
        }
        pieces = sum(
            len([piece for piece in np.split(row, np.flatnonzero(row == end) + 1) if len(piece)])
            for row in batch
        )
        assert len(names) == pieces  # no document is in two streams
        # every piece between two ends of documents is in one of the named documents
        for row in batch:
            for piece in np.split(row, np.flatnonzero(row == end) + 1):
                text = np.asarray(piece, np.uint16).tobytes()
                assert any(text in np.asarray(whole[name], np.uint16).tobytes() for name in names)
    assert len(split.names()) == len(split.doc_tokens) and "1790-Washington-1.txt" in split.names()


def compare(policy, absent, stage, ranks, sample, folder, run_command):
    """A run that meets a bad batch ends as one that never saw the batches which were left out."""
    config = config_of(folder, sample, stage)
    done = planted(
        run_command,
        folder,
        config,
        "spike=34",
        "--spike_policy",
        policy,
        "--run_dir",
        folder / "a",
        ranks=ranks,
    )
    assert done.returncode == 0 and "SPIKE: the loss of" in done.stdout, done.stdout + done.stderr
    other = planted(
        run_command, folder, config, f"without={absent}", "--run_dir", folder / "b", ranks=ranks
    )
    assert other.returncode == 0 and "SPIKE" not in other.stdout, other.stdout + other.stderr
    assert same(weights(folder / "a", folder / "wa"), weights(folder / "b", folder / "wb"))
    last = {
        event["step"]: (event["loss"], event["lr"]) for event in read_metrics(folder / "a", "train")
    }
    assert last == {
        event["step"]: (event["loss"], event["lr"]) for event in read_metrics(folder / "b", "train")
    }
    return read_metrics(folder / "a")


def test_rewind(sample, tmp_path, run_command):
    events = compare("rewind", "33+34", 1, 1, sample, tmp_path, run_command)
    (rewind,) = [event for event in events if event["event"] == "rewind"]
    assert (rewind["step"], rewind["to"], rewind["batches"]) == (35, 30, [33, 34])
    assert rewind["zscore"] > 8
    assert all(name.endswith(".txt") for name in rewind["documents"][0])
    assert Manifest.read(tmp_path / "a/checkpoints/global_step44").left_out == [
        33,
        34,
    ]


def test_skip_by_two_ranks(sample, tmp_path, run_command):
    events = compare("skip", "34", 2, 2, sample, tmp_path, run_command)
    assert [(event["step"], event["batch"]) for event in events if event["event"] == "skip"] == [
        (35, 34)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stage, ranks", [(0, 1), (0, 2), (1, 2), (2, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("policy, absent", [("rewind", "33+34"), ("skip", "34")])
def test_every_stage_leaves_batches_out(
    policy, absent, stage, ranks, sample, tmp_path, run_command
):
    compare(policy, absent, stage, ranks, sample, tmp_path, run_command)


def test_a_warning_is_the_default(sample, tmp_path, run_command):
    config = config_of(tmp_path, sample)
    done = planted(run_command, tmp_path, config, "spike=34")
    assert done.returncode == 0, done.stderr
    assert "SPIKE: the loss of step 35 is 8." in done.stdout
    assert [event["step"] for event in read_metrics(tmp_path / "runs/tiny", "train")] == list(
        range(1, 45)
    )


@pytest.mark.slow
def test_a_rewound_run_that_is_killed_goes_on_as_if_it_had_not_been(sample, tmp_path, run_command):
    config = config_of(tmp_path, sample)
    run_dirs = tmp_path / "a", tmp_path / "b"
    stopped = planted(
        run_command,
        tmp_path,
        config,
        "spike=34,hang=0@37",
        "--spike_policy",
        "rewind",
        "--step_timeout",
        4,
        "--run_dir",
        run_dirs[0],
    )
    assert stopped.returncode == 1
    for run_dir in run_dirs:
        done = planted(
            run_command,
            tmp_path,
            config,
            "spike=34",
            "--spike_policy",
            "rewind",
            "--run_dir",
            run_dir,
        )
        assert done.returncode == 0, done.stderr
    assert (
        len(read_metrics(run_dirs[0], "rewind")) == 2
        and len(read_metrics(run_dirs[1], "rewind")) == 1
    )
    assert same(weights(run_dirs[0], tmp_path / "wa"), weights(run_dirs[1], tmp_path / "wb"))


@pytest.mark.parametrize(
    "stage", [1, pytest.param(0, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_gradient_that_is_not_finite_is_explained(stage, sample, tmp_path, run_command):
    config = config_of(tmp_path, sample, stage)
    done = planted(run_command, tmp_path, config, "nan=12", ranks=2)
    assert done.returncode == 1
    assert (
        done.stderr.count(
            "error: step 13: the gradient is not finite in fp32; the first value that is not finite"
            " is in the output of blocks.1.mlp on rank 0; batch 12 is made from 8 documents ("
        )
        == 1
    )
    assert (
        "nothing was updated, the latest checkpoint is runs/tiny/checkpoints/global_step10: lower"
        " max_lr" in done.stderr
    )
    assert Checkpoint.open(tmp_path / "runs/tiny/checkpoints/global_step10").verify()
    failed = read_metrics(tmp_path / "runs/tiny", "failed")
    assert len(failed) == 1 and failed[0]["step"] == 12 and len(failed[0]["documents"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("policy, step", [("skip", 13), ("rewind", 13)])
def test_a_batch_with_nan_can_be_left_out(policy, step, sample, tmp_path, run_command):
    config = config_of(tmp_path, sample)
    done = planted(run_command, tmp_path, config, "nan=12", "--spike_policy", policy)
    assert done.returncode == 0, done.stderr
    events = read_metrics(tmp_path / "runs/tiny", policy)
    assert [event["step"] for event in events] == [step] and events[0]["loss"] is None


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_fp16_overflow_without_end_is_explained(stage, sample, tmp_path, run_command):
    fp16 = {"enabled": True, "initial_scale_power": 3, "hysteresis": 1}
    config = config_of(tmp_path, sample, stage, {"seq_len": 16, "log_ckpt_every": 1}, fp16=fp16)
    done = planted(run_command, tmp_path, config, "fp16,overflow=2")
    assert done.returncode == 1
    assert (
        "error: step 3: the fp16 gradient overflowed 4 time(s) in a row, the last time at loss"
        " scale 1; the first value that is not finite is in the gradient of the output of"
        " blocks.1.mlp.c_proj on rank 0" in done.stderr
    )
    assert [event["loss_scale"] for event in read_metrics(tmp_path / "runs/tiny", "overflow")] == [
        4,
        2,
        1,
        1,
    ]
    assert "the latest checkpoint is runs/tiny/checkpoints/global_step2" in done.stderr


@pytest.mark.parametrize(
    "fault, sentence",
    [
        ("hang=1@12", "late: rank 1, reading the batch of step 12"),
        pytest.param(
            "stop=1@12", "late: rank 1, which shows no sign of life", marks=pytest.mark.slow
        ),
        pytest.param("stop=0@12", "late: rank 0, ", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_hangs_is_named_and_all_end(fault, sentence, sample, tmp_path):
    config = config_of(tmp_path, sample, gpt={"log_ckpt_every": 5})
    processes = []
    for rank in range(2):
        env = {
            **os.environ,
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29703",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, PLANTED, fault, "--ds_config", config, "--step_timeout", "4"]
        processes.append(
            subprocess.Popen(
                list(map(str, command)), cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE
            )
        )
    try:
        for rank, process in enumerate(processes):
            if fault.startswith(f"stop={rank}"):
                continue
            error = process.communicate(timeout=90)[1]
            assert process.returncode == 1 and sentence in error, error
            assert (
                "no progress for 4 s (gpt.step_timeout) while" in error
                and "in _train_step" in error
            )
            assert "gone without a word" not in error  # though one of them ends first
            # the stack shows where it hangs
            assert ("time.sleep(10_000)" in error) == (fault == f"hang={rank}@12")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert folders.newest_good(tmp_path / "runs/tiny/checkpoints", []) in (
        "global_step5",
        "global_step10",
    )


def test_a_first_step_may_compile_after_an_evaluation(sample, tmp_path, run_command):
    gpt = {"eval_every": 5, "eval_batch_size": 1, "max_eval_steps": 5, "max_train_steps": 2}
    config = config_of(tmp_path, sample, gpt=gpt)
    done = planted(run_command, tmp_path, config, "compile=5", "--step_timeout", 2)
    assert done.returncode == 0 and "eval after step 0" in done.stdout, done.stdout + done.stderr


def test_a_fault_that_never_strikes_is_noticed(sample, tmp_path, run_command):
    config = config_of(tmp_path, sample, gpt={"max_train_steps": 2})
    done = planted(run_command, tmp_path, config, "spike=1,nan=7,bug=1@1")
    assert done.returncode == 1
    assert done.stderr.endswith("rank 0: planted, and never struck: nan\n")


def test_a_request_to_stop_does_not_wait_for_an_evaluation(sample, tmp_path, run_command):
    options = {"eval_every": 5, "max_eval_steps": 400, "eval_batch_size": 1, "max_train_steps": 6}
    config = config_of(tmp_path, sample, gpt=options)
    # 80 s for each evaluation
    command = [sys.executable, str(PLANTED), "slow=0.2", "--ds_config", str(config)]
    process = subprocess.Popen(
        command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not (tmp_path / "runs/tiny/metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 0 and "stopped by SIGTERM and saved after step 0 of 6" in out, (
        out + error
    )
    stopped = read_metrics(tmp_path / "runs/tiny", "stopped")
    assert 0 < stopped[0]["seconds"] < 30
    done = run_command([sys.executable, PLANTED, "slow=0", "--ds_config", config], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [event["step"] for event in read_metrics(tmp_path / "runs/tiny", "eval")] == [0, 5, 6]

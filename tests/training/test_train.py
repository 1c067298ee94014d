"""Whole runs through the real commands."""

import errno
import json
import os
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, read_metrics, write_run
from safetensors.torch import load_file

from gpt import locking
from gpt.checkpoint.manifest import read_content, write_content
from gpt.checkpoint.weights import consolidate
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.locking import FolderLock

TRAIN = ROOT / "gpt" / "train.py"


def losses(run_dir):
    return np.array([event["loss"] for event in read_metrics(run_dir, "train")])


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, sample, run_command):
    """Six steps under `deepspeed` with one process: the folder in which they ran."""
    folder = tmp_path_factory.mktemp("one")
    config = write_run(
        folder, gpt={"data_root": str(sample), "eval_every": 3, "log_grads_every": 3, "seed": 1}
    )
    done = run_command(
        ["deepspeed", "--num_gpus", 1, "--master_port", 29611, TRAIN, "--ds_config", config], folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_what_a_person_sees(one_rank):
    lines = (one_rank / "stdout").read_text().splitlines()
    assert any(
        line.startswith("eval after step 0 (untrained) on test (529 of 108,606 tokens): loss 7.6")
        for line in lines
    )
    assert any(
        line.startswith("step 6/6  loss ") and "tokens/s  ETA 0:00:00" in line for line in lines
    )
    assert lines[-1].endswith("exits successfully.") or "done: 6 steps" in lines[-1]


def test_metrics_hold_every_step(one_rank):
    train = read_metrics(one_rank / "runs/tiny", "train")
    assert [event["step"] for event in train] == [1, 2, 3, 4, 5, 6]
    assert [event["tokens"] for event in train] == [256 * step for step in range(1, 7)]
    assert [event["step"] for event in read_metrics(one_rank / "runs/tiny", "eval")] == [0, 3, 6]
    assert train[0]["lr"] == pytest.approx(
        0.5 * (6e-6 + 0.5 * (1 + np.cos(np.pi / 6)) * (3e-3 - 6e-6)), rel=1e-12
    )
    assert train[-1]["lr"] == pytest.approx(6e-6, rel=1e-9)


def test_norms_add_up_to_the_whole_gradient(one_rank):
    norms = {event["step"]: event for event in read_metrics(one_rank / "runs/tiny", "norms")}
    train = {event["step"]: event for event in read_metrics(one_rank / "runs/tiny", "train")}
    assert set(norms) == {3, 6}
    for step in norms:
        whole = np.sqrt(sum(value**2 for value in norms[step]["gradient"].values()))
        assert whole == pytest.approx(train[step]["grad_norm"], rel=1e-5)
    assert {"token_embedding", "blocks.1.attn.qkv", "head"} <= set(norms[3]["update"])


def test_two_ranks_find_the_same_losses(one_rank, tmp_path, run_command):
    command = [
        "deepspeed",
        "--num_gpus",
        2,
        "--master_port",
        29612,
        TRAIN,
        "--ds_config",
        one_rank / "tiny.json",
    ]
    done = run_command(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "runs/tiny") == pytest.approx(losses(one_rank / "runs/tiny"), abs=1e-5)
    for mine, theirs in zip(
        read_metrics(tmp_path / "runs/tiny", "norms"), read_metrics(one_rank / "runs/tiny", "norms")
    ):
        for kind in ("weight", "gradient", "update"):
            assert mine[kind] == pytest.approx(theirs[kind], rel=1e-3)
    for mine, theirs in zip(
        read_metrics(tmp_path / "runs/tiny", "eval"), read_metrics(one_rank / "runs/tiny", "eval")
    ):
        assert (mine["tokens"], mine["bytes"]) == (theirs["tokens"], theirs["bytes"])
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_other_launchers_do_the_same(launcher, one_rank, tmp_path, run_command):
    # torchrun's OMP_NUM_THREADS=1 asks for nothing, but one core takes one thread
    one_core = ["taskset", "--cpu-list", min(os.sched_getaffinity(0))]
    start = (
        [sys.executable]
        if launcher == "python"
        else [*one_core, "torchrun", "--master_port", 29613, "--nproc_per_node", 1]
    )
    done = run_command([*start, TRAIN, "--ds_config", one_rank / "tiny.json"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (losses(tmp_path / "runs/tiny") == losses(one_rank / "runs/tiny")).all()


def test_a_resumed_run_equals_an_undisturbed_one_to_the_last_bit(one_rank, tmp_path, run_command):
    command = [sys.executable, TRAIN, "--ds_config", one_rank / "tiny.json"]
    first = run_command([*command, "--max_train_steps", 4], tmp_path)
    second = run_command([*command, "--resume", "must"], tmp_path)
    assert first.returncode == second.returncode == 0, second.stderr
    assert "resuming runs/tiny after step 4" in second.stdout
    assert (losses(tmp_path / "runs/tiny") == losses(one_rank / "runs/tiny")).all()
    consolidate(tmp_path / "runs/tiny/checkpoints", tmp_path / "resumed")
    consolidate(one_rank / "runs/tiny/checkpoints", tmp_path / "undisturbed")
    resumed, undisturbed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("resumed", "undisturbed")
    )
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in resumed)


def test_an_evaluation_that_was_stopped_is_made_up_for_once(one_rank, tmp_path, run_command):
    shutil.copytree(one_rank / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/tiny/checkpoints/global_step6"
    # as a stop leaves it
    write_content(folder, {**read_content(folder), "evaluated_step": 3})
    command = [sys.executable, TRAIN, "--ds_config", one_rank / "tiny.json"]
    first, second = (run_command(command, tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "eval after step 6 on test" in first.stdout and "done: 6 steps" in first.stdout
    assert (
        second.stdout == "runs/tiny is at step 6 already, and max_train_steps is 6: nothing to do\n"
    )
    assert [event["step"] for event in read_metrics(tmp_path / "runs/tiny", "eval")] == [0, 3, 6, 6]


def test_going_on_with_other_settings_is_refused(one_rank, run_command):
    command = [sys.executable, TRAIN, "--ds_config", one_rank / "tiny.json"]
    done = run_command([*command, "--max_lr", "0.1", "--n_layers", "3"], one_rank)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "runs/tiny holds a run with other settings (model.n_layers was 2, is 3;"
        " scheduler.params.max_lr was 0.003, is 0.1)" in (done.stderr)
    )
    done = run_command([*command, "--resume", "never"], one_rank)
    assert done.returncode == 2
    assert "--resume never: runs/tiny already holds a run: name another --run_dir" in done.stderr


def test_the_evaluator_scores_the_whole_split_without_deepspeed(
    one_rank, sample, tmp_path, run_command
):
    done = run_command(
        [
            sys.executable,
            ROOT / "tools/zero_to_fp32.py",
            one_rank / "runs/tiny/checkpoints",
            tmp_path / "out",
        ],
        tmp_path,
    )
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    evaluate = [
        sys.executable,
        "-X",
        "importtime",
        ROOT / "gpt/eval.py",
        "--checkpoint_file",
        tmp_path / "out/model.safetensors",
        "--last_n",
        16,
        "--batch_size",
        64,
        "--json",
        tmp_path / "o.json",
    ]
    done = run_command(evaluate, tmp_path)
    assert done.returncode == 0, done.stderr
    imported = {
        line.split("|")[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "torch" in imported and not imported & {"deepspeed", "wandb", "torch._dynamo"}
    result = json.loads((tmp_path / "o.json").read_text())
    assert f"normalised perplexity     {result['normalised_ppl']:14.4f}" in done.stdout
    source = json.loads((sample / "manifest.json").read_text())["splits"]["test"]
    assert result["tokens"] == source["tokens"] and result["bytes"] == source["bytes"]
    assert list(result) == [
        "split",
        "dataset",
        "documents",
        "checkpoint",
        "step",
        "seq_len",
        "last_n",
        "of_tokens",
        "tokens",
        "bytes",
        "total_loss",
        "text_nats",
        "text_tokens",
        "loss",
        "ppl",
        "normalised_loss",
        "normalised_ppl",
        "bits_per_byte",
        "top1",
        "top10",
        "languini",
    ]


def test_24h_on_a_laptop_asks_for_its_data_only(tmp_path, run_command):
    command = [
        "deepspeed",
        "--master_port",
        29614,
        TRAIN,
        "--ds_config",
        ROOT / "ds_configs/24h.json",
        "--max_train_steps",
        2,
    ]
    done = run_command(command, tmp_path)
    assert done.returncode == 2
    assert (
        "error: data/books holds no dataset (no manifest.json): make one from a folder of .txt"
        " files with " in done.stderr
    )
    assert "python tools/prepare_data.py --input FOLDER --out data/books" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_the_same_folder_is_refused(sample, tmp_path, run_command):
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    lock = FolderLock(tmp_path / "runs/tiny")
    done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path)
    assert done.returncode == 2
    assert (
        "another process is training in runs/tiny: wait for it, or name another --run_dir"
        in done.stderr
    )
    lock.release()


def test_a_disk_without_locks_is_a_mistake(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    with pytest.raises(
        UserError,
        match=r"run/.lock cannot be locked \(Function not implemented\): name a folder on a disk",
    ):
        FolderLock(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_did_not_begin_leaves_no_folder(sample, tmp_path, run_command):
    """Its rank cannot listen at the port, which is found out after the folder was taken."""
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    command = [sys.executable, TRAIN, "--ds_config", config, "--run_dir", "runs/deep/tiny"]
    variables = dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run_command(command, tmp_path, MASTER_PORT=port, **variables)
    assert done.returncode == 2 and "rank 0 cannot listen at" in done.stderr
    assert list(tmp_path.iterdir()) == [config]


def test_only_what_a_lock_made_goes_with_it(tmp_path):
    FolderLock(tmp_path / "a/b/c").remove_unused()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    FolderLock(tmp_path / "a/b").remove_unused()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    FolderLock(tmp_path / "a").remove_unused()
    assert (tmp_path / "a").is_dir()
    lock = FolderLock(tmp_path / "used")
    (tmp_path / "used/file").touch()
    lock.remove_unused()
    assert (tmp_path / "used/file").exists()


def test_pickles_with_code_are_never_run(one_rank, tmp_path, run_command):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/sprung",)

    shutil.copytree(one_rank / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        content = (folder / name).read_bytes()
        torch.save({"optimizer_state_dict": Trap(), "module": Trap()}, folder / name)
        hashes = {
            path.name: hash_file(path)
            for path in folder.iterdir()
            if path.name != "checkpoint.json"
        }
        write_content(folder, {**manifest, "files": hashes})
        with pytest.raises(
            UserError,
            match="holds code or types that a checkpoint does not need, and was not loaded",
        ):
            consolidate(folder, tmp_path / "out")
        if name.startswith("mp"):
            (folder / name).write_bytes(content)
            continue
        done = run_command(
            [sys.executable, TRAIN, "--ds_config", one_rank / "tiny.json", "--max_train_steps", 8],
            tmp_path,
        )
        assert done.returncode == 2 and "holds code or types" in done.stderr
        done = run_command(
            [sys.executable, ROOT / "gpt/eval.py", "--checkpoint_file", folder / name], tmp_path
        )
        assert done.returncode == 2 and "files with pickles are never loaded" in done.stderr
        (folder / name).write_bytes(content)
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_tells_of_an_earlier_stop_is_removed(tmp_path, load_tool):
    """Else a script would start a run again that is done."""
    remove = load_tool("train", folder="gpt").remove_stopped_file
    stopped = tmp_path / "stopped"
    remove(stopped)
    for content in ("40\n", ""):
        stopped.write_text(content)
        remove(stopped)
        assert not stopped.exists()
    for content in ("my notes", "1" * 100):
        stopped.write_text(content)
        with pytest.raises(UserError, match="stopped is a file of something else: name one that"):
            remove(stopped)
        assert stopped.read_text() == content
    with pytest.raises(UserError, match="give the name of a file in a folder that exists"):
        remove(tmp_path / "absent" / "stopped")

"""Checkpoints that are damaged, missing, too many or too large for the disk."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, read_metrics, tiny_run, write_run
from safetensors.torch import load_file

from gpt.checkpoint import checkpoint, folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import read_content, write_content
from gpt.checkpoint.weights import consolidate
from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.training.trainer import Trainer

TRAIN = ROOT / "gpt" / "train.py"
FILES = [
    "checkpoint.json",
    "config.yaml",
    "mp_rank_00_model_states.pt",
    "tokenizer.model",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sample, run_command):
    """A run of six steps with a checkpoint at each, of which the last three are kept."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_run(folder, gpt={"data_root": str(sample), "log_ckpt_every": 1})
    done = run_command([sys.executable, TRAIN, "--ds_config", config], folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def go_on(run, run_command, *options, steps=8):
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
    content = path.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


def test_a_checkpoint_tells_what_it_is(run):
    folder = run / "runs/tiny/checkpoints"
    assert folders.committed(folder) == ["global_step4", "global_step5", "global_step6"]
    assert (folder / "latest").read_text() == "global_step6\n"
    assert sorted(os.listdir(folder / "global_step6")) == FILES
    manifest = Checkpoint.open(folder / "global_step6").verify().manifest
    assert (manifest.step, manifest.tokens, manifest.ranks) == (6, 6 * 256, 1)
    assert sorted([*manifest.files, "checkpoint.json"]) == FILES
    assert 6 < manifest.probe.loss < 8


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_is_found_named_and_walked_back_from(name, how, run):
    folder = run / "runs/tiny/checkpoints"
    damage(folder / "global_step6" / name, how)
    with pytest.raises(UserError):
        consolidate(folder, run / "out")
    notices = []
    assert folders.newest_good(folder, notices) == "global_step5"
    assert name in notices[0] and len(notices) == 1


def test_a_disk_that_cannot_be_read_is_walked_back_from(run, monkeypatch):
    folder = run / "runs/tiny/checkpoints"
    read = checkpoint.hash_file
    notices = []

    def hash_file(path):
        if "global_step6/mp_rank" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(checkpoint, "hash_file", hash_file)
    assert folders.newest_good(folder, notices) == "global_step5"
    assert notices == [
        f"CHECKPOINT NOT USED: {folder}/global_step6/mp_rank_00_model_states.pt: Input/output"
        " error: use another checkpoint; going back to an earlier one"
    ]


def test_a_resumed_run_says_loudly_what_it_did_not_use(run, run_command):
    damage(run / "runs/tiny/checkpoints/global_step6/mp_rank_00_model_states.pt", "flipped")
    done = go_on(run, run_command)
    assert done.returncode == 0, done.stderr
    assert (
        "notice: CHECKPOINT NOT USED: runs/tiny/checkpoints/global_step6/mp_rank_00_model_states.pt"
        " is not as it was" in (done.stdout)
    )
    assert "resuming runs/tiny after step 5" in done.stdout
    by_step = {}
    for event in read_metrics(run / "runs/tiny", "train"):
        by_step.setdefault(event["step"], []).append(event["loss"])
    assert by_step[6][0] == by_step[6][1]
    # written again, whole
    assert Checkpoint.open(run / "runs/tiny/checkpoints/global_step6").verify().step == 6


def test_no_whole_checkpoint_is_an_error_that_overwrites_nothing(run, run_command):
    folder = run / "runs/tiny/checkpoints"
    for tag in folders.committed(folder):
        damage(folder / tag / "config.yaml", "truncated")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = go_on(run, run_command)
    assert done.returncode == 2
    assert "error: no checkpoint in runs/tiny/checkpoints is whole" in done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", [None, "", "..", "global_step99", "x" * 400])
def test_a_lost_pointer_loses_nothing(content, run):
    folder = run / "runs/tiny/checkpoints"
    (folder / "latest").unlink() if content is None else (folder / "latest").write_text(content)
    notices = []
    assert folders.newest_good(folder, notices) == "global_step6"
    assert "does not name a checkpoint that is there: taking global_step6" in notices[0]


def test_a_checkpoint_by_name(run, run_command):
    done = go_on(run, run_command, "--resume", "global_step4")
    assert done.returncode == 0 and "resuming runs/tiny after step 4" in done.stdout, done.stderr
    done = go_on(run, run_command, "--resume", "global_step7000")
    assert (
        done.returncode == 2
        and "has no checkpoint 'global_step7000': it has global_step" in done.stderr
    )


def test_a_change_must_be_allowed(run, run_command):
    refused = go_on(run, run_command, "--max_lr", "0.002")
    assert (
        refused.returncode == 2
        and "(scheduler.params.max_lr was 0.003, is 0.002)" in refused.stderr
    )
    wrong = go_on(run, run_command, "--max_lr", "0.002", "--allow_change", "params.max_lr")
    assert (
        wrong.returncode == 2
        and (
            "--allow_change params.max_lr: no setting that makes a curve is called so (did you mean"
            " 'scheduler.params.max_lr'?); what differs from the checkpoint:"
            " scheduler.params.max_lr"
        )
        in wrong.stderr
    )
    allow = ("--max_lr", "0.002", "--allow_change", "scheduler.params.max_lr")
    allowed = go_on(run, run_command, *allow)
    again = go_on(run, run_command, *allow, steps=9)
    assert allowed.returncode == again.returncode == 0, allowed.stderr + again.stderr
    assert (
        "notice: changed on resuming: scheduler.params.max_lr was 0.003, is 0.002" in allowed.stdout
    )
    assert "changed on resuming" not in again.stdout


@pytest.mark.parametrize(
    "key, options",
    [
        ("model.n_layers", {"gpt": {"n_layers": 3}}),
        ("optimizer.type", {"optimizer": {"type": "SGD"}}),
        ("scheduler.type", {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}}),
    ],
)
def test_what_cannot_change_is_told_before_a_device_is_taken(key, options, run, sample):
    gpt = {"data_root": str(sample), "run_dir": str(run / "runs/tiny"), **options.pop("gpt", {})}
    config = resolve(tiny_run(gpt=gpt, **options), "tiny")
    with pytest.raises(
        UserError,
        match=(
            f"--allow_change {key}: {key} was .*, is .*, and that cannot change within a run: name"
        ),
    ):
        Trainer(config, Dataset(sample), 0, 1, allowed=[key])


@pytest.mark.parametrize(
    "stage", [1, pytest.param(0, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_an_allowed_change_is_in_force(stage, sample, tmp_path, run_command):
    """SGD without momentum: weights change by lr * (clipped gradient + weight_decay * weights), and
    the first of the two is as long as the clipping says."""

    def train(steps, changed=(), **options):
        config = write_run(
            tmp_path,
            zero_optimization={"stage": stage},
            gpt={"data_root": str(sample), "log_ckpt_every": 1},
            **options,
        )
        allowed = [word for key in changed for word in ("--allow_change", key)]
        done = run_command(
            [sys.executable, TRAIN, "--ds_config", config, "--max_train_steps", steps, *allowed],
            tmp_path,
        )
        assert done.returncode == 0, done.stderr

    train(2, optimizer={"type": "SGD", "params": {"momentum": 0.9}})
    schedule = {
        "type": "LanguiniCosineLR",
        "params": {"max_lr": 2e-3, "warmup_steps": 2, "decay_steps": 6},
    }
    changed = [
        "gradient_clipping",
        "scheduler.params.max_lr",
        "optimizer.params.momentum",
        "optimizer.params.weight_decay",
    ]
    train(
        3,
        changed,
        optimizer={"type": "SGD", "params": {"weight_decay": 0.5}},
        gradient_clipping=0.25,
        scheduler=schedule,
    )
    for step in (2, 3):
        consolidate(tmp_path / "runs/tiny/checkpoints", tmp_path / str(step), f"global_step{step}")
    before, after = (load_file(tmp_path / str(step) / "model.safetensors") for step in (2, 3))
    lr = 6e-6 + (2e-3 - 6e-6) / 2  # half of six steps are done
    assert read_metrics(tmp_path / "runs/tiny", "train")[2]["lr"] == pytest.approx(lr, rel=1e-12)
    gradient = [(before[name] - after[name]).double() / lr - 0.5 * before[name] for name in before]
    assert sum(part.square().sum().item() for part in gradient) ** 0.5 == pytest.approx(
        0.25, rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_loss_scale_goes_on_by_the_rules_of_the_present_configuration(
    stage, sample, tmp_path, run_command
):
    gpt = {"data_root": str(sample), "seq_len": 16}
    # 2^3 until then, and twice as much after every further step
    for steps, window in ((2, 2000), (4, 1)):
        fp16 = {"enabled": True, "initial_scale_power": 3, "loss_scale_window": window}
        config = write_run(tmp_path, zero_optimization={"stage": stage}, fp16=fp16, gpt=gpt)
        command = [
            sys.executable,
            ROOT / "tests/support/planted.py",
            "fp16",
            "--ds_config",
            config,
            "--max_train_steps",
            steps,
        ]
        done = run_command(command, tmp_path)
        assert done.returncode == 0, done.stderr
    assert [event["loss_scale"] for event in read_metrics(tmp_path / "runs/tiny", "train")] == [
        8,
        8,
        16,
        32,
    ]


def test_weights_that_are_not_those_that_were_saved_are_noticed(run, run_command):
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    manifest["probe"]["loss"] *= 1.001
    write_content(folder, manifest)
    done = go_on(run, run_command)
    assert done.returncode == 1
    assert "its weights give the loss" in done.stderr and "nothing was trained" in done.stderr


def test_what_a_crash_leaves_is_put_right(run):
    folder = run / "runs/tiny/checkpoints"
    # killed between setting aside and renaming
    os.rename(folder / "global_step6", folder / ".global_step6.old")
    (folder / ".global_step7.staging").mkdir()
    folders.clean_up(folder)
    assert sorted(os.listdir(folder)) == ["global_step4", "global_step5", "global_step6", "latest"]


def test_facts_that_are_missing_are_named(run, run_command):
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    del manifest["left_out"]
    write_content(folder, manifest)
    done = go_on(run, run_command)
    assert (
        done.returncode == 2
        and "checkpoint.json does not tell left_out: another version" in done.stderr
    )


def test_checkpoints_that_are_gone_are_no_fresh_start(run, run_command):
    folder = run / "runs/tiny/checkpoints"
    for tag in folders.committed(folder):
        shutil.rmtree(folder / tag)
    done = go_on(run, run_command)
    assert (
        done.returncode == 2
        and "runs/tiny/checkpoints/latest names a checkpoint, but none is there" in done.stderr
    )


@pytest.mark.parametrize(
    "name, rank",
    [
        ("mp_rank_00_model_states.pt", 0),
        ("zero_pp_rank_3_mp_rank_00_model_states.pt", 3),
        ("config.yaml", 0),
        ("bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt", 12),
    ],
)
def test_whose_part_a_file_is(name, rank):
    assert folders.rank_of(Path(name)) == rank


def test_retention(tmp_path):
    for step in range(1, 11):
        (tmp_path / f"global_step{step}").mkdir()
    (tmp_path / "latest").write_text("global_step9")
    folders.retain(tmp_path, 2, 4)
    assert folders.committed(tmp_path) == [f"global_step{step}" for step in (4, 8, 9, 10)]
    folders.retain(tmp_path, 0, 0)
    assert len(folders.committed(tmp_path)) == 4


def test_the_tool_names_what_is_damaged(run, run_command):
    tool = [sys.executable, ROOT / "tools/verify_checkpoint.py"]
    done = run_command([*tool, "runs/tiny/checkpoints"], run)
    assert done.returncode == 0 and done.stdout.count("whole, 4 files") == 3
    damage(run / "runs/tiny/checkpoints/global_step5/tokenizer.model", "truncated")
    done = run_command([*tool, "runs/tiny/checkpoints"], run)
    assert done.returncode == 1 and done.stdout.count("whole, 4 files") == 2
    assert (
        "global_step5: NOT WHOLE: runs/tiny/checkpoints/global_step5/tokenizer.model is not as"
        " it was" in done.stdout
    )
    assert run_command([*tool, "runs/tiny"], run).returncode == 2


def test_a_save_that_fails_on_one_rank_fails_on_all_and_costs_no_more(
    sample, tmp_path, run_command
):
    gpt = {"data_root": str(sample), "max_train_steps": 5, "log_ckpt_every": 1, "keep_last": 0}
    command = [
        "torchrun",
        "--master_port",
        29722,
        "--nproc_per_node",
        2,
        ROOT / "tests/support/planted.py",
        "unhashed=1@2,uncommitted=2",
        "--ds_config",
        write_run(tmp_path, gpt=gpt),
    ]
    done = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    for step in (2, 3):
        assert (
            f"WARNING: the checkpoint of step {step} could not be written (ValueError: invalid"
            " literal for int() with base 10: 'a planted fault'); training goes on, the latest"
            " checkpoint is that of step 1" in done.stdout
        )
    assert [
        event["step"] for event in read_metrics(tmp_path / "runs/tiny", "checkpoint_failed")
    ] == [2, 3]
    folder = tmp_path / "runs/tiny/checkpoints"
    assert sorted(os.listdir(folder)) == ["global_step1", "global_step4", "global_step5", "latest"]
    for tag in folders.committed(folder):
        files = Checkpoint.open(folder / tag).verify().manifest.files
        assert {folders.rank_of(Path(name)) for name in files} == {0, 1}


def test_an_old_checkpoint_that_cannot_be_removed_costs_no_new_one(sample, tmp_path, run_command):
    gpt = {"data_root": str(sample), "max_train_steps": 3, "log_ckpt_every": 1, "keep_last": 1}
    command = [
        sys.executable,
        ROOT / "tests/support/planted.py",
        "unremoved=global_step1",
        "--ds_config",
        write_run(tmp_path, gpt=gpt),
    ]
    done = run_command(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "WARNING: an old checkpoint in runs/tiny/checkpoints could not be removed: " in done.stdout
    )
    assert [event["step"] for event in read_metrics(tmp_path / "runs/tiny", "checkpoint")] == [
        1,
        2,
        3,
    ]
    assert sorted(os.listdir(tmp_path / "runs/tiny/checkpoints")) == [
        "global_step1",
        "global_step3",
        "latest",
    ]
    assert (tmp_path / "runs/tiny/checkpoints/latest").read_text() == "global_step3\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_does_not_stop_the_training(sample, tmp_path, run_command):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = run_command(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], tmp_path)
    if mounted.returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        options = {
            "data_root": str(sample),
            "log_ckpt_every": 2,
            "keep_last": 5,
            "run_dir": str(disk / "run"),
        }
        config = write_run(tmp_path, gpt=options)
        done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path)
        assert "WARNING: the checkpoint of step 4 could not be written" in done.stdout
        assert "step 6/6" in done.stdout
        assert done.returncode == 1 and "the last checkpoint could not be written" in done.stderr
        assert folders.newest_good(disk / "run/checkpoints", []) == "global_step2"
        assert sorted(os.listdir(disk / "run/checkpoints")) == ["global_step2", "latest"]
        make_room = run_command(["mount", "-o", "remount,size=30m", disk], tmp_path)
        assert make_room.returncode == 0
        done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path)
        assert done.returncode == 0 and "after step 2" in done.stdout
    finally:
        run_command(["umount", disk], tmp_path)


CONSOLIDATE = """
import sys
from gpt.checkpoint.weights import consolidate, expected_shapes
from gpt.config.shape import ModelConfig
expected_shapes(ModelConfig(1, 2, 2, 1, 2, 2, 2))  # what torch imports for it is not at issue
print("ready", flush=True)
sys.stdin.readline()
consolidate(*sys.argv[1:])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("stage", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_consolidation_needs_little_memory(stage, sample, tmp_path, run_command):
    gpt = {
        "data_root": str(sample),
        "n_layers": 24,
        "h_dim": 256,
        "mlp_dim": 1024,
        "n_heads": 4,
        "head_dim": 64,
        "max_train_steps": 1,
    }
    config = write_run(tmp_path, zero_optimization={"stage": stage}, gpt=gpt)
    command = [
        "torchrun",
        "--master_port",
        29721,
        "--nproc_per_node",
        2,
        TRAIN,
        "--ds_config",
        config,
    ]
    done = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLIDATE, tmp_path / "runs/tiny/checkpoints", tmp_path / "out"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def anonymous():  # pages of mapped files can be dropped at any time, and do not count
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0  # it has ended

    process.stdout.readline()
    before = peak = anonymous()
    process.stdin.write("go\n")
    process.stdin.flush()
    while process.poll() is None:
        peak = max(peak, anonymous())
        time.sleep(0.002)
    assert process.returncode == 0
    weights = (tmp_path / "out/model.safetensors").stat().st_size
    # the largest tensor takes 2 MB, the probe's pass a few
    assert weights > 75e6 and peak - before < 30e6


def test_consolidated_weights_are_verified_too(run, run_command):
    consolidate(run / "runs/tiny/checkpoints", run / "out")
    tool = [sys.executable, ROOT / "tools/verify_checkpoint.py", "out"]
    assert run_command(tool, run).stdout.startswith("out: whole, 3 files, ")
    evaluate = [sys.executable, ROOT / "gpt/eval.py", "--checkpoint_file", "out/model.safetensors"]
    damage(run / "out/model.safetensors", "flipped")
    done = run_command(tool, run)
    assert done.returncode == 1 and "out/model.safetensors is not as it was written" in done.stdout
    done = run_command(evaluate, run)
    assert done.returncode == 2 and "out/model.safetensors is not as it was written" in done.stderr


def test_consolidated_weights_must_give_the_probes_loss(run):
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    manifest["probe"]["loss"] *= 1.001
    write_content(folder, manifest)
    with pytest.raises(
        UserError, match="the consolidated weights give the loss .* where training had"
    ):
        consolidate(folder, run / "out")
    assert not (run / "out").exists()


def test_a_loss_in_16_bits_may_be_doubtful(run, run_command):
    """A GPU's own kernels and rounded weights may take it further than they usually do."""
    folder = run / "runs/tiny/checkpoints/global_step6"
    manifest = read_content(folder)
    true = manifest["probe"]["loss"]
    for factor, said in (
        (1.001, None),
        (1.008, "compare gpt/eval.py's loss"),
        (1.02, "use another checkpoint"),
    ):
        manifest |= {"precision": "fp16", "probe": {**manifest["probe"], "loss": true * factor}}
        write_content(folder, manifest)
        command = [sys.executable, ROOT / "tools/zero_to_fp32.py", folder, run / f"out-{factor}"]
        done = run_command(command, run)
        assert (
            (done.returncode == 0)
            == (factor < 1.01)
            == (run / f"out-{factor}/model.safetensors").exists()
        )
        assert done.stderr == "" if said is None else said in done.stderr

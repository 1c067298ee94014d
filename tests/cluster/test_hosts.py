"""Several hosts, made of Linux namespaces: one curve, checkpoints that go on elsewhere, and the
ends of hosts that are lost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, read_metrics, write_run
from hosts import Hosts, missing
from without_torch import needs_torch

from gpt.checkpoint import folders

TRAIN = ROOT / "gpt" / "train.py"
PORT = 29830
ENV = {
    "PYTHONPATH": str(ROOT),
    "PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=2 -o ServerAliveCountMax=3",
}

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    hosts = Hosts(2, tmp_path_factory.mktemp("two"))
    yield hosts
    hosts.close()


@pytest.fixture
def folder(two, tmp_path):
    """Where a run is started: with the hostfile, and the launcher's environment."""
    return prepare(two, tmp_path)


def prepare(hosts, folder):
    (folder / "hostfile").write_text(hosts.hostfile.read_text())
    (folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    return folder


def launch(config, *options, port=PORT):
    launcher = ["deepspeed", "--hostfile", "hostfile", "--master_port", port]
    logs = ["--enable_each_rank_log", "logs"]
    return [*launcher, *logs, TRAIN, "--ds_config", config, *options]


def printed(folder):
    """All that the ranks printed; each has a file of its own, for what a lost host prints reaches
    no launcher."""
    return "\n".join(path.read_text() for path in sorted((folder / "logs").glob("*.log")))


def losses(run_dir):
    return [event["loss"] for event in read_metrics(run_dir, "train")]


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} took more than {seconds} s")
        time.sleep(0.2)


def start_training(hosts, folder, sample, step_timeout):
    """`deepspeed` on the first host, without end; returns it and the run's folder once it
    trains."""
    gpt = {
        "data_root": str(sample),
        "max_train_steps": 10**6,
        "log_ckpt_every": 3,
        "log_terminal_every": 0,
        "last_n": 32,
        "max_eval_steps": -1,
        "eval_batch_size": 64,
        "step_timeout": step_timeout,
    }
    config = write_run(folder, gpt=gpt)
    with open(folder / "out", "w") as out:
        process = hosts.start(hosts.names[0], launch(config), folder, out, out, **ENV)
    trains(folder)
    return process


def trains(folder):
    run_dir = folder / "runs/tiny"
    wait_for(
        lambda: (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > 6,
        150,
        "the first steps",
    )


def last_saved(run_dir):
    """The step of the newest checkpoint."""
    return int(folders.newest_good(run_dir / "checkpoints", []).removeprefix("global_step"))


def lose(hosts, folder, loss, who):
    """Cut a host off, or kill its rank, and wait until no rank is left anywhere."""
    of_run = f"local_rank=0 --ds_config {folder / 'tiny.json'}"
    if loss == "cut":
        hosts.cut(who)
    else:
        hosts.run(who, ["kill", "-9", hosts.processes(who, f"train.py --{of_run}")[-1]])
    began = time.monotonic()
    wait_for(lambda: not any(hosts.processes(name, of_run) for name in hosts.names), 120, "ending")
    print(f"{loss} {who}: no rank left after {time.monotonic() - began:.1f} s")


def check_the_rest(hosts, folder, name):
    """One host alone goes on after the last checkpoint, with the curve of a run that never lost
    one; returns the step."""
    run_dir = folder / "runs/tiny"
    config = folder / "tiny.json"
    last = last_saved(run_dir) + 3
    steps = ["--max_train_steps", last, "--eval_every", last]
    command = ["python", TRAIN, "--ds_config", config, *steps]
    done = hosts.run(name, command, cwd=folder, OMP_NUM_THREADS="1", **ENV)
    whole = hosts.run(
        name,
        [*command, "--eval_every", 0, "--run_dir", "whole"],
        cwd=folder,
        OMP_NUM_THREADS="1",
        **ENV,
    )
    assert done.returncode == whole.returncode == 0, done.stderr + whole.stderr
    assert f"resuming runs/tiny after step {last - 3}" in done.stdout
    # a step that was taken again stands there twice, and the later one counts
    loss_of = {event["step"]: event["loss"] for event in read_metrics(run_dir, "train")}
    curve = [loss_of[step] for step in range(1, last + 1)]
    assert curve == pytest.approx(losses(folder / "whole"), abs=1e-5)


@needs_torch
def test_a_host_that_is_cut_off_is_named_and_the_run_goes_on_without_it(two, folder, sample):
    process = start_training(two, folder, sample, 8)
    try:
        lose(two, folder, "cut", "node2")
        assert process.wait(100) != 0
    finally:
        two.mend("node2")
        process.kill()
    assert "error: no progress for 8 s (gpt.step_timeout) while" in printed(folder)
    assert "late: rank 1 on node2, which shows no sign of life" in printed(folder)
    assert (
        "late: rank 0 on node1, whose process does not answer, or its host is out of reach"
        in printed(folder)
    )
    check_the_rest(two, folder, "node1")
    exported = two.run(
        "node2",
        ["python", ROOT / "tools/zero_to_fp32.py", "runs/tiny/checkpoints", "export"],
        cwd=folder,
        **ENV,
    )
    assert exported.returncode == 0, exported.stderr
    command = [
        "python",
        ROOT / "gpt/eval.py",
        "--checkpoint_file",
        "export/model.safetensors",
        "--json",
        "eval.json",
    ]
    scored = two.run("node2", command, cwd=folder, OMP_NUM_THREADS="1", **ENV)
    assert scored.returncode == 0, scored.stderr
    last = read_metrics(folder / "runs/tiny", "eval")[-1]
    assert json.loads((folder / "eval.json").read_text())["normalised_ppl"] == pytest.approx(
        last["normalised_ppl"], rel=1e-5
    )


@needs_torch
@pytest.mark.parametrize("fault", ["vanish=1@12", pytest.param(None, marks=pytest.mark.slow)])
def test_under_slurm_a_killed_rank_ends_all_and_is_named(fault, two, folder, sample):
    """What srun sets, and no launcher that would notice a death. fault: see planted.py; without one
    gloo raises."""
    config = write_run(
        folder,
        gpt={
            "data_root": str(sample),
            "max_train_steps": 10**6,
            "log_terminal_every": 0,
            "step_timeout": 12,
        },
    )
    processes = []
    for rank, name in enumerate(two.names):
        slurm = {
            "SLURM_JOB_ID": "9840",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_LOCALID": "0",
            "SLURM_STEP_NODELIST": "node[1-2]",
            "SLURM_NODEID": str(rank),
        }
        with open(folder / f"out{rank}", "w") as out:
            program = [ROOT / "tests/support/planted.py", fault] if fault else [TRAIN]
            command = ["python", *program, "--ds_config", config]
            processes.append(
                two.start(name, command, folder, out, out, OMP_NUM_THREADS="1", **slurm, **ENV)
            )
    try:
        trains(folder)
        if fault is None:
            two.run("node2", ["kill", "-9", two.processes("node2", "train.py")[-1]])
        assert processes[1].wait(60) != 0
        assert processes[0].wait(60) == 1
    finally:
        for process in processes:
            process.kill()
    error = (folder / "out0").read_text()
    assert (
        "[rank 0] error: rank 1 on node2 is gone without a word, while rank 0 on node1 was "
        in error
    )
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize("loss, who", [("kill", "node1"), ("kill", "node2"), ("cut", "node1")])
def test_every_other_loss(loss, who, two, folder, sample):
    process = start_training(two, folder, sample, 8)
    try:
        lose(two, folder, loss, who)
        assert process.wait(100) != 0
    finally:
        two.mend(who)
        process.kill()
    known = " is gone without a word, while rank " if loss == "kill" else ", "
    assert f" on {who}{known}" in printed(folder)
    check_the_rest(two, folder, "node2" if who == "node1" else "node1")


@pytest.mark.slow
def test_four_hosts(tmp_path, sample):
    """One curve; a host that is lost is named by all the others; the run goes on with the three
    that are left."""
    hosts = Hosts(4, tmp_path)
    try:
        prepare(hosts, tmp_path)
        process = start_training(hosts, tmp_path, sample, 15)
        lose(hosts, tmp_path, "cut", "node3")
        assert process.wait(100) != 0
        assert printed(tmp_path).count("late: rank 2 on node3, which shows no sign of life") == 3
        hosts.mend("node3")
        (tmp_path / "hostfile").write_text("node1 slots=1\nnode4 slots=1\n")
        steps = last_saved(tmp_path / "runs/tiny") + 2
        done = hosts.run(
            "node1", launch(tmp_path / "tiny.json", "--max_train_steps", steps), cwd=tmp_path, **ENV
        )
        assert done.returncode == 0, done.stderr + printed(tmp_path)
        check_the_rest(hosts, tmp_path, "node2")
    finally:
        hosts.close()


def by_torchrun(rank):
    place = ["--master_addr", "10.77.0.1", "--master_port", PORT + 1]
    return ["torchrun", "--nnodes", 2, "--node_rank", rank, *place, TRAIN]


def by_hand(rank):
    place = ["--master_addr", "10.77.0.1", "--master_port", PORT + 2]
    launcher = ["deepspeed", "--hostfile", "hostfile", "--no_ssh"]
    return [*launcher, "--node_rank", rank, *place, TRAIN]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [by_torchrun, by_hand])
def test_every_host_starts_its_own(recipe, two, folder, sample):
    config = write_run(folder, gpt={"data_root": str(sample)})
    processes = [
        two.start(name, [*recipe(rank), "--ds_config", config], folder, OMP_NUM_THREADS="1", **ENV)
        for rank, name in enumerate(two.names)
    ]
    try:
        assert [process.wait(150) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    alone = two.run(
        "node1",
        ["python", TRAIN, "--ds_config", config, "--run_dir", "one"],
        cwd=folder,
        OMP_NUM_THREADS="1",
        **ENV,
    )
    assert alone.returncode == 0, alone.stderr
    assert losses(folder / "runs/tiny") == pytest.approx(losses(folder / "one"), abs=1e-5)


@pytest.mark.slow
def test_hosts_with_folders_of_their_own_are_refused(two, folder, sample):
    (folder / "runs").mkdir()
    two.run("node2", ["mount", "-t", "tmpfs", "tmpfs", folder / "runs"])
    try:
        done = two.run(
            "node1", launch(write_run(folder, gpt={"data_root": str(sample)})), cwd=folder, **ENV
        )
    finally:
        two.run("node2", ["umount", folder / "runs"])
    assert done.returncode == 2
    assert (
        "error: runs/tiny on node2 is not the folder that rank 0 on node1 has: all ranks write"
        in printed(folder)
    )


def test_hosts_leave_nothing_behind(tmp_path):
    """Even when the process that made them is killed."""
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from hosts"
        " import Hosts; Hosts(2, Path(sys.argv[2])); print('up', flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, ROOT / "tests" / "support", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate()
    wait_for(lambda: not processes_of(tmp_path), 20, "the end of all processes")
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def processes_of(folder):
    """Processes whose command line names a folder."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words):
            processes.append(process)
    return processes


@pytest.mark.slow
@pytest.mark.parametrize("name, reason", [("TERM", "SIGTERM"), ("KILL", "the launcher is gone")])
def test_a_launcher_that_is_told_to_end_or_dies_has_all_hosts_save(
    name, reason, two, folder, sample
):
    process = start_training(two, folder, sample, 60)
    try:
        two.run(
            "node1", ["kill", f"-{name}", two.processes("node1", f"bin/deepspeed .*{folder}")[0]]
        )
        process.wait(90)
        of_run = f"local_rank=0 --ds_config {folder / 'tiny.json'}"
        wait_for(lambda: not any(two.processes(name, of_run) for name in two.names), 60, "ending")
    finally:
        process.kill()
    run_dir = folder / "runs/tiny"
    saved = last_saved(run_dir)
    assert saved == len(losses(run_dir))
    message = f"{reason} and saved after step {saved} of 1000000"
    assert message in printed(folder).replace(",", "")

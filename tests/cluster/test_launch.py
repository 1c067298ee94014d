"""What launchers announce, and runs that would be smaller than they were asked to be."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, write_run

from gpt.cluster import launch
from gpt.cluster.launch import Launch, first_node, launched
from gpt.errors import UserError

TRAIN = ROOT / "gpt" / "train.py"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PMI_", "MPI_")
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
MPICH = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}
TORCH = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.fixture
def environment(monkeypatch):
    """environment(**variables): of a process that nobody launched, and these variables."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            del os.environ[name]
    yield os.environ.update
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    "variables, rank, size, local_rank, address, port",
    [
        ({**TORCH, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"}, 1, 4, 0, "10.0.0.7", "1234"),
        (SLURM, 5, 8, 1, "gpu07", str(20_000 + 123456 % 9000)),
        ({**SLURM, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "77"}, 5, 8, 1, "10.0.0.7", "77"),
        ({**SLURM, **TORCH, "MASTER_ADDR": "a"}, 1, 4, 0, "a", "29500"),  # torchrun under srun
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 1, 2, 1, "127.0.0.1", "29500"),
        (
            {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "node1"},
            1,
            2,
            1,
            "node1",
            "29500",
        ),
        ({**MPICH, "MPI_LOCALNRANKS": "2"}, 0, 2, 0, "127.0.0.1", "29500"),
        # srun --mpi=pmi2
        (
            {"PMI_RANK": "3", "PMI_SIZE": "8", **SLURM},
            5,
            8,
            1,
            "gpu07",
            str(20_000 + 123456 % 9000),
        ),
    ],
)
def test_every_launcher_under_the_names_of_torch(
    variables, rank, size, local_rank, address, port, environment
):
    environment(variables)
    assert launched() == Launch(rank, size)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    values = [os.environ[name] for name in names]
    assert values == [str(rank), str(size), str(local_rank), address, port]


@pytest.mark.parametrize(
    "variables", [{}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}]
)
def test_without_a_launcher_it_is_one_rank(variables, environment):
    environment(variables)  # the second is that of a batch script, outside srun
    assert launched().rank == 0
    assert launched().size == 1
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(
    "variables, message",
    [
        (
            {"RANK": "0"},
            (
                "the environment variable WORLD_SIZE is missing: a launcher sets RANK, WORLD_SIZE,"
                " LOCAL_RANK to numbers"
            ),
        ),
        ({**TORCH, "WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two'"),
        ({**TORCH, "RANK": "4"}, "RANK is 4 and WORLD_SIZE is 4: ranks count from 0 to 3"),
        (
            OPEN_MPI,
            (
                "MASTER_ADDR is not set, and this launcher does not tell where rank 0 is: export"
                " it, for example mpirun -x"
            ),
        ),
        (
            {**TORCH, "MASTER_ADDR": "a", "MASTER_PORT": "x"},
            "MASTER_PORT is 'x': give a port's number, from 1 to 65535",
        ),
        ({**TORCH, "MASTER_ADDR": "a", "MASTER_PORT": "99999999"}, "MASTER_PORT is '99999999'"),
        ({**TORCH, "MASTER_ADDR": "a", "MASTER_PORT": "0"}, "MASTER_PORT is '0': give a port's"),
        ({**TORCH, "RANK": "9" * 5000}, "the environment variable RANK is '9999"),
        ({**TORCH, "RANK": "-1"}, "the environment variable RANK is '-1'"),
        ({**TORCH, "LOCAL_RANK": "\u0663"}, "the environment variable LOCAL_RANK is '\u0663'"),
        ({**TORCH, "RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is 0: there is one rank or more"),
        ({**SLURM, "SLURM_STEP_NODELIST": "["}, "SLURM_STEP_NODELIST is '[', which names no host"),
        ({**SLURM, "SLURM_STEP_NODELIST": "a b"}, "SLURM_STEP_NODELIST is 'a b', which names no"),
    ],
)
def test_incomplete_announcements(variables, message, environment):
    environment(variables)
    with pytest.raises(UserError) as raised:
        launched()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu[07-09,12],login1", "gpu07"),
        ("a", "a"),
        ("a,b[1-2]", "a"),
        ("rack[1-2]node[03,05]-ib", "rack1node03-ib"),
    ],
)
def test_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_a_missing_hostfile_is_an_error(sample, tmp_path, run_command):
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    launcher = ["deepspeed", "--num_gpus", 2, "--hostfile", "hosts.txt", "--master_port", 29841]
    done = run_command([*launcher, TRAIN, "--ds_config", config], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert (
        f"error: --hostfile hosts.txt: there is no such file in {tmp_path}, and DeepSpeed would"
        " train on this host alone: give the hostfile's path, or leave --hostfile out"
        in done.stderr
    )
    assert not (tmp_path / "runs").exists()


class Process:
    def __init__(self, *words, cwd="/", parent=None):
        self._words = words
        self._cwd = str(cwd)
        self._parent = parent
        self.info = {"cmdline": list(words)}

    def cmdline(self):
        return list(self._words)

    def cwd(self):
        return self._cwd

    def parent(self):
        return self._parent


STARTED = (
    "-u",
    "-m",
    "deepspeed.launcher.launch",
    "--world_info=eyJhIjogWzBdLCAiYiI6IFswXX0=",
    "--node_rank=0",
    "--master_addr=10.0.0.1",
    "--master_port=29500",
)
RUNNERS = [
    (["--hostfile", "hosts", "--num_nodes", "3"], "--num_nodes 3: the hostfile has 2 host(s)"),
    (["-H", "absent"], "--hostfile absent"),
    (["--hostfile=absent"], "--hostfile absent"),
    (["--hostfile", "hosts", "--num_nodes", "1"], None),
    (["--num_gpus", "2"], None),
    (["-Hhosts"], None),
]


@pytest.mark.parametrize("options, message", RUNNERS)
def test_what_deepspeed_was_asked_for(options, message, environment, monkeypatch, tmp_path):
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    # what stands behind the script is the run's own
    runner = Process(
        "python", "/bin/deepspeed", *options, sys.argv[0], "--hostfile", "absent", cwd=tmp_path
    )
    own = Process("python", *STARTED, sys.argv[0])
    monkeypatch.setattr(launch, "launchers", lambda: [own, runner])
    environment({**TORCH, "WORLD_SIZE": "2", "MASTER_ADDR": "a"})
    if message is None:
        assert launched().promised == ("a", "b")
        return
    with pytest.raises(UserError) as raised:
        launched()
    assert message in str(raised.value)


def test_what_deepspeed_was_asked_for_is_found_beyond_ssh(environment, monkeypatch):
    """Under pdsh the `deepspeed` is above no rank, but it runs on one of the hosts."""
    runner = Process("python", "/bin/deepspeed", "--num_nodes", "3", "train.py")
    by_pdsh = [word.replace("=0", "=%n") for word in STARTED]
    pdsh = Process(
        "pdsh", "-S", "-w", "a,b", "cd /x;", "python", *by_pdsh, "train.py", parent=runner
    )
    ssh = Process("ssh", "-2", "a", " ".join(["cd /x; python", *STARTED, "train.py"]), parent=pdsh)
    of_other_run = [word.replace("29500", "29501") for word in by_pdsh]
    other = Process("pdsh", *of_other_run, parent=Process("python", "/bin/deepspeed"))
    own = Process("python3", *STARTED, "train.py")
    monkeypatch.setattr(launch, "launchers", lambda: [own])
    processes = [other, ssh, Process(), pdsh]
    monkeypatch.setattr(launch.psutil, "process_iter", lambda attributes: iter(processes))
    assert launch.over_ssh([own]) is runner
    assert launch.over_ssh([]) is None
    assert launch.over_ssh([own, Process("python", "/bin/deepspeed")]) is None
    environment({**TORCH, "WORLD_SIZE": "2", "MASTER_ADDR": "a"})
    with pytest.raises(UserError, match=r"--num_nodes 3: the hostfile has 2 host\(s\)"):
        launched()


@pytest.mark.parametrize(
    "words, kind",
    [
        (["/venv/bin/python3", "/venv/bin/deepspeed", "train.py"], launch.RUNNER),
        (["python", "/venv/bin/ds", "train.py"], launch.RUNNER),
        (
            ["python3.11", "-W", "ignore", "-u", "-m", "deepspeed.launcher.launch", "train.py"],
            launch.LAUNCH,
        ),
        (["python", "/venv/bin/torchrun", "train.py"], launch.TORCH),
        (["python", "-m", "torch.distributed.run", "train.py"], launch.TORCH),
        (["python", "tools/sweep.py", "--launcher", "deepspeed"], None),
        (["python", "train.py", "--run_dir", "/data/deepspeed"], None),
        (
            [
                "bash",
                "-c",
                "python -u -m deepspeed.launcher.launch train.py --run_dir /data/deepspeed",
            ],
            None,
        ),
        (["timeout", "1h", "deepspeed", "train.py"], None),
        (["python"], None),
        ([], None),
    ],
)
def test_a_launcher_is_known_by_the_program_that_it_is(words, kind):
    assert launch._kind(Process(*words)) == kind


DEEPSPEED = ["python", "/venv/bin/deepspeed", "train.py"]
MPIRUN = ["mpirun", "-np", "2", "python", "train.py"]


@pytest.mark.parametrize(
    "variables, above, words",
    [
        (
            TORCH,
            [["python", "-m", "deepspeed.launcher.launch", "train.py"], DEEPSPEED],
            "give deepspeed --master_port 29501, before gpt/train.py",
        ),
        (
            TORCH,
            [["python", "/venv/bin/torchrun", "train.py"], ["bash"]],
            "give torchrun --master_port 29501, before gpt/train.py",
        ),
        (OPEN_MPI, [MPIRUN, ["bash"]], "give mpirun -x MASTER_PORT=29501"),
        # deepspeed --launcher openmpi
        (OPEN_MPI, [MPIRUN, DEEPSPEED], "write MASTER_PORT=29501 into .deepspeed_env"),
        (MPICH, [["hydra_pmi_proxy"], MPIRUN], "give mpirun -genv MASTER_PORT 29501"),
        (SLURM, [["slurmstepd"]], "export MASTER_PORT=29501 before the run is started"),
        (TORCH, [["bash"]], "export MASTER_PORT=29501 before the run is started"),
    ],
)
def test_where_another_port_goes(variables, above, words, environment, monkeypatch):
    environment({**variables, "MASTER_PORT": "29500"})
    monkeypatch.setattr(launch, "_parents", lambda: [Process(*command) for command in above])
    assert launch.another_port() == words


def test_one_process_in_a_job_of_several_tasks_is_refused(environment):
    # as in a batch script, without srun
    environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"})
    with pytest.raises(UserError) as raised:
        launched().require_all_tasks()
    assert str(raised.value).startswith(
        "this Slurm job has 8 tasks (SLURM_NTASKS), and this is one process without srun: start it "
        "with srun, as in tools/slurm.sbatch"
    )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[name]
    # srun --ntasks 1 wants one
    environment({**SLURM, "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    launched().require_all_tasks()


@pytest.fixture
def slurm_script(tmp_path):
    """slurm_script(srun, *options, job=…) -> the script's CompletedProcess, with a stand-in of bash
    for srun, in the folder that the job was submitted from. job: what `scontrol show job` tells."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}:$PATH\n")

    def run(srun, *options, job=""):
        for name, words in (("srun", srun), ("scontrol", f'echo "scontrol $* {job}"')):
            (tmp_path / name).write_text(f"#!/bin/bash\n{words}\n")
            (tmp_path / name).chmod(0o755)
        env = {
            **os.environ,
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_JOB_ID": "7",
        }
        command = ["bash", ROOT / "tools/slurm.sbatch", *options]
        return subprocess.run(command, env=env, text=True, capture_output=True)

    return run


def test_what_the_slurm_script_starts(slurm_script, tmp_path):
    show = """printf '%s\\n' "$PWD" "$OMP_NUM_THREADS" "$@\""""
    done = slurm_script(show, "--ds_config", "my run.json")
    assert done.returncode == 0, done.stderr
    folder, threads, *words = done.stdout.splitlines()
    assert (folder, threads) == (str(tmp_path), "8")
    options = words[: words.index("python")]
    assert "--kill-on-bad-exit=1" in options and "--cpus-per-task=8" in options
    train = ["python", "gpt/train.py", "--ds_config", "my run.json"]
    assert words[len(options) :] == [*train, "--stopped_file", f"{tmp_path}/slurm-7.stopped"]


START = "StartTime=2030-01-02T00:00:00 EndTime=Unknown"
PREEMPTED = f"{START} PreemptTime=2030-01-02T00:01:00"


@pytest.mark.parametrize(
    "before, srun, job, requeued, code",
    [
        (None, "exit 0", "", False, 0),  # done
        (None, "exit 0", PREEMPTED, False, 0),
        (None, "exit 2", "", False, 2),  # a user's mistake
        ("5", "exit 1", "PreemptTime=None", False, 1),
        (None, "exit 143", "PreemptTime=None", False, 143),  # of two tasks one had a mistake
        (None, "exit 143", PREEMPTED, True, 0),  # before training began
        # once, before an earlier start
        ("5", "exit 2", f"{START} PreemptTime=2030-01-01T23:00:00", False, 2),
        (None, "echo 9 > slurm-7.stopped", "", True, 0),
        ("5", "echo 9 > slurm-7.stopped", "", True, 0),
        ("9", "echo 9 > slurm-7.stopped", "", False, 1),  # no step further
        ("9", "echo 9 > slurm-7.stopped", PREEMPTED, True, 0),
        ("5", "exit 0", "", False, 0),
    ],
)
def test_which_jobs_the_slurm_script_queues_again(
    before, srun, job, requeued, code, slurm_script, tmp_path
):
    if before:
        (tmp_path / "slurm-7.stopped").write_text(f"{before}\n")
    done = slurm_script(srun, job=job)
    assert ("scontrol requeue 7" in done.stdout) == requeued
    assert done.returncode == code

"""Who started this process, as one of how many: one answer from DeepSpeed's launcher, torchrun,
Slurm and MPI."""

import argparse
import base64
import json
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpt.errors import UserError

# What launchers call a process's rank, the number of ranks, and its rank on its host. Slurm's names
# are those of srun alone: a batch script has SLURM_PROCID too, and is no rank.
NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
DEFAULT_PORT = 29500
# kinds of launchers
RUNNER = "deepspeed"
LAUNCH = "deepspeed.launcher.launch"
TORCH = "torchrun"


@dataclass(frozen=True)
class Launch:
    """This process's rank among `size`, and the host each rank should be on where the launcher
    tells, else ()."""

    rank: int
    size: int
    promised: tuple = ()
    idle_tasks: int = 0  # of a Slurm job in which this process was started without srun

    def require_all_tasks(self):
        """Raise UserError where one process would train in a job that was given several tasks."""
        if self.idle_tasks > 1:
            raise UserError(
                f"this Slurm job has {self.idle_tasks} tasks (SLURM_NTASKS), and this is one"
                " process without srun: start it with srun, as in tools/slurm.sbatch, or unset"
                " SLURM_NTASKS for a single process"
            )


def launched() -> Launch:
    """What the launcher announced; one rank of one where there is none.

    Afterwards the environment has it under torch's names: RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR, MASTER_PORT. Raises UserError where it is incomplete, or where DeepSpeed's launcher
    started fewer ranks than it was asked for.
    """
    found = next(
        (
            names
            for names in NAMES
            if names[0] in os.environ
            and (names is NAMES[0] or all(name in os.environ for name in names))
        ),
        None,
    )
    if found is None:
        os.environ.update(
            RANK="0",
            WORLD_SIZE="1",
            LOCAL_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(free_port()),
        )
        tasks = os.environ.get("SLURM_NTASKS", "")
        return Launch(0, 1, idle_tasks=int(tasks) if tasks.isdecimal() else 0)
    rank, size, local_rank = (_number(name, found) for name in found)
    if rank >= size:
        raise UserError(
            f"{found[0]} is {rank} and {found[1]} is {size}: ranks count from 0 to {size - 1}"
        )
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    _find_master(found, size)
    return Launch(rank, size, _promised_by_deepspeed(size))


def _number(name, names):
    text = os.environ.get(name, "")
    if not text.isdecimal():
        said = f"is {text!r}" if text else "is missing"
        raise UserError(
            f"the environment variable {name} {said}: a launcher sets {', '.join(names)} to"
            " numbers; start the run with deepspeed, torchrun, srun or mpirun, or unset RANK for a"
            " single process"
        )
    return int(text)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _find_master(names, size):
    """Set MASTER_ADDR and MASTER_PORT, where rank 0 listens, unless they are set."""
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    job = os.environ.get("SLURM_JOB_ID", "")
    if "MASTER_ADDR" not in os.environ:
        here = {
            "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_LOCAL_SIZE",
            "PMI_RANK": "MPI_LOCALNRANKS",
        }.get(names[0], "")
        if names[0] == "SLURM_PROCID" and nodes:
            os.environ["MASTER_ADDR"] = first_node(nodes)
        elif size == 1 or os.environ.get(here) == str(size):
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        else:
            raise UserError(
                "MASTER_ADDR is not set, and this launcher does not tell where rank 0 is: export"
                " it, for example mpirun -x MASTER_ADDR=FIRST_HOST …"
            )
    # Jobs that share a host get ports of their own, below those that systems give to outgoing
    # connections.
    own = (
        20_000 + int(job) % 9_000
        if names[0] == "SLURM_PROCID" and job.isdecimal()
        else DEFAULT_PORT
    )
    os.environ.setdefault("MASTER_PORT", str(own))
    if not os.environ["MASTER_PORT"].isdecimal():
        raise UserError(f"MASTER_PORT is {os.environ['MASTER_PORT']!r}: give a port's number")


def first_node(nodes: str) -> str:
    """First host of a Slurm node list such as "gpu[07-09,12],login1": gpu07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes).group()
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _promised_by_deepspeed(size):
    """The host of each rank by DeepSpeed's launcher. Raises UserError where it took fewer hosts
    than it was asked for."""
    above = launchers()
    launch = _first(LAUNCH, above)
    runner = _first(RUNNER, above) or over_ssh(above)
    coded = (
        [word.partition("=")[2] for word in launch.cmdline() if word.startswith("--world_info=")]
        if launch
        else []
    )
    hosts = json.loads(base64.urlsafe_b64decode(coded[0])) if coded else {}
    promised = tuple(host for host, devices in hosts.items() for _ in devices)
    if runner is not None:
        _require_what_was_asked(runner, hosts)
    return promised if len(promised) == size else ()


def _require_what_was_asked(runner, hosts):
    """DeepSpeed only warns where the hostfile is absent, and trains on this host alone; of too few
    hosts it takes all."""
    words, script = runner.cmdline(), sys.argv[0]
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-H", "--hostfile")
    parser.add_argument("--num_nodes", type=int, default=0)
    asked, _ = parser.parse_known_args(words[: words.index(script)] if script in words else words)
    path = asked.hostfile and Path(runner.cwd(), asked.hostfile)
    if path and not path.is_file():
        raise UserError(
            f"--hostfile {asked.hostfile}: there is no such file in {runner.cwd()}, and DeepSpeed"
            " would train on this host alone: give the hostfile's path, or leave --hostfile out"
        )
    if asked.num_nodes > len(hosts):
        raise UserError(
            f"--num_nodes {asked.num_nodes}: the hostfile has {len(hosts)} host(s): add the others"
            " to it, or ask for fewer"
        )


def launchers() -> list:
    """Processes above this one that launch ranks, nearest first.

    `deepspeed` starts `deepspeed.launcher.launch`, which starts the ranks; `torchrun` starts them
    itself. A shell is no launcher: a run in the background outlives its shell.
    """
    found = []
    try:
        for process in psutil.Process().parents():
            if _kind(process) is None:
                break
            found.append(process)
    except psutil.Error:
        pass  # a process that may not be looked at
    return found


def over_ssh(above):
    """The `deepspeed` that started the nearest of the launchers `above` over ssh, where it runs on
    this host; None where it does not, or is above itself. ssh cuts the line of parents, so its pdsh
    is found by what that was told to start."""
    launch = _first(LAUNCH, above)
    if launch is None or _first(RUNNER, above):
        return None
    try:
        told = {
            word
            for word in launch.cmdline()
            if word.startswith(("--world_info=", "--master_addr=", "--master_port="))
        }
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if os.path.basename(words[0]) == "pdsh" and len(told) == 3 and told <= set(words):
                runner = process.parent()
                return runner if runner is not None and _kind(runner) == RUNNER else None
    except psutil.Error:
        pass  # a process that ended meanwhile
    return None


def _first(kind, processes):
    return next((process for process in processes if _kind(process) == kind), None)


def _kind(process):
    """RUNNER, LAUNCH, TORCH, or None for a process that is no launcher. All of them are Python
    programs."""
    interpreter, *words = process.cmdline() or [""]
    if "python" not in os.path.basename(interpreter):
        return None
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in ("-W", "-X") else 1 :]
    program = words[0] if words else ""
    name = os.path.basename(program)
    if name in ("deepspeed", "deepspeed.pt", "ds") or program == "deepspeed.launcher.runner":
        return RUNNER
    if name == "torchrun" or program.startswith("torch.distributed"):
        return TORCH
    return LAUNCH if program.startswith("deepspeed.launcher") else None

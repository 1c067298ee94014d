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
from typing import Any, NamedTuple

import psutil

from gpt.errors import UserError


class Variables(NamedTuple):
    """What a launcher calls a process's rank, the number of ranks, and its rank on its host."""

    rank: str
    size: str
    local_rank: str


OF_TORCH = Variables("RANK", "WORLD_SIZE", "LOCAL_RANK")
OF_OPEN_MPI = Variables(
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
)
OF_MPICH = Variables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
# srun's alone: a batch script has SLURM_PROCID too, and is no rank
OF_SLURM = Variables("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
RANKS_ON_HOST = {OF_OPEN_MPI: "OMPI_COMM_WORLD_LOCAL_SIZE", OF_MPICH: "MPI_LOCALNRANKS"}

DEFAULT_PORT = 29500
LAST_PORT = 65535
# a rank or a number of them, of nobody's cluster
MOST_DIGITS = 9
HOST = re.compile(r"[\w.:-]+")
# kinds of launchers
RUNNER = "deepspeed"
LAUNCH = "deepspeed.launcher.launch"
TORCH = "torchrun"
# what they raise themselves, and print, at a SIGINT (torchrun: and at a SIGTERM) of their own
OWN_EXCEPTIONS = {RUNNER: "KeyboardInterrupt", TORCH: "SignalException"}


@dataclass(frozen=True)
class Launch:
    """This process's rank among `size`.

    promised: the host that each rank should be on where the launcher tells, else (). idle_tasks:
    tasks of a Slurm job in which this process was started without srun.
    """

    rank: int
    size: int
    promised: tuple[str, ...] = ()
    idle_tasks: int = 0

    def require_all_tasks(self) -> None:
        """Raise UserError where one process would train in a job that was given several tasks."""
        if self.idle_tasks > 1:
            raise UserError(
                f"this Slurm job has {self.idle_tasks} tasks (SLURM_NTASKS), and this is one"
                " process without srun",
                mend="start it with srun, as in tools/slurm.sbatch, or unset SLURM_NTASKS for a"
                " single process",
            )


def launched() -> Launch:
    """What the launcher announced; one rank of one where there is none.

    Afterwards the environment has it under torch's names: RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR, MASTER_PORT. Raises UserError where it is incomplete, or where DeepSpeed's launcher
    started fewer ranks than it was asked for.
    """
    variables = _variables()
    if variables is None:
        return _single_process()
    rank = _number(variables.rank, variables)
    size = _number(variables.size, variables)
    local_rank = _number(variables.local_rank, variables)
    if rank >= size:
        mend = f"ranks count from 0 to {size - 1}" if size else "there is one rank or more"
        raise UserError(f"{variables.rank} is {rank} and {variables.size} is {size}", mend)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    _set_master(variables, size)
    return Launch(rank, size, _promised_by_deepspeed(size))


def _variables() -> Variables | None:
    """Those of the launcher that started this process; None where there is none."""
    if OF_TORCH.rank in os.environ:
        return OF_TORCH
    for variables in (OF_OPEN_MPI, OF_MPICH, OF_SLURM):
        if _announced(variables):
            return variables
    return None


def _announced(variables: Variables) -> bool:
    return all(name in os.environ for name in variables)


def _single_process() -> Launch:
    os.environ.update(
        RANK="0",
        WORLD_SIZE="1",
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    return Launch(0, 1, idle_tasks=_parse_number(os.environ.get("SLURM_NTASKS", "")) or 0)


def _number(name: str, variables: Variables) -> int:
    text = os.environ.get(name, "")
    number = _parse_number(text)
    if number is None:
        fault = f"is {text[:40]!r}" if text else "is missing"
        raise UserError(
            f"the environment variable {name} {fault}",
            mend=f"a launcher sets {', '.join(variables)} to numbers; start the run with deepspeed,"
            " torchrun, srun or mpirun, or unset RANK for a single process",
        )
    return number


def _parse_number(text: str) -> int | None:
    """A number of ranks, a rank or a port; None where the text is none."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS
    return int(text) if is_number else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _set_master(variables: Variables, size: int) -> None:
    """Set MASTER_ADDR and MASTER_PORT, where rank 0 listens, unless they are set."""
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _master_address(variables, size)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_master_port(variables))
    port = _parse_number(os.environ["MASTER_PORT"])
    if port is None or not 0 < port <= LAST_PORT:
        raise UserError(
            f"MASTER_PORT is {os.environ['MASTER_PORT'][:40]!r}",
            mend=f"give a port's number, from 1 to {LAST_PORT}",
        )


def _master_address(variables: Variables, size: int) -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if variables == OF_SLURM and nodes:
        first = first_node(nodes)
        if not HOST.fullmatch(first):
            raise UserError(
                f"SLURM_STEP_NODELIST is {nodes[:40]!r}, which names no host",
                mend="start the run with srun, which sets it, or export MASTER_ADDR",
            )
        return first
    ranks_here = os.environ.get(RANKS_ON_HOST.get(variables, ""))
    if size == 1 or ranks_here == str(size):
        return "127.0.0.1"
    raise UserError(
        "MASTER_ADDR is not set, and this launcher does not tell where rank 0 is",
        mend="export it, for example mpirun -x MASTER_ADDR=FIRST_HOST …",
    )


def _master_port(variables: Variables) -> int:
    """Slurm's jobs that share a host get ports of their own, below those that systems give to
    outgoing connections."""
    job = _parse_number(os.environ.get("SLURM_JOB_ID", ""))
    if variables == OF_SLURM and job is not None:
        return 20_000 + job % 9_000
    return DEFAULT_PORT


def another_port() -> str:
    """What to do for another MASTER_PORT under the launcher that started this process, in words."""
    port = int(os.environ["MASTER_PORT"]) + 1
    above = launchers()
    for kind, name in ((TORCH, "torchrun"), (LAUNCH, "deepspeed")):
        if _first(kind, above):
            return f"give {name} --master_port {port}, before gpt/train.py"
    if _announced(OF_OPEN_MPI):
        # mpirun's parent, which passes on no variable of its own
        if any(_kind(process) == RUNNER for process in _parents()):
            return f"write MASTER_PORT={port} into .deepspeed_env"
        return f"give mpirun -x MASTER_PORT={port}"
    if _announced(OF_MPICH):
        return f"give mpirun -genv MASTER_PORT {port}"
    return f"export MASTER_PORT={port} before the run is started"


def first_node(nodes: str) -> str:
    """First host of a Slurm node list such as "gpu[07-09,12],login1": gpu07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group() if first else nodes)


def _promised_by_deepspeed(size: int) -> tuple[str, ...]:
    """The host of each rank by DeepSpeed's launcher. Raises UserError where it took fewer hosts
    than it was asked for."""
    above = launchers()
    launch = _first(LAUNCH, above)
    runner = _first(RUNNER, above) or over_ssh(above)
    devices_of_host = _world_info(launch) if launch else {}
    if runner is not None:
        _require_requested_hosts(runner, len(devices_of_host))
    promised = []
    for host, devices in devices_of_host.items():
        promised += [host] * len(devices)
    return tuple(promised) if len(promised) == size else ()


def _world_info(launch: psutil.Process) -> dict[str, Any]:
    """{host: its devices}, as DeepSpeed's runner tells its launcher."""
    option = "--world_info="
    for word in launch.cmdline():
        if word.startswith(option):
            return json.loads(base64.urlsafe_b64decode(word.removeprefix(option)))
    return {}


def _require_requested_hosts(runner: psutil.Process, hosts: int) -> None:
    """DeepSpeed only warns where the hostfile is absent, and trains on this host alone; of too few
    hosts it takes all."""
    words = runner.cmdline()
    script = sys.argv[0]
    if script in words:
        words = words[: words.index(script)]
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-H", "--hostfile")
    parser.add_argument("--num_nodes", type=int, default=0)
    options, _ = parser.parse_known_args(words)
    if options.hostfile and not Path(runner.cwd(), options.hostfile).is_file():
        raise UserError(
            f"--hostfile {options.hostfile}: there is no such file in {runner.cwd()}, and DeepSpeed"
            " would train on this host alone",
            mend="give the hostfile's path, or leave --hostfile out",
        )
    if options.num_nodes > hosts:
        raise UserError(
            f"--num_nodes {options.num_nodes}: the hostfile has {hosts} host(s)",
            mend="add the others to it, or ask for fewer",
        )


def launchers() -> list[psutil.Process]:
    """Processes above this one that launch ranks, nearest first.

    `deepspeed` starts `deepspeed.launcher.launch`, which starts the ranks; `torchrun` starts them
    itself. A shell is no launcher: a run in the background outlives its shell.
    """
    processes = []
    for process in _parents():
        if _kind(process) is None:
            break
        processes.append(process)
    return processes


def _parents() -> list[psutil.Process]:
    """Processes above this one that may be looked at, nearest first."""
    try:
        return psutil.Process().parents()
    except psutil.Error:
        return []


def own_exception(above: list[psutil.Process]) -> tuple[str, str] | None:
    """(launcher, the exception that it prints itself when a signal ends it) of the launchers
    `above` this process; None where they print none."""
    for process in above:
        kind = _kind(process)
        if kind in OWN_EXCEPTIONS:
            return kind, OWN_EXCEPTIONS[kind]
    return None


def over_ssh(above: list[psutil.Process]) -> psutil.Process | None:
    """The `deepspeed` that started the nearest of the launchers `above` over ssh, where it runs on
    this host; None where it does not, or is above itself. ssh cuts the line of parents, so its pdsh
    is found by the options that it gives the launcher."""
    launch = _first(LAUNCH, above)
    if launch is None or _first(RUNNER, above):
        return None
    try:
        options = set()
        for word in launch.cmdline():
            if word.startswith(("--world_info=", "--master_addr=", "--master_port=")):
                options.add(word)
        if len(options) != 3:
            return None
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if os.path.basename(words[0]) == "pdsh" and options <= set(words):
                runner = process.parent()
                is_runner = runner is not None and _kind(runner) == RUNNER
                return runner if is_runner else None
    except psutil.Error:
        pass  # a process that ended meanwhile
    return None


def _first(kind: str, processes: list[psutil.Process]) -> psutil.Process | None:
    return next((process for process in processes if _kind(process) == kind), None)


def _kind(process: psutil.Process) -> str | None:
    """RUNNER, LAUNCH, TORCH, or None for a process that is no launcher. All of them are Python
    programs."""
    try:
        interpreter, *words = process.cmdline() or [""]
    except psutil.Error:  # it has ended, or may not be looked at
        return None
    if "python" not in os.path.basename(interpreter):
        return None
    while words and words[0].startswith("-"):
        takes_a_value = words[0] in ("-W", "-X")
        words = words[2:] if takes_a_value else words[1:]
    program = words[0] if words else ""
    name = os.path.basename(program)
    if name in ("deepspeed", "deepspeed.pt", "ds") or program == "deepspeed.launcher.runner":
        return RUNNER
    if name == "torchrun" or program.startswith("torch.distributed"):
        return TORCH
    return LAUNCH if program.startswith("deepspeed.launcher") else None

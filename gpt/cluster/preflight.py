"""Is a cluster fit to train? What tools/preflight.py looks at, before an hour of it is spent to
find out."""

import itertools
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt.cluster import host_checks, host_report
from gpt.cluster.host_checks import FAIL, OK, WARN, Reports, Row
from gpt.cluster.hostfile import read_environment
from gpt.cluster.roll_call import PROJECT
from gpt.errors import UserError
from gpt.parsing import parse_json

SSH = (
    "ssh",
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
    # a master in the background would keep stderr open
    *("-o", "ControlMaster=no"),
)
# of more hosts than these only neighbours in the hostfile are measured
ALL_PAIRS = 8
MEGABYTES = 16
ENVIRONMENT = ".deepspeed_env"


@dataclass(frozen=True)
class Cluster:
    """The hosts of a run, which is started from this one, and what it needs of them.

    hosts: {name: ranks on it}, in the hostfile's order. port: where rank 0 will listen. seconds:
    time limit of each of the two things that run on all hosts. ssh_port: sshd's, if not the
    usual one.
    """

    hosts: dict[str, int]
    data_root: Path
    run_dir: Path
    port: int
    seconds: float = 60.0
    ssh_port: int | None = None

    @property
    def ssh_port_options(self) -> list[str]:
        return ["-p", str(self.ssh_port)] if self.ssh_port else []

    @property
    def shared_folder(self) -> Path:
        """The run's folder, or the nearest above it that exists."""
        folder = self.run_dir
        while not folder.is_dir():
            folder = folder.parent
        return folder


@dataclass(frozen=True)
class Answer:
    """What a host said of itself, and by how many seconds its clock is ahead; or why it said
    nothing."""

    report: dict[str, Any] | None = None
    skew: float = 0.0
    reason: str = ""


@dataclass
class Findings:
    """The rows of all checks, and what they were made from.

    reports: of the hosts that answered. environment: what .deepspeed_env should hold for them.
    """

    rows: list[Row] = field(default_factory=list)
    reports: Reports = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(row.level != FAIL for row in self.rows)

    def table(self) -> str:
        """The rows for a terminal, each fix below what it mends."""
        width = max(len(row.check) for row in self.rows)
        lines = []
        for row in self.rows:
            lines.append(f"{row.level:4}  {row.check:{width}}  {row.said}")
            if row.fix:
                lines.append(f"{'':4}  {'':{width}}  -> {row.fix}")
        return "\n".join(lines)

    def as_json(self) -> str:
        content = {
            "ok": self.ok,
            "rows": [asdict(row) for row in self.rows],
            "hosts": self.reports,
            "environment": self.environment,
        }
        return json.dumps(content, indent=1)


def inspect(cluster: Cluster) -> Findings:
    """Ask all hosts, and put the rows of all checks together."""
    hosts = cluster.hosts
    run_dir = cluster.run_dir
    if shutil.which(SSH[0]) is None:
        raise UserError(
            f"there is no {SSH[0]} here, by which the hosts are asked, and by which `deepspeed`"
            " starts runs on them",
            mend="install it (Debian: openssh-client)",
        )
    exported, rows = _launcher_environment()
    if len(hosts) > 1:
        rows += _keep_alive(cluster)
    answers = _ask_all(cluster)
    reports = {}
    silent = {}
    for host, answer in answers.items():
        if answer.report is None:
            silent[host] = answer.reason
        else:
            reports[host] = answer.report
    rows += host_checks.answers(reports, silent, sys.executable)
    rows += host_checks.run_directory(reports, run_dir, cluster.shared_folder)
    if reports:
        rows += host_checks.versions(reports)
        rows += host_checks.commits(reports)
        rows += host_checks.dataset(reports, cluster.data_root)
        rows += host_checks.devices(reports, hosts)
        rows += host_checks.shared_memory(reports, hosts)
        rows += host_checks.names(reports, hosts, exported)
        rows += host_checks.clocks(reports, {host: answers[host].skew for host in reports})
        rows += host_checks.disks(reports, run_dir)
    if len(hosts) > 1 and not silent:
        rows += _network(cluster, reports)
    return Findings(rows, reports, _recommended_environment(hosts, reports))


# ── the launcher's environment ──


def _launcher_environment() -> tuple[dict[str, str], list[Row]]:
    """What DeepSpeed's launcher exports on all hosts, {name: value}, and the rows on it."""
    exported: dict[str, str] = {}
    rows = []
    for path in dict.fromkeys((Path.home() / ENVIRONMENT, Path(ENVIRONMENT).absolute())):
        try:
            variables = read_environment(path)
        except UserError as error:
            rows.append(Row(FAIL, "environment", error.what, error.mend or ""))
            continue
        if variables:
            exported |= variables
            assignments = ", ".join(f"{name}={value}" for name, value in variables.items())
            rows.append(Row(OK, "environment", f"{path}: {assignments}"))
    return exported, rows


def _keep_alive(cluster: Cluster) -> Iterator[Row]:
    """Without it ssh, and so the launcher, waits for ever for a host that is cut off, long after
    its ranks ended."""
    last_host = list(cluster.hosts)[-1]
    done = subprocess.run(
        ["ssh", "-G", *cluster.ssh_port_options, last_host], capture_output=True, text=True
    )
    settings = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        settings[name] = value
    by_settings = settings.get("serveraliveinterval", "0") != "0"
    by_pdsh = "serveraliveinterval" in os.environ.get("PDSH_SSH_ARGS_APPEND", "").lower()
    if by_settings or by_pdsh:
        yield Row(OK, "keep-alive", "ssh notices a host that is cut off")
    else:
        yield Row(
            WARN,
            "keep-alive",
            "if a host is cut off, the ranks end, but the launcher would wait for ever for its ssh",
            "write `ServerAliveInterval 15` under `Host *` in ~/.ssh/config",
        )


def _recommended_environment(hosts: dict[str, int], reports: Reports) -> dict[str, str]:
    """What .deepspeed_env should hold for these hosts; empty where they have no interface's name
    in common."""
    interfaces = {host_checks.interface_to_others(reports, host) for host in reports}
    if len(hosts) < 2 or len(interfaces) != 1:
        return {}
    interface = interfaces.pop()
    if interface is None:
        return {}
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}


# ── what each host says of itself ──


def _ask_all(cluster: Cluster) -> dict[str, Answer]:
    """{host: its answer}, of all hosts at once. Meanwhile the run's folder holds a file, which
    each of them looks for."""
    token = cluster.shared_folder / f".preflight-{secrets.token_hex(8)}"
    request = {
        "project": str(PROJECT),
        "data_root": str(cluster.data_root),
        "run_dir": str(cluster.run_dir),
        "token": str(token),
        "peers": list(cluster.hosts),
    }
    call = f"report({json.dumps(request)!r})"
    try:
        token.touch()
        with futures.ThreadPoolExecutor(len(cluster.hosts)) as pool:
            answers = pool.map(lambda host: _ask(cluster, host, call), cluster.hosts)
            return dict(zip(cluster.hosts, answers))
    finally:
        token.unlink(missing_ok=True)


def _ask(cluster: Cluster, host: str, call: str) -> Answer:
    """A host's answer: its clock in a line, then JSON."""
    process = _start(cluster, host, call)
    assert process.stdout is not None and process.stderr is not None
    deadline = time.monotonic() + cluster.seconds
    clock = ""
    skew = None
    with futures.ThreadPoolExecutor(2) as readers:
        stderr = readers.submit(process.stderr.read)
        first_line = readers.submit(process.stdout.readline)
        try:
            clock = first_line.result(cluster.seconds)
            skew = float(clock) - time.time()
            seconds_left = max(1, deadline - time.monotonic())
            report = readers.submit(process.stdout.read).result(seconds_left)
            return Answer(parse_json(report), skew)
        except futures.TimeoutError:
            return Answer(reason=f"no answer within {cluster.seconds:g} s")
        except ValueError:
            if skew is None and clock.strip():
                greeting = clock.strip()[:60]
                return Answer(reason=f"its shell prints {greeting!r} before anything else")
            return Answer(reason=_last_line(stderr.result()))
        finally:
            process.kill()  # ends what the readers wait for
            process.wait()


def _start(cluster: Cluster, host: str, call: str) -> subprocess.Popen[str]:
    """Python on a host, with the file host_report and a call of one of its functions on its
    stdin."""
    source = Path(host_report.__file__).read_text(encoding="utf-8")
    process = subprocess.Popen(
        [*SSH, *cluster.ssh_port_options, host, f"{shlex.quote(sys.executable)} -u -"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(f"{source}\n{call}\n")
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended, and says why
    process.stdin = None  # communicate would flush what is closed
    return process


def _last_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


# ── the network ──


def _network(cluster: Cluster, reports: Reports) -> Iterator[Row]:
    first_host = list(cluster.hosts)[0]
    master = first_host
    for peer, address in reports[first_host]["routes"].items():
        if peer != first_host and address:
            master = address
            break
    measured, reason = _measure(cluster, master)
    if measured is None:
        fix = (
            f"the hosts must reach {first_host} at {master}:{cluster.port}, and each other on every"
            " port"
        )
        yield Row(FAIL, "network", f"no all-reduce: {reason}", fix)
    else:
        yield from host_checks.network(measured, cluster.hosts, MEGABYTES)


def _measure(cluster: Cluster, master: str) -> tuple[dict[str, Any] | None, str]:
    """(what gpt.cluster.host_report.measure prints on the first host or None, why not)"""
    request = {
        "size": len(cluster.hosts),
        "master": master,
        "port": cluster.port,
        "seconds": cluster.seconds,
        "pairs": _pairs(len(cluster.hosts)),
        "megabytes": MEGABYTES,
    }
    processes = []
    for rank, host in enumerate(cluster.hosts):
        call = f"measure({json.dumps({**request, 'rank': rank})!r})"
        processes.append(_start(cluster, host, call))
    deadline = time.monotonic() + cluster.seconds
    printed = []
    errors = []
    for process in processes:
        try:
            stdout, stderr = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            stdout, stderr = "", f"not done within {cluster.seconds:g} s"
        printed.append(stdout)
        errors.append(stderr)
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        first_error = next(filter(str.strip, errors), "")
        return None, _last_line(first_error)
    return parse_json(_last_line(printed[0])), ""


def _pairs(size: int) -> list[tuple[int, int]]:
    """The pairs of ranks that are measured."""
    if size <= ALL_PAIRS:
        return list(itertools.combinations(range(size), 2))
    return list(itertools.pairwise(range(size)))

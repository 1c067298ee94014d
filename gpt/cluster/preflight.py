"""Is a cluster fit to train? What tools/preflight.py looks at, before an hour of it is spent to
find out."""

import itertools
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections import Counter
from concurrent import futures
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt.cluster import host_report
from gpt.cluster.hostfile import read_environment
from gpt.cluster.roll_call import PROJECT
from gpt.errors import UserError

OK = "ok"
WARN = "warn"
FAIL = "FAIL"
SKEW_SECONDS, FREE_BYTES = 5.0, 10e9
SHARED_BYTES = 1e9  # Docker gives 64 MB; what NVIDIA advises for NCCL
SSH = (
    "ssh",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=3",
    "-o",
    "ControlMaster=no",
)  # a master in the background would keep stderr open
ALL_PAIRS = 8  # of more hosts than these only neighbours in the hostfile are measured
MEGABYTES = 16
ENVIRONMENT = ".deepspeed_env"


@dataclass(frozen=True)
class Row:
    """One finding: ok, warn or FAIL."""

    level: str
    check: str
    said: str
    fix: str = ""


class Preflight:
    """All checks of `hosts`, {name: slots}, for a run with this data and this folder, started from
    this host.

    seconds: time limit of each of the two things that run on all hosts. After `run()`, `rows` holds
    the findings and `reports` what each host that answered said about itself.
    """

    def __init__(
        self,
        hosts: dict,
        data_root: str,
        run_dir: str,
        port: int,
        seconds: float = 60.0,
        ssh_port=None,
    ):
        self.hosts = hosts
        self.data_root = Path(data_root).absolute()
        self.run_dir = Path(run_dir).absolute()
        self.port = port
        self.seconds = seconds
        self._ssh = [*SSH, *(["-p", str(ssh_port)] if ssh_port else [])]
        self.rows = []
        self.reports = {}
        self.skews = {}
        self.exported = {}

    def run(self) -> list:
        self._environment()
        self._ask_hosts()
        if self.reports:
            for check in (
                self._versions,
                self._dataset,
                self._devices,
                self._memory,
                self._names,
                self._clocks,
                self._disks,
            ):
                check()
        if len(self.hosts) > 1 and set(self.reports) == set(self.hosts):
            self._network()
        return self.rows

    @property
    def ok(self) -> bool:
        return all(row.level != FAIL for row in self.rows)

    def _add(self, level, check, said, fix=""):
        self.rows.append(Row(level, check, said, fix))

    def _start(self, host, call):
        """Python on a host, with the file host_report and a call of one of its functions on its
        stdin."""
        source = Path(host_report.__file__).read_text(encoding="utf-8") + f"\n{call}\n"
        process = subprocess.Popen(
            [*self._ssh, host, f"{shlex.quote(sys.executable)} -u -"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            process.stdin.write(source)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended, and says why
        process.stdin = None
        return process

    def _on_all(self, work):
        with futures.ThreadPoolExecutor(len(self.hosts)) as pool:
            return dict(zip(self.hosts, pool.map(work, self.hosts)))

    # ── what each host says of itself ──

    def _ask_hosts(self):
        place = self.run_dir
        while not place.is_dir():
            place = place.parent
        token = place / f".preflight-{secrets.token_hex(8)}"
        asked = {
            "project": str(PROJECT),
            "data_root": str(self.data_root),
            "run_dir": str(self.run_dir),
            "token": str(token),
            "peers": list(self.hosts),
        }
        try:
            token.touch()
            answers = self._on_all(
                lambda host: self._report_of(host, f"report({json.dumps(asked)!r})")
            )
        finally:
            token.unlink(missing_ok=True)
        silent = {host: said for host, (report, said) in answers.items() if report is None}
        self.reports = {host: report for host, (report, _) in answers.items() if report is not None}
        if self.reports:
            self._add(
                OK, "ssh", f"{', '.join(self.reports)} answer{'s' * (len(self.reports) == 1)}"
            )
        for host, said in silent.items():
            self._add(
                FAIL,
                "ssh",
                f"{host}: {said}",
                f"`ssh -o BatchMode=yes {host} {sys.executable} --version` must work without a "
                "question, with the same Python at the same path",
            )
        unseen = [host for host, report in self.reports.items() if not report["sees_token"]]
        if unseen:
            self._add(
                FAIL,
                "run directory",
                f"{place} is not the same folder on {', '.join(unseen)}",
                "all hosts write their parts of a "
                "checkpoint into one folder: give a --run_dir on a disk that they share",
            )
        elif self.reports:
            self._add(OK, "run directory", f"{self.run_dir} is shared")

    def _report_of(self, host, call):
        """(what the host reported or None, why not)"""
        process = self._start(host, call)
        end = time.monotonic() + self.seconds
        with futures.ThreadPoolExecutor(2) as readers:
            errors = readers.submit(process.stderr.read)
            line = readers.submit(process.stdout.readline)
            try:
                first = line.result(self.seconds)
                self.skews[host] = float(first) - time.time()
                return (
                    json.loads(
                        readers.submit(process.stdout.read).result(max(1, end - time.monotonic()))
                    ),
                    None,
                )
            except futures.TimeoutError:
                return None, f"no answer within {self.seconds:g} s"
            except ValueError:
                if first.strip() and host not in self.skews:
                    return None, f"its shell prints {first.strip()[:60]!r} before anything else"
                return (
                    None,
                    (errors.result().strip().splitlines() or ["it ended without a word"])[-1],
                )
            finally:
                process.kill()  # ends what the readers wait for
                process.wait()

    def _versions(self):
        for what in next(iter(self.reports.values()))["versions"]:
            self._compare(
                what,
                {host: report["versions"][what] for host, report in self.reports.items()},
                (
                    "check out the same commit everywhere"
                    if "code" in what
                    else f"install the same {what} everywhere"
                ),
            )
        commits = {report["commit"] for report in self.reports.values()}
        if len(commits) == 1 and None not in commits:
            self._add(OK, "commit", commits.pop())
        elif commits != {None}:
            self._add(
                WARN,
                "commit",
                ", ".join(f"{report['commit']} on {host}" for host, report in self.reports.items()),
                "check out the same commit everywhere; what counts is the line above on the code",
            )

    def _compare(self, what, values, fix):
        """All hosts have to have the same; the most frequent value is taken for right."""
        (right, _), *others = Counter(values.values()).most_common()
        if others or right == "missing":
            self._add(
                FAIL, what, ", ".join(f"{value} on {host}" for host, value in values.items()), fix
            )
        else:
            self._add(OK, what, right)

    def _dataset(self):
        found = {
            host: (report["dataset"] or "missing")[:12] for host, report in self.reports.items()
        }
        self._compare(
            "dataset",
            found,
            f"every host must see the same dataset in {self.data_root}: copy it there, or prepare"
            " it on a shared disk",
        )

    def _devices(self):
        for host, report in self.reports.items():
            gpus, slots = report.get("gpus"), self.hosts[host]
            if gpus is None:
                self._add(
                    FAIL,
                    "devices",
                    f"{host}: torch does not start: {report['torch_error']}",
                    "install torch there anew",
                )
            elif gpus and gpus != slots:
                self._add(
                    FAIL if slots > gpus else WARN,
                    "devices",
                    f"{host} has {gpus} GPUs, and the hostfile says slots={slots}",
                    f"write {host} slots={gpus}",
                )
            elif not gpus and slots > report["cores"]:
                self._add(
                    FAIL,
                    "devices",
                    f"{host} has no GPU and {report['cores']} cores, and the hostfile says"
                    f" slots={slots}",
                    f"write at most slots={report['cores']}",
                )
            else:
                self._add(
                    OK, "devices", f"{host}: slots={slots}, {gpus or 'no'} GPU{'s' * (gpus > 1)}"
                )

    def _memory(self):
        """What the GPUs of a host do not pass to each other directly goes through /dev/shm."""
        for host, report in self.reports.items():
            size = report["shared_memory"]
            several_gpus = report.get("gpus") and self.hosts[host] > 1
            if several_gpus and size is not None and size < SHARED_BYTES:
                said = f"{host}: /dev/shm holds {size / 1e6:,.0f} MB, which is little for NCCL"
                self._add(
                    WARN,
                    "shared memory",
                    said,
                    "start its container with --ipc=host, or with --shm-size=1g or more",
                )

    def _names(self):
        for host, report in self.reports.items():
            unknown = [peer for peer, address in report["peers"].items() if address is None]
            if unknown:
                self._add(
                    FAIL,
                    "names",
                    f"{host} does not know {', '.join(unknown)}",
                    "add them to DNS or to its /etc/hosts",
                )
            address = report["name_address"]
            interface = self.interface(host)
            if len(self.hosts) > 1 and interface is None:
                self._add(
                    FAIL,
                    "interface",
                    f"{host} has no way to the other hosts",
                    "check its network and its /etc/hosts",
                )
            elif "GLOO_SOCKET_IFNAME" in self.exported and len(self.hosts) > 1:
                self._add(OK, "interface", f"{host}: {interface}")
            elif len(self.hosts) > 1 and (address is None or address.startswith("127.")):
                self._add(
                    WARN,
                    "interface",
                    f"{host}: its own name is {address}, which no other host can reach; train.py"
                    f" takes {interface} instead",
                    "for other programs, and to be sure: --write_env",
                )
            elif len(self.hosts) > 1:
                self._add(OK, "interface", f"{host}: {interface}, {address}")

    def interface(self, host):
        """The network interface through which a host reaches the others."""
        found = self.reports[host]["interfaces"]
        return next(
            (name for peer, name in found.items() if peer != host and name not in (None, "lo")),
            None,
        )

    def _clocks(self):
        for host, skew in self.skews.items():
            if host in self.reports and abs(skew) > SKEW_SECONDS:
                self._add(
                    WARN,
                    "clock",
                    f"{host} is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}",
                    "start its NTP service",
                )
        if all(abs(self.skews[host]) <= SKEW_SECONDS for host in self.reports):
            self._add(OK, "clock", f"within {SKEW_SECONDS:g} s of each other")

    def _disks(self):
        for host, report in self.reports.items():
            free = report["free_bytes"]
            level = OK if free >= FREE_BYTES else WARN
            self._add(
                level,
                "disk",
                f"{host}: {free / 1e9:,.1f} GB free for {self.run_dir}",
                "" if level == OK else "compare with the disk line of train.py --dry_run",
            )

    # ── the launcher's environment ──

    def _environment(self):
        for path in dict.fromkeys((Path.home() / ENVIRONMENT, Path(ENVIRONMENT).absolute())):
            try:
                if found := read_environment(path):
                    self.exported |= found
                    self._add(
                        OK,
                        "environment",
                        f"{path}: {', '.join(f'{name}={value}' for name, value in found.items())}",
                    )
            except UserError as error:
                self._add(FAIL, "environment", *str(error).rsplit(": ", 1))
        if len(self.hosts) > 1:
            self._keep_alive()

    def _keep_alive(self):
        """Without it ssh, and so the launcher, waits for ever for a host that is cut off, long
        after its ranks ended."""
        other = list(self.hosts)[-1]
        done = subprocess.run(
            ["ssh", "-G", *self._ssh[-2:] * (self._ssh[-2] == "-p"), other],
            capture_output=True,
            text=True,
        )
        settings = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        extra = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
        if (
            settings.get("serveraliveinterval", "0") == "0"
            and "serveraliveinterval" not in extra.lower()
        ):
            self._add(
                WARN,
                "keep-alive",
                "if a host is cut off, the ranks end, but the launcher would wait for ever for"
                " its ssh",
                "write `ServerAliveInterval 15` under `Host *` in ~/.ssh/config",
            )
        else:
            self._add(OK, "keep-alive", "ssh notices a host that is cut off")

    def wanted_environment(self) -> dict:
        """What .deepspeed_env should hold for these hosts; empty where they have no interface's
        name in common."""
        names = {self.interface(host) for host in self.reports}
        if len(self.hosts) < 2 or len(names) != 1 or None in names:
            return {}
        name = names.pop()
        return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}

    # ── the network ──

    def _network(self):
        hosts = list(self.hosts)
        ranks = range(len(hosts))
        pairs = (
            list(itertools.combinations(ranks, 2))
            if len(hosts) <= ALL_PAIRS
            else [(rank, rank + 1) for rank in ranks[:-1]]
        )
        master = next(
            (
                route
                for peer, route in self.reports[hosts[0]]["routes"].items()
                if peer != hosts[0] and route
            ),
            hosts[0],
        )
        asked = {
            "size": len(hosts),
            "master": master,
            "port": self.port,
            "seconds": self.seconds,
            "pairs": pairs,
            "megabytes": MEGABYTES,
        }
        processes = [
            self._start(host, f"measure({json.dumps({**asked, 'rank': rank})!r})")
            for rank, host in enumerate(hosts)
        ]
        end, outcomes = time.monotonic() + self.seconds, []
        for process in processes:
            try:
                outcomes.append(process.communicate(timeout=max(0.1, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                outcomes.append((None, f"not done within {self.seconds:g} s"))
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        if any(process.returncode for process in processes):
            said = next(
                (error.strip().splitlines()[-1] for _, error in outcomes if error.strip()),
                "it ended without a word",
            )
            self._add(
                FAIL,
                "network",
                f"no all-reduce: {said}",
                f"the hosts must reach {hosts[0]} at {master}:{self.port}, and each "
                "other on every port",
            )
            return
        found = json.loads(outcomes[0][0].strip().splitlines()[-1])
        for rank, peer in found["unreachable"]:
            self._add(
                FAIL,
                "network",
                f"{hosts[rank]} cannot connect to {hosts[peer]}",
                "open all ports between them",
            )
        for pair, speed in found.get("pairs", {}).items():
            one, other = map(int, pair.split("-"))
            self._add(
                OK,
                "network",
                f"{hosts[one]} - {hosts[other]}: {speed:.2f} GB/s ({found['backend']} all-reduce of"
                f" {MEGABYTES} MiB)",
            )
        if len(hosts) > 2 and "all" in found:
            self._add(OK, "network", f"all {len(hosts)} hosts: {found['all']:.2f} GB/s")


def table(rows) -> str:
    """Rows for a terminal, each fix below what it mends."""
    width = max(len(row.check) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.level:4}  {row.check:{width}}  {row.said}")
        lines += [f"{'':4}  {'':{width}}  -> {row.fix}"] if row.fix else []
    return "\n".join(lines)


def as_json(preflight) -> str:
    return json.dumps(
        {
            "ok": preflight.ok,
            "rows": [asdict(row) for row in preflight.rows],
            "hosts": preflight.reports,
            "environment": preflight.wanted_environment(),
        },
        indent=1,
    )

"""What the answers of hosts say of a cluster: one function a check, which yields its rows.

reports: {host: what gpt.cluster.host_report.report says of it}, of the hosts that answered. hosts:
{host: ranks on it}, as in the hostfile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.wording import plural

Reports = dict[str, dict[str, Any]]

OK = "ok"
WARN = "warn"
FAIL = "FAIL"

SKEW_SECONDS = 5.0
FREE_BYTES = 10e9
# Docker gives 64 MB; what NVIDIA advises for NCCL
SHARED_BYTES = 1e9


@dataclass(frozen=True)
class Row:
    """One finding: its level (ok, warn or FAIL), the check, what was found, and what to do."""

    level: str
    check: str
    said: str
    fix: str = ""


def answers(reports: Reports, silent: dict[str, str], python: str) -> Iterator[Row]:
    """silent: {host: why it did not answer}. python: the interpreter that was asked for."""
    if reports:
        verb = "answers" if len(reports) == 1 else "answer"
        yield Row(OK, "ssh", f"{', '.join(reports)} {verb}")
    for host, reason in silent.items():
        fix = (
            f"`ssh -o BatchMode=yes {host} {python} --version` must work without a question, with"
            " the same Python at the same path"
        )
        yield Row(FAIL, "ssh", f"{host}: {reason}", fix)


def run_directory(reports: Reports, run_dir: Path, shared: Path) -> Iterator[Row]:
    """shared: the folder in which every host looked for a file that was made here."""
    blind = [host for host, report in reports.items() if not report["sees_token"]]
    if blind:
        yield Row(
            FAIL,
            "run directory",
            f"{shared} is not the same folder on {', '.join(blind)}",
            "all hosts write their parts of a checkpoint into one folder: give a --run_dir on a"
            " disk that they share",
        )
    elif reports:
        yield Row(OK, "run directory", f"{run_dir} is shared")


def versions(reports: Reports) -> Iterator[Row]:
    first = next(iter(reports.values()))
    for package in first["versions"]:
        values = {host: report["versions"][package] for host, report in reports.items()}
        if "code" in package:
            fix = "check out the same commit everywhere"
        else:
            fix = f"install the same {package} everywhere"
        yield _same(package, values, fix)


def commits(reports: Reports) -> Iterator[Row]:
    """Only a warning where they differ: what runs is the code, which `versions` compares."""
    values = {host: report["commit"] for host, report in reports.items()}
    distinct = set(values.values())
    if distinct == {None}:
        return
    if len(distinct) == 1:
        yield Row(OK, "commit", distinct.pop())
    else:
        yield Row(
            WARN,
            "commit",
            _value_on_host(values),
            "check out the same commit everywhere; what counts is the line above on the code",
        )


def dataset(reports: Reports, data_root: Path) -> Iterator[Row]:
    values = {host: (report["dataset"] or "missing")[:12] for host, report in reports.items()}
    fix = (
        f"every host must see the same dataset in {data_root}: copy it there, or prepare it on a"
        " shared disk"
    )
    yield _same("dataset", values, fix)


def _same(check: str, values: dict[str, str], fix: str) -> Row:
    """The row of a value that all hosts must have, and have alike."""
    distinct = set(values.values())
    if len(distinct) > 1 or "missing" in distinct:
        return Row(FAIL, check, _value_on_host(values), fix)
    return Row(OK, check, distinct.pop())


def _value_on_host(values: dict[str, str]) -> str:
    return ", ".join(f"{value} on {host}" for host, value in values.items())


def devices(reports: Reports, hosts: dict[str, int]) -> Iterator[Row]:
    for host, report in reports.items():
        yield _devices_of(host, report, hosts[host])


def _devices_of(host: str, report: dict[str, Any], slots: int) -> Row:
    gpus = report.get("gpus")
    cores = report["cores"]
    if gpus is None:
        finding = f"{host}: torch does not start: {report['torch_error']}"
        return Row(FAIL, "devices", finding, "install torch there anew")
    if gpus and gpus != slots:
        level = FAIL if slots > gpus else WARN
        finding = f"{host} has {gpus} GPUs, and the hostfile says slots={slots}"
        return Row(level, "devices", finding, f"write {host} slots={gpus}")
    if not gpus and slots > cores:
        finding = f"{host} has no GPU and {cores} cores, and the hostfile says slots={slots}"
        return Row(FAIL, "devices", finding, f"write at most slots={cores}")
    counted = plural(gpus, "GPU") if gpus else "no GPU"
    return Row(OK, "devices", f"{host}: slots={slots}, {counted}")


def shared_memory(reports: Reports, hosts: dict[str, int]) -> Iterator[Row]:
    """What the GPUs of a host do not pass to each other directly goes through /dev/shm."""
    for host, report in reports.items():
        size = report["shared_memory"]
        several_gpus = report.get("gpus") and hosts[host] > 1
        if several_gpus and size is not None and size < SHARED_BYTES:
            yield Row(
                WARN,
                "shared memory",
                f"{host}: /dev/shm holds {size / 1e6:,.0f} MB, which is little for NCCL",
                "start its container with --ipc=host, or with --shm-size=1g or more",
            )


def names(reports: Reports, hosts: dict[str, int], exported: dict[str, str]) -> Iterator[Row]:
    """Whether hosts know each other's names, and by which interface they meet.

    exported: {name: value} of .deepspeed_env.
    """
    for host, report in reports.items():
        unknown = [peer for peer, address in report["peers"].items() if address is None]
        if unknown:
            finding = f"{host} does not know {', '.join(unknown)}"
            yield Row(FAIL, "names", finding, "add them to DNS or to its /etc/hosts")
        if len(hosts) > 1:
            yield _interface_of(host, reports, exported)


def _interface_of(host: str, reports: Reports, exported: dict[str, str]) -> Row:
    interface = interface_to_others(reports, host)
    address = reports[host]["name_address"]
    if interface is None:
        finding = f"{host} has no way to the other hosts"
        return Row(FAIL, "interface", finding, "check its network and its /etc/hosts")
    if "GLOO_SOCKET_IFNAME" in exported:
        return Row(OK, "interface", f"{host}: {interface}")
    if address is None or address.startswith("127."):
        finding = (
            f"{host}: its own name is {address}, which no other host can reach; train.py takes"
            f" {interface} instead"
        )
        return Row(WARN, "interface", finding, "for other programs, and to be sure: --write_env")
    return Row(OK, "interface", f"{host}: {interface}, {address}")


def interface_to_others(reports: Reports, host: str) -> str | None:
    """The network interface through which a host reaches the others; None where it has none."""
    for peer, interface in reports[host]["interfaces"].items():
        if peer != host and interface not in (None, "lo"):
            return interface
    return None


def clocks(reports: Reports, skews: dict[str, float]) -> Iterator[Row]:
    """skews: {host: seconds by which its clock is ahead of this one's}."""
    late = {host: skews[host] for host in reports if abs(skews[host]) > SKEW_SECONDS}
    for host, skew in late.items():
        direction = "ahead" if skew > 0 else "behind"
        finding = f"{host} is {abs(skew):.0f} s {direction}"
        yield Row(WARN, "clock", finding, "start its NTP service")
    if not late:
        yield Row(OK, "clock", f"within {SKEW_SECONDS:g} s of each other")


def disks(reports: Reports, run_dir: Path) -> Iterator[Row]:
    for host, report in reports.items():
        free = report["free_bytes"]
        finding = f"{host}: {free / 1e9:,.1f} GB free for {run_dir}"
        if free >= FREE_BYTES:
            yield Row(OK, "disk", finding)
        else:
            fix = "compare with the disk line of train.py --dry_run"
            yield Row(WARN, "disk", finding, fix)


def network(measured: dict[str, Any], hosts: dict[str, int], megabytes: int) -> Iterator[Row]:
    """measured: what gpt.cluster.host_report.measure prints."""
    ranks = list(hosts)
    for rank, peer in measured["unreachable"]:
        finding = f"{ranks[rank]} cannot connect to {ranks[peer]}"
        yield Row(FAIL, "network", finding, "open all ports between them")
    method = f"{measured.get('backend')} all-reduce of {megabytes} MiB"
    for pair, speed in measured.get("pairs", {}).items():
        first, second = [ranks[int(rank)] for rank in pair.split("-")]
        yield Row(OK, "network", f"{first} - {second}: {speed:.2f} GB/s ({method})")
    if len(ranks) > 2 and "all" in measured:
        yield Row(OK, "network", f"all {len(ranks)} hosts: {measured['all']:.2f} GB/s")

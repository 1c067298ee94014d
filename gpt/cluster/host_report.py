"""What a host is and has. tools/preflight.py sends this file to hosts over ssh, so it stands alone:
the standard library, and other packages only where they may be missing."""

import glob
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def versions(project: str) -> dict[str, str]:
    """What must be the same on all hosts: {what it is: its version, or "missing"}."""
    package = os.path.join(project, "gpt")
    code = "missing"
    if os.path.isdir(package):
        source = hashlib.sha256()
        for path in sorted(glob.glob(os.path.join(package, "**", "*"), recursive=True)):
            if path.endswith((".py", ".yaml")):
                with open(path, "rb") as file:
                    source.update(file.read())
        code = source.hexdigest()[:12]
    return {
        "Python": platform.python_version(),
        "torch": _version("torch"),
        "deepspeed": _version("deepspeed"),
        "code in gpt/": code,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def own_address(peer: str) -> str | None:
    """This host's address on the way to another; None where there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))  # sends nothing
            return probe.getsockname()[0]
    except OSError:
        return None


def address_for_others(master: str) -> str:
    """This host's address for ranks on others; `master`, the name by which they know rank 0's host,
    where the way to that does not leave this one."""
    address = own_address(master)
    if address is None or address.startswith("127."):
        return master
    return address


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an address; None if there is none."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return None


def interfaces() -> list[str]:
    """Names of this host's network interfaces that have an address."""
    import psutil

    names = []
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family in (socket.AF_INET, socket.AF_INET6) for entry in addresses):
            names.append(name)
    return names


def report(request: str) -> None:
    """Print a line with this host's time, then one with all else, as JSON.

    request: JSON of {"project", "data_root", "run_dir", "token": paths, "peers": names of hosts}.
    """
    print(time.time(), flush=True)
    paths = json.loads(request)
    peers = paths["peers"]
    routes = {peer: own_address(peer) for peer in peers}
    facts = {
        "host": socket.gethostname(),
        "versions": versions(paths["project"]),
        "commit": _commit(paths["project"]),
        "name_address": _resolved(socket.gethostname()),
        "free_bytes": _free_bytes(paths["run_dir"]),
        "dataset": _dataset(paths["data_root"]),
        "sees_token": os.path.exists(paths["token"]),
        "cores": os.cpu_count(),
        "shared_memory": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        "routes": routes,
        "peers": {peer: _resolved(peer) for peer in peers},
        "interfaces": {peer: interface_of(address) for peer, address in routes.items() if address},
    }
    try:
        import torch

        facts["gpus"] = torch.cuda.device_count()
    except Exception as error:  # whatever a broken installation raises
        facts["torch_error"] = str(error).splitlines()[0][:200]
    print(json.dumps(facts), flush=True)


def _free_bytes(path: str) -> int:
    """Where a path is, or will be made."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def _resolved(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def _commit(project: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", project, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        return done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _dataset(root: str) -> str | None:
    """The dataset's fingerprint, as gpt.data.datasets computes it; None where there is none."""
    path = os.path.join(root, "manifest.json")
    if not os.path.isfile(path):  # a pipe would be waited for
        return None
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.loads(file.read(64 << 20))
    except (OSError, ValueError, RecursionError):
        return None
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def measure(request: str) -> None:
    """On every host at once, as one rank of all: rank 0 prints JSON of which hosts reach each
    other, and how fast.

    request: JSON of {"rank", "size", "master", "port", "seconds", "pairs": [[rank, rank], …],
    "megabytes"}. Prints {"unreachable": [[from, to], …], "backend", "pairs": {"0-1": GB/s of an
    all-reduce}, "all": GB/s}.
    """
    import torch.distributed as dist

    settings = json.loads(request)
    rank = settings["rank"]
    size = settings["size"]
    store = dist.TCPStore(
        settings["master"],
        settings["port"],
        is_master=rank == 0,
        timeout=timedelta(seconds=settings["seconds"]),
        wait_for_workers=False,
        multi_tenant=True,
    )
    address = address_for_others(settings["master"])
    unreachable = _unreachable(store, address, rank, size)
    results: dict[str, Any] = {"unreachable": unreachable}
    if not unreachable:
        results |= _all_reduces(store, address, settings)
    if rank == 0:
        print(json.dumps(results), flush=True)
    store.add("done", 1)
    # rank 0 keeps the store until the others have read it
    deadline = time.monotonic() + 10
    while rank == 0 and store.add("done", 0) < size and time.monotonic() < deadline:
        time.sleep(0.05)
    os._exit(0)


def _unreachable(
    store: "torch.distributed.Store", address: str, rank: int, size: int
) -> list[list[int]]:
    """[[from, to], …] of all ranks: from whose host no connection to the other's could be made."""
    with socket.create_server(("", 0), backlog=size) as listening:
        store.set(f"listens {rank}", f"{address} {listening.getsockname()[1]}")
        own = []
        for peer in range(size):
            host, port = store.get(f"listens {peer}").decode().split()
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError:
                own.append([rank, peer])
        store.set(f"unreachable {rank}", json.dumps(own))
        pairs = []
        for peer in range(size):
            pairs += json.loads(store.get(f"unreachable {peer}"))
    return pairs


def _all_reduces(
    store: "torch.distributed.Store", address: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """The "backend", "all" and "pairs" of `measure`."""
    import torch
    import torch.distributed as dist

    rank = settings["rank"]
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "nccl" if on_gpus else "gloo"
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=settings["size"],
        timeout=timedelta(seconds=settings["seconds"]),
    )
    data = torch.zeros(settings["megabytes"] << 18, device="cuda" if on_gpus else "cpu")
    speed_of_all = _speed(data)
    speeds = {}
    for pair in settings["pairs"]:
        group = dist.new_group(pair)
        if rank in pair:
            store.set(f"pair {pair}", str(_speed(data, group)))
        speeds["-".join(map(str, pair))] = float(store.get(f"pair {pair}"))
    return {"backend": backend, "all": speed_of_all, "pairs": speeds}


def _speed(data: "torch.Tensor", group: "torch.distributed.ProcessGroup | None" = None) -> float:
    """GB/s at which an all-reduce moves `data` through each rank's network card, 2 (n - 1) / n
    times its size; the best of four."""
    import torch
    import torch.distributed as dist

    size = dist.get_world_size(group)
    best_seconds = float("inf")
    for _ in range(4):
        dist.barrier(group)
        began = time.perf_counter()
        dist.all_reduce(data, group=group)
        if data.is_cuda:
            torch.cuda.synchronize()
        best_seconds = min(best_seconds, time.perf_counter() - began)
    return 2 * (size - 1) / size * data.nbytes / best_seconds / 1e9

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
from importlib.metadata import PackageNotFoundError, version


def versions(project: str) -> dict:
    """What must be the same on all hosts: {what it is: its version, or "missing"}."""
    source = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(project, "gpt", "**", "*"), recursive=True)):
        if path.endswith((".py", ".yaml")):
            with open(path, "rb") as file:
                source.update(file.read())
    code = source.hexdigest()[:12] if os.path.isdir(os.path.join(project, "gpt")) else "missing"
    return {
        "Python": platform.python_version(),
        "torch": _version("torch"),
        "deepspeed": _version("deepspeed"),
        "code in gpt/": code,
    }


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def own_address(peer: str):
    """This host's address on the way to another; None where there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))  # sends nothing
            return probe.getsockname()[0]
    except OSError:
        return None


def interface_of(address: str):
    """Name of the network interface that has an address; None if there is none."""
    import psutil

    return next(
        (
            name
            for name, found in psutil.net_if_addrs().items()
            if any(a.address == address for a in found)
        ),
        None,
    )


def report(asked: str):
    """Print a line with this host's time, then one with all else, as JSON.

    asked: JSON of {"project", "data_root", "run_dir", "token": paths, "peers": names of the hosts}.
    """
    print(time.time(), flush=True)
    asked = json.loads(asked)
    place = os.path.abspath(asked["run_dir"])
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    found = {
        "host": socket.gethostname(),
        "versions": versions(asked["project"]),
        "commit": _commit(asked["project"]),
        "name_address": _resolved(socket.gethostname()),
        "free_bytes": shutil.disk_usage(place).free,
        "dataset": _dataset(asked["data_root"]),
        "sees_token": os.path.exists(asked["token"]),
        "cores": os.cpu_count(),
        "shared_memory": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        "routes": {peer: own_address(peer) for peer in asked["peers"]},
        "peers": {peer: _resolved(peer) for peer in asked["peers"]},
    }
    found["interfaces"] = {
        peer: interface_of(address) for peer, address in found["routes"].items() if address
    }
    try:
        import torch

        found["gpus"] = torch.cuda.device_count()
    except Exception as error:  # whatever a broken installation raises
        found["torch_error"] = str(error).splitlines()[0][:200]
    print(json.dumps(found), flush=True)


def _resolved(name):
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def _commit(project):
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


def _dataset(root):
    """The dataset's fingerprint, as gpt.data.datasets computes it; None where there is none."""
    try:
        with open(os.path.join(root, "manifest.json"), encoding="utf-8") as file:
            return hashlib.sha256(json.dumps(json.load(file), sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError):
        return None


def measure(asked: str):
    """On every host at once, as one rank of all: rank 0 prints JSON of which hosts reach each
    other, and how fast.

    asked: JSON of {"rank", "size", "host", "master", "port", "seconds", "pairs": [[rank, rank], …],
    "megabytes"}. Prints {"unreachable": [[from, to], …], "backend", "pairs": {"0-1": GB/s of an
    all-reduce}, "all": GB/s}.
    """
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    asked = json.loads(asked)
    rank = asked["rank"]
    size = asked["size"]
    limit = timedelta(seconds=asked["seconds"])
    store = dist.TCPStore(
        asked["master"],
        asked["port"],
        is_master=rank == 0,
        timeout=limit,
        wait_for_workers=False,
        multi_tenant=True,
    )
    address = own_address(asked["master"])
    if address.startswith("127."):
        address = asked["master"]
    listening = socket.create_server(("", 0), backlog=size)
    store.set(f"listens {rank}", f"{address} {listening.getsockname()[1]}")
    unreachable = []
    for peer in range(size):
        host, port = store.get(f"listens {peer}").decode().split()
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            unreachable.append([rank, peer])
    store.set(f"unreachable {rank}", json.dumps(unreachable))
    unreachable = [
        pair for peer in range(size) for pair in json.loads(store.get(f"unreachable {peer}"))
    ]
    found = {"unreachable": unreachable}
    if not unreachable:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(address))
        backend = found["backend"] = (
            "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        )
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=limit,
        )
        data = torch.zeros(asked["megabytes"] << 18, device="cuda" if backend == "nccl" else "cpu")
        found["all"] = _speed(dist, torch, data, None)
        found["pairs"] = {}
        for pair in asked["pairs"]:
            group = dist.new_group(pair)
            if rank in pair:
                store.set(f"pair {pair}", str(_speed(dist, torch, data, group)))
            found["pairs"]["-".join(map(str, pair))] = float(store.get(f"pair {pair}"))
    if rank == 0:
        print(json.dumps(found), flush=True)
    store.add("done", 1)
    end = time.monotonic() + 10
    while rank == 0 and store.add("done", 0) < size and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(0)


def _speed(dist, torch, data, group):
    """GB/s at which an all-reduce moves `data` through each rank's network card, 2 (n - 1) / n
    times its size."""
    n, best = dist.get_world_size(group), float("inf")
    for _ in range(4):
        dist.barrier(group)
        began = time.perf_counter()
        dist.all_reduce(data, group=group)
        if data.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * (n - 1) / n * data.nbytes / best / 1e9

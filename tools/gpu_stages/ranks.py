"""Do two ranks work together? By NCCL on two GPUs; in a dry run gloo on the CPU stands in."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.distributed

from gpt.cluster.launch import free_port
from gpt.compute.hardware import DTYPES
from gpt.config.optimizer_keys import COSINE
from tools.gpu_stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
COMPARED = 6  # steps whose losses are held against those of one rank
APART = 1e-3  # nats that they may differ by, in fp32
NAMED_WITHIN = (
    10.0  # seconds from a rank's death to the end of the other; more on CPUs that may be shared
)
PATIENCE = 90.0  # seconds for a run to come to its steps


def two(lab):
    if not lab.dry and torch.cuda.device_count() < 2:
        checks = next(stage.checks for stage in STAGES if stage.name == "ranks")
        for name in checks:
            lab.not_run(name, "one GPU")
        return
    _all_reduce(lab)
    with tempfile.TemporaryDirectory() as folder:
        _runs(lab, Path(folder))


def _start(command, rank, size, port, out, cwd=None):
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        stdout=out,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


# ---- All-reduce


def _all_reduce(lab):
    port = free_port()
    path = lab.out / "logs" / "all_reduce.json"
    path.unlink(missing_ok=True)
    ranks = [
        _start([__file__, path, *(["dry"] if lab.dry else [])], rank, 2, port, None)
        for rank in range(2)
    ]
    codes = [_ended(rank, PATIENCE) for rank in ranks]
    found = json.loads(path.read_text()) if path.exists() else {"faults": [], "rates": []}
    faults = found["faults"] + ([f"its ranks ended with {codes}"] if codes != [0, 0] else [])
    rates = found["rates"]
    lab.check(
        "all-reduce", "", faults, f"{rates[-1]['bytes_per_second'] / 1e9:.1f} GB/s" if rates else ""
    )
    for rate in rates:
        lab.row("all_reduce", **rate)


def _ended(process, seconds):
    """The exit code; None for one that had to be killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _reduce_as_a_rank(path, dry=""):
    rank = int(os.environ["RANK"])
    device = "cpu" if dry else f"cuda:{os.environ['LOCAL_RANK']}"
    if not dry:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("gloo" if dry else "nccl")
    faults, rates = [], []
    for name, dtype in DTYPES.items():
        for size in (1, 1001, 1 << 18):
            numbers = (
                torch.arange(size, device=device) % 31
            )  # whose sums every precision holds exactly
            mine = (numbers * (rank + 1)).to(dtype)
            torch.distributed.all_reduce(mine)
            if not torch.equal(mine, (numbers * 3).to(dtype)):
                faults.append(f"{size:,} numbers in {name} have a wrong sum")
    for size in (1 << 14,) if dry else (1 << 20, 1 << 24, 1 << 28):
        tensor = torch.zeros(size, dtype=torch.float16, device=device)
        times = []
        for _ in range(6):
            torch.distributed.barrier()
            if not dry:
                torch.cuda.synchronize()
            began = time.perf_counter()
            torch.distributed.all_reduce(tensor)
            if not dry:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        # of two ranks each sends and receives every byte once
        rates.append(
            {
                "bytes": tensor.nbytes,
                "milliseconds": 1e3 * min(times),
                "bytes_per_second": tensor.nbytes / min(times),
            }
        )
    if rank == 0:
        Path(path).write_text(json.dumps({"faults": faults, "rates": rates}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


# ---- Runs


def _runs(lab, folder):
    """A run of one rank, and one of two, one of which is killed after the compared steps."""
    _prepare(folder)
    configs = {
        name: _config(folder, name, steps)
        for name, steps in (("one", COMPARED), ("two", 1_000_000))
    }
    ports = {name: free_port() for name in configs}
    train = ROOT / "gpt/train.py"
    started = []
    try:
        for name, size in (("one", 1), ("two", 2)):
            with open(lab.out / "logs" / f"ranks-{name}.txt", "wb") as out:
                started += [
                    _start(
                        [train, "--ds_config", configs[name]], rank, size, ports[name], out, folder
                    )
                    for rank in range(size)
                ]
        alone, *pair = started
        code = _ended(alone, PATIENCE)
        end = time.monotonic() + PATIENCE
        while (
            len(_losses(folder, "two")) < COMPARED
            and time.monotonic() < end
            and all(rank.poll() is None for rank in pair)
        ):
            time.sleep(0.1)
        _compare(lab, folder, code)
        _kill(lab, pair)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _prepare(folder):
    """A small dataset of Python's own help texts, which every machine has."""
    from pydoc_data.topics import topics

    from gpt.prepare.documents import Input
    from gpt.prepare.pipeline import prepare
    from gpt.prepare.splits import Rule
    from gpt.prepare.staging import Job

    texts = sorted(topics.items())[:40]
    inputs = [
        Input(name, text, "test" if index < 4 else "train", len(text))
        for index, (name, text) in enumerate(texts)
    ]
    prepare(inputs, folder / "data", Job(Rule()), 512, say=print)


def _config(folder, name, steps):
    tree = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 1},
        "scheduler": {
            "type": COSINE,
            "params": {"max_lr": 1e-3, "warmup_steps": 2, "decay_steps": 1000},
        },
        "gpt": {
            "n_layers": 2,
            "h_dim": 64,
            "mlp_dim": 128,
            "n_heads": 2,
            "head_dim": 32,
            "vocab_size": 512,
            "seq_len": 32,
            "data_root": "data",
            "max_train_steps": steps,
            "eval_every": 0,
            "log_ckpt_every": 0,
            "log_metrics_every": 1,
        },
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def _losses(folder, name):
    path = folder / "runs" / name / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    events = map(json.loads, lines)
    return [event["loss"] for event in events if event["event"] == "train"][:COMPARED]


def _compare(lab, folder, code):
    one, both = _losses(folder, "one"), _losses(folder, "two")
    faults = [] if code == 0 else [f"the run of one rank ended with {code}, see logs/ranks-one.txt"]
    if min(len(one), len(both)) < COMPARED:
        faults.append(
            f"one rank came to step {len(one)}, two to step {len(both)}: see logs/ranks-two.txt"
        )
    distances = [abs(ours - theirs) for ours, theirs in zip(one, both)]
    apart = max(distances, default=0.0)
    near = all(distance < APART for distance in distances)  # as a NaN is not
    faults += [] if near else [f"losses {one} and {both}"]
    lab.check(
        "two ranks learn as one does",
        "",
        faults,
        f"{len(both)} losses at most {apart:.1e} nats apart",
    )


def _kill(lab, pair):
    name = "a killed rank is named"
    limit = NAMED_WITHIN * (6 if lab.dry else 1)
    if any(rank.poll() is not None for rank in pair):
        return lab.not_run(name, "the run of two ranks had ended before")
    pair[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code = _ended(pair[0], limit + 30)
    taken = time.monotonic() - began
    said = (lab.out / "logs" / "ranks-two.txt").read_text(encoding="utf-8", errors="replace")
    faults = [] if code == 1 else [f"the other rank ended with {code}"]
    faults += [] if "rank 1" in said else ["nobody named rank 1"]
    faults += [] if taken < limit else [f"it took {taken:.1f} s"]
    lab.check(name, "", faults, f"{taken:.1f} s from its death to the end of the other")


if __name__ == "__main__":
    _reduce_as_a_rank(*sys.argv[1:])

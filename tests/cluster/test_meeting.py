"""Ranks that are started anew, at the store where those before them met."""

import json
import random
import subprocess
import threading
import time

import psutil
import pytest
import torch.distributed
from conftest import ROOT, environment, read_metrics, write_run

from gpt.cluster import meeting
from gpt.cluster.launch import Launch
from gpt.cluster.roll_call import roll_call
from gpt.errors import UserError

TRAIN = ROOT / "gpt" / "train.py"
RENDEZVOUS = {
    "standalone": ["--standalone"],
    "master_port": ["--master_port", "29721"],
    "c10d": ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:29722"],
}


@pytest.fixture
def torchruns_store(monkeypatch):
    """A store that torchrun would keep; connections go to it."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return store


def meet(ranks):
    """{rank: its meeting} of ranks that start one after another, 0.2 seconds apart."""
    meetings = {}

    def come(rank):
        meetings[rank] = roll_call(Launch(rank, len(ranks)), {}, seconds=10)

    threads = []
    for rank in ranks:
        threads.append(threading.Thread(target=come, args=[rank]))
        threads[-1].start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    return meetings


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_every_try_meets_in_a_part_of_its_own(order, torchruns_store):
    """However often torchrun started each of them: on several hosts it counts on each alone."""
    parts = set()
    for _ in range(3):
        meetings = meet(order)
        assert sorted(meetings) == [0, 1, 2]
        (part,) = {met.part for met in meetings.values()}
        parts.add(part)
    assert len(parts) == 3


def test_a_verdict_on_a_rank_that_had_not_come_is_not_on_its_successor(torchruns_store):
    left = meeting.part_of(torchruns_store, meeting.call_out(torchruns_store))
    verdict = {"mistake": "rank 1 had not come", "users": False, "present": 1, "absent": [1]}
    left.set("verdict", json.dumps({**verdict, "hosts": ["a"], "addresses": ["10.0.0.1"]}))
    met = meet([1, 0])
    assert met[0].part == met[1].part


def test_who_waits_for_a_rank_0_that_died_comes_to_the_next(torchruns_store):
    left = meeting.part_of(torchruns_store, meeting.call_out(torchruns_store))
    left.add("claims of rank 0", 1)
    left.set("rank 0", "{}")
    met = meet([1, 0])
    assert met[0].part == met[1].part
    assert not left.check(["verdict"])


@pytest.mark.parametrize("address", ["no-such-host.invalid", "[", "a" * 300, "ü.invalid"])
def test_an_address_that_nobody_knows(address, monkeypatch):
    monkeypatch.setattr(meeting, "RESOLVE_SECONDS", 0.0)
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="a name that .* does not know .*: give the name or the"):
        meeting.join(Launch(0, 1), 600)


def test_an_address_that_is_of_another_host(monkeypatch):
    monkeypatch.setattr(meeting, "OWN_STORE_SECONDS", 0.5)
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")  # of nobody, by its RFC
    monkeypatch.setenv("MASTER_PORT", "29729")
    with pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1:29729 on .* this host's"):
        meeting.join(Launch(0, 2), 600)


def test_torchrun_starts_a_killed_rank_anew(tmp_path, run_command):
    command = ["torchrun", "--standalone", "--nproc_per_node", 2, "--max_restarts", 1]
    done = run_command([*command, ROOT / "tests/support/restarted_run.py"], tmp_path)
    assert done.returncode == 0 and "met 2" in done.stdout, done.stdout + done.stderr


def ranks_below(process):
    """Processes that torchrun has started as ranks."""
    ranks = []
    for child in psutil.Process(process.pid).children():
        if str(TRAIN) in child.cmdline():
            ranks.append(child)
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize("form", RENDEZVOUS)
@pytest.mark.parametrize("seed", range(8))
def test_torchrun_brings_a_run_back(form, seed, sample, tmp_path):
    """Two ranks are killed at any moments: before the roll call, in initialisation, in steps that
    save each time."""
    options = {"data_root": str(sample), "run_dir": "run", "log_ckpt_every": 1}
    config = write_run(tmp_path, gpt={**options, "max_train_steps": 40})
    launcher = ["torchrun", *RENDEZVOUS[form], "--nproc_per_node", "2", "--max_restarts", "2"]
    chance = random.Random(seed)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*launcher, TRAIN, "--ds_config", config],
            cwd=tmp_path,
            env=environment(OMP_NUM_THREADS="1"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(2):
            time.sleep(chance.uniform(2, 15))
            ranks = ranks_below(process)
            if ranks:
                chance.choice(ranks).kill()
        code = process.wait(timeout=240)
    finally:
        for child in psutil.Process().children(recursive=True):
            child.kill()
        process.wait()
    assert code == 0, (tmp_path / "log").read_text()
    assert read_metrics(tmp_path / "run", "train")[-1]["step"] == 40

"""What hosts answer to tools/preflight.py, or do not, with a stand-in for ssh; what is made of
answers; the whole command, on hosts made of Linux namespaces."""

import json
import os
import time

import pytest
from conftest import ROOT
from hosts import Hosts, missing

from gpt.cluster import host_checks, host_report, preflight

ANSWERS = {  # the stand-in's script -> what is made of it
    "all at once": ("""printf '%s\\n{"host": "a"}\\n' $(date +%s)""", {"host": "a"}, ""),
    "little by little": (
        """date +%s; sleep 0.2; echo '{"host":'; sleep 0.2; echo '"a"}'""",
        {"host": "a"},
        "",
    ),
    "more than a pipe holds": ("""date +%s; printf '["%0200000d"]' 0""", ["0" * 200000], ""),
    "an error": ("echo one >&2; echo 'ssh: no route' >&2; exit 255", None, "ssh: no route"),
    "a chatty shell": (
        "echo Welcome to node1; exec sleep 90",
        None,
        "its shell prints 'Welcome to node1' before anything else",
    ),
    "half an answer": ("date +%s; echo '{'; echo 'killed' >&2", None, "killed"),
    "nothing": ("exit 0", None, "it ended without a word"),
    "silence": ("exec sleep 90", None, "no answer within 2 s"),
    "silence after the time": ("date +%s; exec sleep 90", None, "no answer within 2 s"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_a_host_answers(case, tmp_path, monkeypatch):
    script, report, reason = ANSWERS[case]
    (tmp_path / "ssh").write_text(f"#!/bin/bash\n{script}\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setattr(preflight, "SSH", (str(tmp_path / "ssh"),))
    cluster = preflight.Cluster({"node1": 1}, tmp_path, tmp_path, 29500, seconds=2.0)
    began = time.monotonic()
    answer = preflight._ask(cluster, "node1", "report()")
    assert time.monotonic() - began < 60  # not until the host has done with whatever it does
    assert (answer.report, answer.reason) == (report, reason)
    assert abs(answer.skew) < 30


@pytest.mark.parametrize(
    "options, words",
    [
        (["--timeout", "1e400"], "--timeout inf: give seconds, from 1 to 3600"),
        (["--timeout", "nan"], "--timeout nan: give seconds"),
        (["--timeout", "-1"], "--timeout -1: give seconds"),
        (["--port", "99999999"], "--port 99999999: give 1 to 65535"),
        (["--ssh_port", "0"], "--ssh_port 0: give 1 to 65535"),
    ],
)
def test_numbers_that_are_none(options, words, tmp_path, load_tool):
    assert words in load_tool("preflight").mistake("--hostfile", tmp_path / "absent", *options)


def test_a_machine_without_ssh(tmp_path, monkeypatch, load_tool):
    (tmp_path / "hostfile").write_text("node1 slots=1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    sentence = load_tool("preflight").mistake("--hostfile", tmp_path / "hostfile")
    assert sentence.startswith("there is no ssh here, by which the hosts are asked, and by which")


def test_a_manifest_that_is_none(tmp_path):
    path = tmp_path / "manifest.json"
    os.mkfifo(path)
    assert host_report._dataset(str(tmp_path)) is None
    path.unlink()
    path.write_text("[" * 100_000)
    assert host_report._dataset(str(tmp_path)) is None


@pytest.mark.parametrize(
    "gpus, slots, size, warned",
    [
        (8, 8, 64 << 20, True),
        (8, 8, 1 << 30, False),
        (1, 1, 64 << 20, False),
        (0, 8, 64 << 20, False),
        (8, 8, None, False),
    ],
)
def test_shared_memory_of_containers(gpus, slots, size, warned):
    reports = {"node1": {"gpus": gpus, "shared_memory": size}}
    rows = list(host_checks.shared_memory(reports, {"node1": slots}))
    said = "node1: /dev/shm holds 67 MB, which is little for NCCL"
    assert [(row.level, row.said) for row in rows] == [("warn", said)] * warned
    assert all("--ipc=host" in row.fix and "--shm-size=1g" in row.fix for row in rows)


def reports_of(**addresses):
    """Two hosts that know each other; their own names have these addresses."""
    report = {"peers": {"a": "10.0.0.1", "b": "10.0.0.2"}, "interfaces": {"a": "eth0", "b": "eth0"}}
    return {host: {**report, "name_address": address} for host, address in addresses.items()}


def test_interfaces_that_hosts_take():
    hosts = {"a": 1, "b": 1}
    reports = reports_of(a="10.0.0.1", b="127.0.1.1")
    rows = list(host_checks.names(reports, hosts, {}))
    assert [(row.level, row.check) for row in rows] == [("ok", "interface"), ("warn", "interface")]
    assert rows[0].said == "a: eth0, 10.0.0.1"
    exported = {"GLOO_SOCKET_IFNAME": "eth0"}
    rows = list(host_checks.names(reports, hosts, exported))
    assert [(row.level, row.said) for row in rows] == [("ok", "a: eth0"), ("ok", "b: eth0")]
    assert list(host_checks.names({"a": reports["a"]}, {"a": 1}, {})) == []


def test_a_host_without_a_way_to_the_others():
    reports = reports_of(a="10.0.0.1", b="10.0.0.2")
    reports["b"]["interfaces"] = {"a": "lo", "b": "eth0"}
    reports["b"]["peers"] = {"a": None, "b": "10.0.0.2"}
    rows = list(host_checks.names(reports, {"a": 1, "b": 1}, {}))
    assert [(row.level, row.said) for row in rows[1:]] == [
        ("FAIL", "b does not know a"),
        ("FAIL", "b has no way to the other hosts"),
    ]


@pytest.mark.parametrize(
    "skews, lines",
    [
        ({"a": 0.0, "b": -5.0}, ["ok within 5 s of each other"]),
        ({"a": 7.2, "b": -9.0}, ["warn a is 7 s ahead", "warn b is 9 s behind"]),
    ],
)
def test_clocks(skews, lines):
    rows = host_checks.clocks({"a": {}, "b": {}}, skews)
    assert [f"{row.level} {row.said}" for row in rows] == lines


ENV = {"PYTHONPATH": str(ROOT), "PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=2"}
needs_hosts = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    hosts = Hosts(2, tmp_path_factory.mktemp("two"))
    yield hosts
    hosts.close()


@pytest.fixture
def folder(two, tmp_path):
    """Where a run would be started: with the hostfile, and the launcher's environment."""
    (tmp_path / "hostfile").write_text(two.hostfile.read_text())
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    return tmp_path


PREFLIGHT = ["python", ROOT / "tools/preflight.py", "--hostfile", "hostfile", "--port", 29833]


@needs_hosts
def test_preflight_of_hosts_that_are_fit(two, folder, sample):
    done = two.run(
        "node1", [*PREFLIGHT, "--data_root", sample, "--write_env", "--json"], cwd=folder, **ENV
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads(done.stdout)
    assert findings["ok"]
    assert not [row for row in findings["rows"] if row["level"] == "FAIL"]
    lines = [f"{row['level']} {row['check']}: {row['said']}" for row in findings["rows"]]
    assert (
        "warn interface: node2: its own name is 127.0.1.1, which no other host can reach; train.py"
        " takes eth0 instead" in lines
    )
    assert any(
        line.startswith("ok network: node1 - node2: ")
        and "GB/s (gloo all-reduce of 16 MiB)" in line
        for line in lines
    )
    variables = "OMP_NUM_THREADS=1\nGLOO_SOCKET_IFNAME=eth0\nNCCL_SOCKET_IFNAME=eth0\n"
    assert (folder / ".deepspeed_env").read_text() == variables


@needs_hosts
def test_preflight_of_hosts_that_are_not(two, folder):
    (folder / "hostfile").write_text("node1 slots=1\n\n# spare\nnode2 slots=500\nnode9 slots=1\n")
    (folder / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\n\n")
    two.run("node2", ["mount", "-t", "tmpfs", "tmpfs", folder])
    try:
        done = two.run("node1", [*PREFLIGHT, "--data_root", "nowhere"], cwd=folder, **ENV)
    finally:
        two.run("node2", ["umount", folder], cwd="/")
    assert done.returncode == 2
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    cores = os.cpu_count()
    for line in (
        "ok ssh node1, node2 answer",
        (
            "FAIL ssh node9: ssh: Could not resolve hostname node9: Temporary failure in name"
            " resolution"
        ),
        f"FAIL run directory {folder} is not the same folder on node2",
        "FAIL dataset missing on node1, missing on node2",
        f"FAIL devices node2 has no GPU and {cores} cores, and the hostfile says slots=500",
        f"-> write at most slots={cores}",
        "FAIL names node1 does not know node9",
        (
            f"FAIL environment {folder}/.deepspeed_env: line 2 is '', and DeepSpeed's launcher"
            " takes nothing but NAME=VALUE, not even a blank line"
        ),
    ):
        assert line in lines, done.stdout + done.stderr
    assert not any("network" in line for line in lines)

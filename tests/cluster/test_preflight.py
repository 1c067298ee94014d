"""What hosts answer to tools/preflight.py, or do not, with a stand-in for ssh; real hosts: see
test_hosts.py."""

import time

import pytest

from gpt.cluster import host_checks, preflight

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

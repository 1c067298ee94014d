"""The hostfile and .deepspeed_env, right and wrong."""

import os

import pytest

from gpt.cluster.hostfile import read_environment, read_hostfile
from gpt.errors import UserError


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "node1 slots=8\nnode1 slots=8\n",
            "line 2 names node1 again: give each host one line with all its slots",
        ),
        ("node1 slots=0\n", "line 1 is 'node1 slots=0', not a host's name and its number of ranks"),
        ("node1\nnode2 8", "line 1 is 'node1', not a host's name"),
        ("-oProxyCommand=x slots=1\n", "line 1 is '-oProxyCommand=x slots=1', not a host's name"),
        ("$(touch x) slots=1\n", "not a host's name"),
        ("node[1-2] slots=1\n", "not a host's name"),
        ("\n# node1 slots=8\n", "it names no host"),
    ],
)
def test_bad_hostfiles(text, message, tmp_path):
    (tmp_path / "hostfile").write_text(text)
    with pytest.raises(UserError) as raised:
        read_hostfile(tmp_path / "hostfile")
    assert message in str(raised.value) and str(tmp_path / "hostfile") in str(raised.value)


def test_what_is_no_hostfile(tmp_path):
    """Files of every kind, in one sentence and at once."""
    path = tmp_path / "hostfile"
    os.mkfifo(path)
    mistakes = [mistake(path)]
    path.unlink()
    path.mkdir()
    mistakes.append(mistake(path))
    path.rmdir()
    for content in (b"\xff\xfe\x00binary", b"node1 slots=8\n" * 100_000):
        path.write_bytes(content)
        mistakes.append(mistake(path))
    words = [
        "a pipe or a device, not a file",
        "Is a directory",
        "is not UTF-8 text",
        "more than the 1,048,576",
    ]
    for sentence, reason in zip(mistakes, words, strict=True):
        assert f"the hostfile {path}" in sentence and reason in sentence
        assert 'write one line per host, such as "node1 slots=8"' in sentence


def test_a_hostfile_that_is_another_file(tmp_path):
    """Of many wrong lines some are told, none of them whole, none raw."""
    path = tmp_path / "hostfile"
    path.write_text("\x1b[2Jnode1 slots=1\n" + "x" * 10_000 + "\n" + "y\n" * 500)
    sentence = mistake(path)
    assert len(sentence) < 2000 and "\x1b" not in sentence
    assert "line 1 is '\\x1b[2Jnode1 slots=1', not a host's name" in sentence
    assert sentence.endswith("; and 494 lines more")


def mistake(path):
    with pytest.raises(UserError) as raised:
        read_hostfile(path)
    return str(raised.value)


def test_a_hostfile(tmp_path):
    (tmp_path / "hostfile").write_text(
        "# ours\nnode1 slots=8\r\n\n  user@10.0.0.2   slots=4  # half\n"
    )
    assert list(read_hostfile(tmp_path / "hostfile").items()) == [
        ("node1", 8),
        ("user@10.0.0.2", 4),
    ]
    with pytest.raises(UserError, match="does not exist: write one line per host"):
        read_hostfile(tmp_path / "absent")


@pytest.mark.parametrize(
    "text, message",
    [("A=1\n\nB=2\n", "line 2 is ''"), ("A 1\n", "line 1 is 'A 1'"), ("A B=1\n", "line 1 is")],
)
def test_a_launchers_environment_that_deepspeed_would_raise_at(text, message, tmp_path):
    (tmp_path / "env").write_text(text)
    with pytest.raises(UserError) as raised:
        read_environment(tmp_path / "env")
    assert message in str(raised.value)


def test_a_launchers_environment_that_is_no_text(tmp_path):
    (tmp_path / "env").write_bytes(b"A=\xff\n")
    with pytest.raises(UserError, match="env is not UTF-8 text: write NAME=VALUE lines into it"):
        read_environment(tmp_path / "env")

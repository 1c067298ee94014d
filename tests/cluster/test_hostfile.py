"""The hostfile and .deepspeed_env, right and wrong."""

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

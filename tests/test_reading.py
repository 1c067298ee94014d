"""Files from outside that are none, or never end."""

import os
import socket

import pytest

from gpt import reading


def test_a_plain_file_is_read(tmp_path):
    (tmp_path / "plain").write_bytes(b"caf\xc3\xa9\r\n")
    os.symlink("plain", tmp_path / "link")
    assert reading.read_text(tmp_path / "link") == "café\r\n"
    assert reading.read_bytes("/proc/self/cmdline")


def test_what_never_ends_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", "/dev/zero", tmp_path):
            with pytest.raises(OSError) as caught:
                reading.read_bytes(path)
            assert caught.value.filename == str(path) and caught.value.strerror


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than the 67,108,864 bytes that such a file may have"):
        reading.read_bytes(tmp_path / "hole")

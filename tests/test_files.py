"""Writing into folders where others may write too."""

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from gpt.errors import UserError
from gpt.files import built_aside, write_atomically, write_output


@pytest.fixture
def umask():
    """Of the process, put back."""
    before = os.umask(0o077)
    yield lambda mask: os.umask(mask)
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_the_users(tmp_path, umask):
    path = tmp_path / "file"
    write_atomically(path, "first")
    assert mode(path) == 0o600
    path.chmod(0o640)
    write_atomically(path, "second")
    assert mode(path) == 0o640 and path.read_text() == "second"
    with built_aside(tmp_path / "folder") as building:
        (building / "x").write_text("")
    assert mode(tmp_path / "folder") == 0o700
    umask(0o022)
    with built_aside(tmp_path / "shared"):
        pass
    assert mode(tmp_path / "shared") == 0o755


def test_what_a_dead_process_was_building_is_removed_and_what_a_living_one_builds_is_not(tmp_path):
    long_name = "ü" * 100
    abandoned = tmp_path / ".out.0123abcd.new"
    (tmp_path / f".{'ü' * 50}.0123abcd.new").mkdir()
    with built_aside(tmp_path / long_name):
        assert len(os.listdir(tmp_path)) == 1
    shutil.rmtree(tmp_path / long_name)
    others = [tmp_path / name for name in (".out.0123abcg.new", ".other.0123abcd.new", ".out.new")]
    for folder in (abandoned, *others):
        folder.mkdir()
        (folder / "x").write_text("")
    (tmp_path / ".out.aaaaaaaa.new").symlink_to(others[0])
    with built_aside(tmp_path / "out") as first:
        assert not abandoned.exists()
        with built_aside(tmp_path / "out") as second:
            (second / "y").write_text("")
        assert first.exists() and not second.exists()
        (tmp_path / "out/y").unlink()
    assert all((folder / "x").is_file() for folder in others)
    assert not first.exists() and (tmp_path / "out").is_dir()


def test_a_write_that_fails_changes_nothing_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "folder", "x")
    assert caught.value.filename == str(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(UserError, match="--json .* cannot be written"):
        write_output("--json", tmp_path / "folder" / "none" / "x", "text")


def test_an_output_may_be_a_device():
    write_output("--json", "/dev/null", "text")
    with pytest.raises(UserError, match="--json /dev/full cannot be written .No space left"):
        write_output("--json", "/dev/full", "text")


def test_names_of_255_bytes(tmp_path):
    for name in ("漢" * 85, "🙂" * 63, "x" * 255):
        write_atomically(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    with pytest.raises(UserError, match="has no name of its own"):
        write_atomically(Path("/"), "x")


def test_the_name_of_an_open_file_is_written_to(tmp_path):
    """As in --json /dev/stdout > FILE, which must not replace the system's own link."""
    with open(tmp_path / "out", "w") as file:
        file.write("before\n")
        file.flush()
        write_output("--json", f"/proc/self/fd/{file.fileno()}", "text\n")
    assert (tmp_path / "out").read_text() == "before\ntext\n"


def test_a_file_whose_folder_may_not_change_is_written_all_the_same(tmp_path, monkeypatch):
    def replace(*paths):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    (tmp_path / "mounted").write_text("before, and longer")
    monkeypatch.setattr(os, "replace", replace)
    write_output("--json", tmp_path / "mounted", "after")
    assert (tmp_path / "mounted").read_text() == "after"
    assert os.listdir(tmp_path) == ["mounted"]
    os.symlink("mounted", tmp_path / "link")
    with pytest.raises(UserError, match="--json .*link cannot be written"):
        write_output("--json", tmp_path / "link", "x")

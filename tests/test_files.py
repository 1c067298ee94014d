"""Writing into folders where others may write too."""

import os
import stat

import pytest

from gpt.errors import UserError
from gpt.files import (
    LOCK,
    FolderLock,
    built_aside,
    is_locked_by,
    open_own,
    write_atomically,
    write_output,
)


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


def test_a_link_is_replaced_and_never_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("file", LOCK, ".file.new"):
        os.symlink(victim, tmp_path / name)
    write_atomically(tmp_path / "file", "ours")
    assert not (tmp_path / "file").is_symlink()
    with pytest.raises(OSError, match="a link, where a file of ours should be"):
        open_own(tmp_path / LOCK, os.O_RDWR)
    with pytest.raises(UserError, match=r"\.lock cannot be opened \(a link"):
        FolderLock(tmp_path)
    assert victim.read_text() == "precious"


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


def test_a_lock_is_told_from_a_file_of_something_else(tmp_path):
    (tmp_path / LOCK).write_text("pip's own words\n")
    with pytest.raises(UserError, match="is a file of something else"):
        FolderLock(tmp_path)
    assert (tmp_path / LOCK).read_text() == "pip's own words\n"


def test_a_lock_knows_its_folder(tmp_path):
    folder = tmp_path / "run"
    lock = FolderLock(folder)
    assert lock.holds and is_locked_by(folder, lock.token)
    folder.rename(tmp_path / "renamed")
    assert not lock.holds
    other = FolderLock(folder)
    assert not lock.holds and other.holds
    other.release()
    lock.release()
    again = FolderLock(tmp_path / "renamed")
    assert again.holds and again.token != lock.token

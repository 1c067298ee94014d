"""Locks on folders."""

import errno
import fcntl
import os

import pytest

from gpt import locking
from gpt.errors import UserError
from gpt.files import open_own, write_atomically
from gpt.locking import LOCK, FolderLock, LockedError, is_locked_by


def test_a_link_is_replaced_and_never_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("file", LOCK, ".file.new"):
        os.symlink(victim, tmp_path / name)
    write_atomically(tmp_path / "file", "ours")
    assert not (tmp_path / "file").is_symlink()
    with pytest.raises(OSError, match="a link, where a file of ours should be"):
        open_own(tmp_path / LOCK, os.O_RDWR)
    with pytest.raises(UserError, match=r"\.lock cannot be locked \(a link"):
        FolderLock(tmp_path)
    assert victim.read_text() == "precious"


def test_a_lock_is_told_from_a_file_of_something_else(tmp_path):
    (tmp_path / LOCK).write_text("pip's own words\n")
    with pytest.raises(UserError, match="is a file of something else"):
        FolderLock(tmp_path)
    assert (tmp_path / LOCK).read_text() == "pip's own words\n"
    # the number of a process, as many programs keep it
    (tmp_path / LOCK).write_text("1234")
    with pytest.raises(UserError, match="is a file of something else"):
        FolderLock(tmp_path)


def test_a_copy_by_hard_links_has_a_lock_of_its_own(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    FolderLock(run).release()
    copy.mkdir()
    os.link(run / LOCK, copy / LOCK)
    lock = FolderLock(copy)
    other = FolderLock(run)
    assert lock.holds and other.holds
    with pytest.raises(LockedError):
        FolderLock(copy)
    other.release()
    lock.release()


def test_a_copy_of_a_folder_at_work_says_how_to_unlock_it(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    lock = FolderLock(run)
    copy.mkdir()
    os.link(run / LOCK, copy / LOCK)
    with pytest.raises(LockedError) as caught:
        FolderLock(copy)
    assert str(caught.value) == (
        f"another process is at work in {copy}, or in a folder that shares its .lock by a hard"
        " link: wait for it, or name another folder, or remove that .lock where it is a copy's"
    )
    (copy / LOCK).unlink()
    FolderLock(copy).release()
    assert lock.holds
    lock.release()


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


def test_a_lock_whose_file_was_removed_still_keeps_others_out(tmp_path):
    lock = FolderLock(tmp_path)
    (tmp_path / LOCK).unlink()
    assert lock.holds and is_locked_by(tmp_path, lock.token)
    with pytest.raises(LockedError):
        FolderLock(tmp_path)
    (tmp_path / LOCK).unlink()
    other = FolderLock(tmp_path)
    assert other.holds and not lock.holds


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(tmp_path, monkeypatch):
    """Whoever opened the file before that has locked nothing."""
    first = FolderLock(tmp_path / "run")
    flock = fcntl.flock

    def after_removal(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        first.remove_unused()
        first.release()
        (tmp_path / "run").mkdir()
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", after_removal)
    second = FolderLock(tmp_path / "run")
    assert second.holds
    with pytest.raises(LockedError):
        FolderLock(tmp_path / "run")


def test_a_lock_survives_a_file_server_that_forgets_what_is_open(tmp_path, monkeypatch):
    lock = FolderLock(tmp_path / "run")

    def samestat(*stats):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os.path, "samestat", samestat)
    monkeypatch.setattr(locking.time, "sleep", lambda seconds: None)
    assert lock.holds
    (tmp_path / "run").rename(tmp_path / "renamed")
    assert not lock.holds
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text("0" * 16)
    assert not lock.holds


def test_what_to_do_about_a_lock_depends_on_what_is_the_matter(tmp_path, monkeypatch):
    def fail(number):
        def flock(*args):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(UserError) as caught:
            FolderLock(tmp_path / "run")
        return str(caught.value)

    assert "on a disk that has file locks" in fail(errno.ENOLCK)
    assert "make room" in fail(errno.ENOSPC)
    assert "have its owner let you write there" in fail(errno.EACCES)


def test_what_another_process_keeps_is_not_removed(tmp_path):
    """The folder was removed by hand, and another run began there, before this one ended."""
    first = FolderLock(tmp_path / "run")
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run").rmdir()
    second = FolderLock(tmp_path / "run")
    first.remove_unused()
    assert second.holds and (tmp_path / "run" / LOCK).read_text() == second.token
    second.remove_unused()
    assert not (tmp_path / "run").exists()

"""Files that are whole or absent."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt.errors import UserError

LOCK = ".lock"


def hash_file(path: Path | str) -> dict[str, int | str]:
    """{"size", "sha256"} of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": os.path.getsize(path), "sha256": digest.hexdigest()}


def sync(path: Path | str) -> None:
    """Have the system write a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content; a crash leaves the old or the new one."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def is_locked_by(folder: Path, token: str) -> bool:
    """Whether a folder, on whatever host, is the one that the FolderLock of this token keeps."""
    # a network file system shows a new file late
    for seconds in (0, 0.1, 1, 5):
        time.sleep(seconds)
        try:
            if (folder / LOCK).read_text(encoding="utf-8") == token:
                return True
        except OSError:
            pass
    return False


def require_place_for(option: str, path: Path | str) -> None:
    """Raise UserError where a file of this name cannot be made, before the work whose results it is
    for."""
    if Path(path).is_dir() or not Path(path).resolve().parent.is_dir():
        raise UserError(f"{option} {path}", mend="give the name of a file in a folder that exists")


def require_new_folder(path: Path | str) -> None:
    """Raise UserError where a folder that is to be made is there already, and not empty."""
    path = Path(path)
    if not os.path.lexists(path):
        return
    is_empty_folder = path.is_dir() and not path.is_symlink() and not os.listdir(path)
    # another folder cannot take the place of "." or "/", which have no name
    if not is_empty_folder or not path.name:
        raise UserError(f"{path} exists already", mend="remove it first, or name another folder")


def free_space(path: Path | str) -> tuple[int, Path]:
    """(bytes that are free where a path is, or will be made; the folder that is there already)."""
    folder = Path(path).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free, folder


@contextmanager
def when_full(what: str, mend: str | None = None) -> Iterator[None]:
    """A block, or as a decorator a function, in which a full disk becomes this UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(what, mend) from error


def sync_all(folder: Path) -> None:
    """`sync` everything in a folder, and the folder."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


@contextmanager
def built_aside(path: Path | str) -> Iterator[Path]:
    """A new folder that takes the place of `path` at the end of the block; after an error it is
    gone instead."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with when_full(
            f"{path} does not fit on its disk",
            mend="make room, or name a folder on another one",
        ):
            yield building
            sync_all(building)
            # mkdtemp's folders are private
            building.chmod(0o755)
            building.replace(path)
            sync(path.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class LockedError(UserError):
    """Another process keeps a folder."""


class FolderLock:
    """Keeps a second process out of a folder until `release()` or the end of this process, however
    it ends.

    `token` is a text of this lock's own that its file holds: who finds it there looks at the same
    folder. Raises LockedError, "{other} {folder}: {mend}", where another process keeps it,
    UserError where it cannot be locked.
    """

    def __init__(
        self,
        folder: Path,
        other: str = "another process is at work in",
        mend: str = "wait for it, or name another folder",
    ):
        self._folder = folder
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / LOCK, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(f"{other} {folder}", mend) from error
        except OSError as error:  # Lustre as many clusters mount it
            self.remove_unused()
            raise UserError(
                f"{folder / LOCK} cannot be locked: {error.strerror}; name a folder on a disk that"
                " has file locks (Lustre: mounted with -o flock)"
            ) from error
        self.token = secrets.token_hex(8)
        try:
            self._file.truncate(0)
            self._file.write(self.token)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.remove_unused()
            raise UserError(
                f"{folder / LOCK} cannot be written: {error.strerror}; make room, or name another"
                " folder"
            ) from error

    def release(self) -> None:
        self._file.close()

    def remove_unused(self) -> None:
        """Remove the folders that were made for this lock, if nothing else was put into them."""
        with suppress(OSError):
            if self._made and os.listdir(self._folder) == [LOCK]:
                (self._folder / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()

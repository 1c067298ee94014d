"""Files that are whole or absent."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from gpt.errors import UserError

LOCK = ".lock"


def hash_file(path) -> dict:
    """{"size", "sha256"} of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": os.path.getsize(path), "sha256": digest.hexdigest()}


def sync(path):
    """Have the system write a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str):
    """Replace a file's content; a crash leaves the old or the new one."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def is_locked_by(folder: Path, token: str) -> bool:
    """Whether a folder, on whatever host, is the one that the FolderLock of this token keeps."""
    for patience in (0, 0.1, 1, 5):  # a network file system shows a new file late
        time.sleep(patience)
        try:
            if (folder / LOCK).read_text(encoding="utf-8") == token:
                return True
        except OSError:
            pass
    return False


def require_place_for(option: str, path):
    """Raise UserError where a file of this name cannot be made, before the work whose results it is
    for."""
    if Path(path).is_dir() or not Path(path).resolve().parent.is_dir():
        raise UserError(f"{option} {path}: give the name of a file in a folder that exists")


def require_new_folder(path):
    """Raise UserError where a folder that is to be made is there already, and not empty."""
    path = Path(path)
    if os.path.lexists(path) and (
        path.is_symlink() or not path.is_dir() or os.listdir(path) or not path.name
    ):
        raise UserError(f"{path} exists already: remove it first, or name another folder")


def free_space(path) -> tuple:
    """(bytes that are free where a path is, or will be made; the folder that is there already)."""
    place = Path(path).resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free, place


@contextmanager
def when_full(sentence: str):
    """A block, or as a decorator a function, in which a full disk becomes a UserError with this
    sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(sentence) from error


def sync_all(folder: Path):
    """`sync` everything in a folder, and the folder."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


@contextmanager
def built_aside(path):
    """A new folder that takes the place of `path` at the end of the block; after an error it is
    gone instead."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with when_full(
            f"{path} does not fit on its disk: make room, or name a folder on another one"
        ):
            yield building
            sync_all(building)
            building.chmod(0o755)  # mkdtemp's folders are private
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
    folder. Raises LockedError with the advice where another process keeps it, UserError where it
    cannot be locked.
    """

    def __init__(
        self,
        folder: Path,
        advice: str = "another process is training in {}: wait for it, or name another --run_dir",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / LOCK, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(advice.format(folder)) from error
        except OSError as error:  # Lustre as many clusters mount it
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
            raise UserError(
                f"{folder / LOCK} cannot be written: {error.strerror}; make room, or name another"
                " folder"
            ) from error

    def release(self):
        self._file.close()

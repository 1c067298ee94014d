"""Locks on folders, which tell whether a folder is still the one that was locked."""

import errno
import fcntl
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from gpt.errors import UserError
from gpt.files import open_own
from gpt.reading import name_of_open, read_text

LOCK = ".lock"
TOKEN_BYTES = 8
_ANOTHER_DISK = "name a folder on a disk that has file locks (Lustre: mounted with -o flock)"
# where the reason is not that the folder is somebody else's
_MEND_LOCK = {
    errno.ENOSYS: _ANOTHER_DISK,
    errno.ENOLCK: _ANOTHER_DISK,
    errno.EOPNOTSUPP: _ANOTHER_DISK,
    errno.ENOSPC: "make room, or name a folder on another disk",
    errno.EDQUOT: "make room, or name a folder on another disk",
    errno.ELOOP: "name another folder, or remove that link if nothing needs it",
}


def is_locked_by(folder: Path, token: str) -> bool:
    """Whether a folder, on whatever host, is the one that the FolderLock of this token keeps."""
    # a network file system shows a new file late
    for seconds in (0, 0.1, 1, 5):
        time.sleep(seconds)
        try:
            if read_text(folder / LOCK, most=100) == token:
                return True
        except (OSError, UnicodeDecodeError):
            pass
    return False


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
        self._path = folder / LOCK
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self.token = secrets.token_hex(TOKEN_BYTES)
        try:
            self._file = self._lock()
            self._folder_held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BlockingIOError as error:
            what = f"{other} {folder}"
            if self._path.exists() and self._path.lstat().st_nlink > 1:
                what += f", or in a folder that shares its {LOCK} by a hard link"
                mend += f", or remove that {LOCK} where it is a copy's"
            raise LockedError(what, mend) from error
        except OSError as error:
            self._remove_made()
            mend = _MEND_LOCK.get(
                error.errno or 0, "name another folder, or have its owner let you write there"
            )
            raise UserError(f"{self._path} cannot be locked ({error.strerror})", mend) from error

    def _lock(self) -> BinaryIO:
        """The lock's file, locked, with the token in it."""
        while True:
            file = open(open_own(self._path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at_place(file):
                    self._require_ours(file)
                    if os.fstat(file.fileno()).st_nlink == 1:
                        self._write_token(file)
                        return file
                    # a copy by hard links shares it, and each would keep the other locked
                    self._path.unlink()
            except BaseException:
                file.close()
                raise
            # whoever had it before has removed it meanwhile
            file.close()

    def _is_at_place(self, file: BinaryIO) -> bool:
        """Whether the lock's name still leads to an open file."""
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def _require_ours(self, file: BinaryIO) -> None:
        """Raises UserError where the file holds anything but the token of a lock before."""
        length = 2 * TOKEN_BYTES
        content = file.read(length + 1)
        if content and not re.fullmatch(rb"[0-9a-f]{%d}" % length, content):
            raise UserError(
                f"{self._path} is a file of something else",
                mend="name another folder, or remove that file if nothing needs it",
            )

    def _write_token(self, file: BinaryIO) -> None:
        file.seek(0)
        file.write(self.token.encode())
        os.fsync(file.fileno())

    @property
    def holds(self) -> bool:
        """Whether the folder of this name is still the one that was locked: not renamed, not
        replaced by another, and nobody else's. A lock file that was removed is made again."""
        try:
            if not os.path.samestat(os.stat(self._folder), os.fstat(self._folder_held)):
                return False
            if not self._path.exists():
                self._file = self._lock()
            return self._is_at_place(self._file)
        except (FileNotFoundError, UserError):
            return False
        except OSError:  # a file server that came back knows what is open no more
            return is_locked_by(self._folder, self.token)

    @property
    def place(self) -> Path | None:
        """Where the folder that was locked is now; None where it is gone, or cannot be told."""
        with suppress(OSError):
            path = Path(os.readlink(name_of_open(self._folder_held)))
            if os.path.samestat(os.stat(path), os.fstat(self._folder_held)):
                return path
        return None

    def release(self) -> None:
        self._file.close()
        os.close(self._folder_held)

    def remove_unused(self) -> None:
        """Remove the folders that were made for this lock, if nothing else was put into them and
        nobody else keeps them."""
        if self.holds:
            self._remove_made()

    def _remove_made(self) -> None:
        with suppress(OSError):
            if self._made and os.listdir(self._folder) == [LOCK]:
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()

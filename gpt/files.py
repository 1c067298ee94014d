"""Files that are whole or absent."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt.errors import UserError
from gpt.reading import open_regular
from gpt.standard_streams import OutputError

# how a file of ours is opened where others may write too: never through a link that they laid
_OWN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# what FUSE, CIFS and others say of a folder, or a folder that may be written but not read
_FOLDERS_NOT_SYNCED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EACCES)


def hash_file(path: Path | str) -> dict[str, int | str]:
    """{"size", "sha256"} of a file."""
    digest = hashlib.sha256()
    size = 0
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def sync(path: Path | str) -> None:
    """Have the system write a file, or a folder's names, to the disk; a folder's as far as its file
    system does that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not os.path.isdir(path) or error.errno not in _FOLDERS_NOT_SYNCED:
            raise


def open_own(path: Path | str, flags: int) -> int:
    """Descriptor of a file that is ours to change, made with the user's own permissions where it is
    not there. flags: os.O_RDWR and the like.

    Raises OSError where it is not a regular file: a link may point at a file of somebody else.
    """
    try:
        descriptor = os.open(path, flags | _OWN, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "a link, where a file of ours should be"
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return descriptor


def _name_beside(path: Path) -> Path:
    """A hidden name in a path's folder that nobody can foresee."""
    if not path.name:
        raise UserError(f"{path} has no name of its own", mend="name a file or folder in it")
    return path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}.new")


def _shortened(name: str) -> str:
    """A name that leaves room for more; a file system counts bytes."""
    return os.fsdecode(os.fsencode(name)[:100])


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content; a crash leaves the old or the new one. A link is replaced, not
    followed; a file that was there keeps its permissions.

    Raises OSError, with the file's name; then nothing has changed.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    aside = _name_beside(path)
    try:
        with open(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            with suppress(OSError):
                before = os.lstat(path)
                if stat.S_ISREG(before.st_mode):
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        # a write that fails does not know which file it was
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    sync(path.parent)


def write_output(option: str, path: Path | str, text: str) -> None:
    """Write what a user asked for under a name of the user's. Raises UserError where it cannot be
    written.

    A device, a pipe or a name of an open file, /dev/stdout for one, is written to; anything else is
    replaced whole.
    """
    path = Path(path)
    try:
        if _is_descriptor(path) or (path.exists() and not path.is_file()):
            _write_in_place(path, os.O_APPEND, text)
        else:
            _replace_or_write_in_place(path, text)
    except OSError as error:
        raise UserError(
            f"{option} {path} cannot be written ({error.strerror})",
            mend="make room, or give the name of a file in another folder",
        ) from error


def _write_in_place(path: Path, flags: int, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def _replace_or_write_in_place(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        # a file that is mounted by itself, as containers have it, or whose folder may not change
        may_not_change = error.errno in (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)
        if path.is_symlink() or not path.is_file() or not may_not_change:
            raise
        _write_in_place(path, os.O_TRUNC | os.O_NOFOLLOW, text)


def _is_descriptor(path: Path) -> bool:
    """Whether a name is the system's for what a process has open."""
    place = Path(os.path.realpath(path.parent)) / path.name
    if place.is_relative_to("/proc") and place.parent.name == "fd":
        return True
    return place.parent == Path("/dev") and place.is_symlink() and _is_descriptor(place.readlink())


def require_place_for(option: str, path: Path | str) -> None:
    """Raise UserError where a file of this name cannot be made, before the work whose results it is
    for."""
    folder = Path(path).resolve().parent
    if Path(path).is_dir() or not folder.is_dir():
        raise UserError(f"{option} {path}", mend="give the name of a file in a folder that exists")
    if not Path(path).exists() and not os.access(folder, os.W_OK):
        raise UserError(
            f"{option} {path}: nothing can be written into {folder}",
            mend="give the name of a file in another folder",
        )


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
    """A block, or as a decorator a function, in which a full disk becomes this UserError. That of
    the standard output is another one."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(what, mend) from error


def sync_all(folder: Path) -> None:
    """`sync` everything in a folder, and the folder."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


@contextmanager
def built_aside(path: Path | str) -> Iterator[Path]:
    """A new folder that takes the place of `path` at the end of the block; after an error it is
    gone instead, after a crash when the next one is built. It has the permissions that the user's
    umask gives."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    building, lock = _locked_folder_beside(path)
    try:
        with when_full(
            f"{path} does not fit on its disk",
            mend="make room, or name a folder on another one",
        ):
            yield building
            sync_all(building)
            try:
                building.replace(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                # another process was as quick
                raise UserError(
                    f"{path} exists already", mend="remove it first, or name another folder"
                ) from error
            sync(path.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        os.close(lock)


def _locked_folder_beside(path: Path) -> tuple[Path, int]:
    """(a new folder, what keeps it locked while it is open), where its disk has locks."""
    while True:
        folder = _name_beside(path)
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # nobody took it for abandoned before it was locked
            return folder, lock
        os.close(lock)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that have died were building for a path: the user's own folders of such
    a name, which nobody keeps locked."""
    name = re.compile(rf"\.{re.escape(_shortened(path.name))}\.[0-9a-f]{{8}}\.new")
    folders: list[Path] = []
    with suppress(OSError):  # not everybody who may write there may list it
        folders = [*path.parent.iterdir()]
    for folder in folders:
        if name.fullmatch(folder.name):
            with suppress(OSError):  # it is locked, or its disk has no locks
                _remove_if_unlocked(folder)


def _remove_if_unlocked(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _OWN)
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)

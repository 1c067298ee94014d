"""Files that are whole or absent."""

import fcntl
import hashlib
import os
from pathlib import Path

from gpt.errors import UserError


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


class FolderLock:
    """Keeps a second process out of a folder until `release()` or the end of this process, however it ends."""

    def __init__(self, folder: Path, advice: str = "another process is training in {}: wait for it, or name another --run_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / ".lock", "w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(advice.format(folder)) from error

    def release(self):
        self._file.close()

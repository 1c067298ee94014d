"""The folder that a command works in: files that it reads, and others that it must leave alone."""

import fnmatch
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

# what every workspace holds beside a command's inputs
VICTIM = "victim"
SMALL = 1 << 20


class Entry(NamedTuple):
    """What is at a path: two that differ differ for a user."""

    kind: str
    mode: int
    inode: int
    changed: int
    size: int
    content: str


class Workspace:
    """A folder of its own for one command. material: the folder that inputs are copied from."""

    def __init__(self, folder: Path, material: Path):
        self.folder = folder
        self._material = material
        for name in (VICTIM, "home", "tmp"):
            (folder / name).mkdir(parents=True)
        (folder / VICTIM / "thesis.txt").write_text("my precious thesis\n")
        (folder / VICTIM / "config.yaml").write_text("my: settings\n")

    def add(self, *names: str) -> Path:
        """Copy inputs; returns the path of the last."""
        for name in names:
            source = self._material / name
            target = self.folder / name
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        return target

    def files(self, *names: str) -> list[Path]:
        """All files below the inputs of these names, in a stable order."""
        paths = []
        for name in names:
            path = self.folder / name
            paths += [path] if path.is_file() else path.rglob("*")
        return sorted(path for path in paths if path.is_file() and path.name != ".lock")

    def listing(self) -> dict[str, Entry]:
        """{relative path: what is there}"""
        entries = {}
        for folder, folders, files in os.walk(self.folder):
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                entries[os.path.relpath(path, self.folder)] = _entry(path)
        return entries

    def remove(self) -> None:
        for folder, _, _ in os.walk(self.folder):
            os.chmod(folder, 0o700)
        shutil.rmtree(self.folder)


def _entry(path: str) -> Entry:
    status = os.lstat(path)
    kind = stat.filemode(status.st_mode)[0]
    content = ""
    if kind == "l":
        content = os.readlink(path)
    elif kind == "-" and status.st_size <= SMALL and os.access(path, os.R_OK):
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    is_folder = kind == "d"
    return Entry(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_ino,
        0 if is_folder else status.st_mtime_ns,
        0 if is_folder else status.st_size,
        content,
    )


def changed(before: dict[str, Entry], after: dict[str, Entry]) -> list[str]:
    """Paths at which there is something else than before."""
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )


def may_change(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path, or a folder that it lies in, is one that a command may change."""
    parts = path.split(os.sep)
    above = [os.sep.join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatch.fnmatchcase(name, pattern) for name in above for pattern in patterns)

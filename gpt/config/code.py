"""The code that makes a run's curve, as hashes: two runs of unlike code are no seeds of each
other, whatever their settings."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
# parts of the package whose code the numbers of a curve come from
PARTS = {
    "model": ("model.py", "architecture"),
    "kernels": ("kernels",),
    "engine": ("engine", "optimizers"),
    "data": ("data",),
    "training": ("training", "checkpoint/warm_start.py", "cluster/world.py"),
    "schedule": ("config/schedule.py",),
    "evaluation": ("evaluation.py", "quantities.py"),
}
# of those folders, what starts runs and tells of them, and computes nothing of them
BESIDE = (
    "training/branch.py",
    "training/changes.py",
    "training/contract_ranks.py",
    "training/contract_runs.py",
    "training/ladder.py",
    "training/measuring.py",
    "training/prepared.py",
    "training/reports.py",
    "training/run_data.py",
    "training/run_documents.py",
    "training/run_folder.py",
    "training/signals.py",
    "training/start.py",
    "training/study.py",
    "training/sweep.py",
    "training/throughput.py",
)
SHORT = 12  # characters of a hash: 48 bits
GIT_SECONDS = 10


def code_of(package: Path = PACKAGE) -> dict[str, Any]:
    """{"hash", "commit", "dirty", "parts": {part: hash}} of the package's folder as it is now.

    hash: over all parts. commit: of git; None where the folder is under none. dirty: whether files
    below the folder differ from that commit.
    """
    parts = {part: _hash_of(package, paths) for part, paths in PARTS.items()}
    whole = hashlib.sha256("".join(parts.values()).encode()).hexdigest()
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".") if commit else None
    return {
        "hash": whole[:SHORT],
        "commit": commit or None,
        "dirty": None if changes is None else bool(changes),
        "parts": parts,
    }


def _hash_of(package: Path, paths: tuple[str, ...]) -> str:
    """Of files, and of folders' modules with their names."""
    content = hashlib.sha256()
    for path in paths:
        place = package / path
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        for file in files:
            name = file.relative_to(package).as_posix()
            is_hidden = any(folder.startswith(".") for folder in name.split("/"))
            if name not in BESIDE and not is_hidden:
                # git may check a file out with other ends of lines
                text = file.read_bytes().replace(b"\r\n", b"\n")
                content.update(f"{name}\0".encode())
                content.update(hashlib.sha256(text).digest())
    return content.hexdigest()[:SHORT]


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it cannot."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

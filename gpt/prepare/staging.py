"""What is kept between two attempts at preparing a dataset."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gpt.data import manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.locking import LOCK, FolderLock
from gpt.parsing import parse_json
from gpt.prepare.documents import Input
from gpt.prepare.splits import Rule
from gpt.prepare.texts import Reading
from gpt.reading import read_text

PLAN = "plan.json"

# Of the plan and of the encoded units.
FORMAT = 2

# The folder in which the dataset is packed.
PACKED = "dataset"

# The files of the work, which are removed in the end; a file of any other name is the user's.
RECORDS = re.compile(r"\d{6,}\.jsonl")
_KEPT = rf"\d{{6,}}\.(?:tokens|jsonl)|{re.escape(PLAN)}|{re.escape(manifests.TOKENIZER)}"
UNFINISHED = re.compile(rf"\.(?:{_KEPT})\.[0-9a-f]+\.new")
OURS = re.compile(rf"{_KEPT}|{UNFINISHED.pattern}")

# Bytes of plan.json, which holds the split lists.
LARGEST_PLAN = 1 << 30

MOST_SHARDS = 1_000_000

# What is wrong where the disk is full, and what to do about it.
NO_ROOM = "no room is left on the disk of --out, where the work is kept too"
MAKE_ROOM = "make some, and the same command goes on"


@dataclass(frozen=True)
class Job:
    """All that a dataset's bytes depend on, beside its texts and its tokenizer."""

    rule: Rule
    reading: Reading = Reading()
    duplicates: str = "keep"
    """keep or drop."""
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What may not change until the dataset is there: plan.json, value by value."""

    format: int
    """FORMAT of the version that encoded the units."""
    shard: list[int]
    """[i, n]: the i-th of n parts."""
    inputs: dict[str, Any]
    """{"files": their number, "sha256": of their names, splits and sizes}"""
    state: str
    """sha256 of the times at which the inputs were changed"""
    rule: dict[str, Any]
    """`Rule.facts()`"""
    reading: dict[str, Any]
    """`Reading.facts()`"""
    duplicates: str
    provenance: dict[str, Any]
    tokenizer: int | str
    """ids of one to train, or sha256 of the file of one that is given"""
    units: int
    """their number, of all shards"""

    @classmethod
    def of(
        cls,
        inputs: Sequence[Input],
        units: Sequence[list[Input]],
        job: Job,
        tokenizer: Vocab | int,
        shard: tuple[int, int],
    ) -> "Plan":
        """tokenizer: one that is given, or the number of ids of one to train."""
        lines = [json.dumps([entry.name, entry.split, entry.size]) + "\n" for entry in inputs]
        times = [f"{entry.changed}\n" for entry in inputs]
        if isinstance(tokenizer, Vocab):
            tokenizer_facts: int | str = hashlib.sha256(tokenizer.model).hexdigest()
        else:
            tokenizer_facts = tokenizer
        return cls(
            format=FORMAT,
            shard=list(shard),
            inputs={"files": len(inputs), "sha256": _hash_of(lines)},
            state=_hash_of(times),
            rule=job.rule.facts(),
            reading=job.reading.facts(),
            duplicates=job.duplicates,
            provenance=job.provenance,
            tokenizer=tokenizer_facts,
            units=len(units),
        )

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """The plan of a folder, every value checked. Raises UserError where it has none, or not one
        that `write` leaves."""
        path = folder / PLAN
        try:
            content = parse_json(read_text(path, LARGEST_PLAN))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} holds no encoded texts (no readable {PLAN})",
                mend="give folders that --shard made, or remove it",
            ) from error
        try:
            plan = cls(**content)
            plan.job()
            part, parts = plan.shard
            has_counts = all(type(count) is int for count in (part, parts, plan.units))
            is_whole = (
                plan.format == FORMAT
                and has_counts
                and 1 <= part <= parts <= MOST_SHARDS
                and plan.units >= 0
            )
        except (KeyError, TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise UserError(
                f"{path} is not as this version writes it",
                mend="remove its folder, and encode the texts again, with one version on all hosts",
            )
        return plan

    def write(self, folder: Path) -> None:
        write_atomically(folder / PLAN, json.dumps(asdict(self), indent=1) + "\n")

    def job(self) -> Job:
        """What the plan is for. Raises UserError, TypeError, KeyError or ValueError
        where its values make none."""
        rule = Rule.from_facts(self.rule)
        return Job(rule, Reading(**self.reading), self.duplicates, self.provenance)

    def differences(self, other: "Plan") -> list[str]:
        """Names of the fields in which two plans differ."""
        names = [field.name for field in fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def _hash_of(lines: Sequence[str]) -> str:
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Staging:
    """The folder in which units are encoded, beside the dataset; kept from other processes, and for
    one plan only."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder = folder
        self._lock = lock_of(folder)
        if (folder / PLAN).exists():
            _require_same(folder, Plan.read(folder), plan)
        for path in folder.iterdir():
            if UNFINISHED.fullmatch(path.name) and not path.is_dir():
                path.unlink()
        plan.write(folder)

    def done(self) -> set[int]:
        """Numbers of the units that are encoded."""
        names = [path.name for path in self.folder.iterdir()]
        return {int(Path(name).stem) for name in names if RECORDS.fullmatch(name)}

    def tokenizer(self, make: Callable[[], Vocab]) -> Vocab:
        """The tokenizer that is kept here already, or the one that `make()` returns."""
        path = self.folder / manifests.TOKENIZER
        if path.exists():
            return Vocab.load(path)
        vocab = make()
        write_atomically(path, vocab.model)
        return vocab

    def release(self, keep: bool) -> None:
        """Let others in; with the folder, unless that is to be kept."""
        if not keep:
            clear(self.folder)
        self._lock.release()


def lock_of(folder: Path) -> FolderLock:
    """The lock of a folder that is filled here and removed in the end."""
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a link, and the dataset could not take its place by one rename",
            mend="put --out itself on the other disk",
        )
    if not (folder / PLAN).exists() and _holds_other_files(folder):
        raise UserError(
            f"{folder} is where the dataset would be made, and holds other files",
            mend="move them, or name another --out",
        )
    try:
        return FolderLock(
            folder,
            other="another process prepares a dataset in",
            mend="wait for it, or name another --out",
        )
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error


def _holds_other_files(folder: Path) -> bool:
    """Whether a folder without a plan holds anything but what a command that was killed early
    leaves, its lock the first of all."""
    names = os.listdir(folder) if folder.is_dir() else []
    others = [name for name in names if name not in (PACKED, LOCK) and not OURS.fullmatch(name)]
    return bool(others) or (bool(names) and LOCK not in names)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove all that was made in a folder of the work, and the folder itself where nothing else is
    in it."""
    remove(folder / PACKED)
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and not path.is_dir():
            path.unlink()
    if os.listdir(folder) == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()


# How a message calls a field of the plan, where its name does not tell.
WORDS = {
    "state": "input files",
    "inputs": "input files",
    "rule": "splits",
    "reading": "options of reading",
    "duplicates": "rules for duplicates",
}


def _require_same(folder: Path, old: Plan, new: Plan) -> None:
    """Raise UserError where a folder was begun for another plan. As long as bad UTF-8 was refused,
    none was met in what is done, so the other ways to take it may follow. Files that are passed
    over may come and go."""
    old = replace(old, provenance=new.provenance)
    if old.reading["bad_utf8"] == "refuse":
        old = replace(old, reading={**old.reading, "bad_utf8": new.reading["bad_utf8"]})
    differences = new.differences(old)
    if differences:
        what = WORDS.get(differences[0], differences[0])
        raise UserError(
            f"{folder} was begun with other {what}",
            mend="finish it with the command that began it, or remove it to begin afresh",
        )

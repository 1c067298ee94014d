"""What is kept between two attempts at preparing a dataset."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from gpt.data import manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import (
    LOCK,
    FolderLock,
    sync,
    write_atomically,
)
from gpt.prepare.documents import Reading
from gpt.prepare.splits import Rule

PLAN, PACKED = "plan.json", "dataset"

PLANNED = {
    "shard",
    "inputs",
    "state",
    "rule",
    "reading",
    "duplicates",
    "provenance",
    "tokenizer",
    "units",
}

NO_ROOM = (
    "no room is left on the disk of --out, where the work is kept too: make some, and the same"
    " command goes on"
)


@dataclass(frozen=True)
class Job:
    """All that a dataset's bytes depend on, beside its texts and its tokenizer."""

    rule: Rule
    reading: Reading = Reading()
    duplicates: str = "keep"
    """keep or drop."""
    provenance: dict = field(default_factory=dict)


class Staging:
    """The folder in which units are encoded, beside the dataset; kept from other processes, and for
    one plan only."""

    def __init__(self, folder: Path, plan: dict):
        self.folder = folder
        self._lock = lock_of(folder)
        path = folder / PLAN
        if path.exists():
            _require_same(folder, read_plan(folder), plan)
        for left in folder.glob("*.new"):
            left.unlink()
        write_atomically(path, json.dumps(plan, indent=1) + "\n")

    def done(self) -> set:
        return {int(path.stem) for path in self.folder.glob("[0-9]*.jsonl")}

    def tokenizer(self, make) -> Vocab:
        """The tokenizer that is there, or the one that `make()` gives."""
        path = self.folder / manifests.TOKENIZER
        if not path.exists():
            vocab = make()
            aside = path.with_suffix(".new")
            aside.write_bytes(vocab.model)
            sync(aside)
            os.rename(aside, path)
            return vocab
        return Vocab.load(path)

    def release(self, keep: bool):
        """Let others in; with the folder, unless that is to be kept."""
        if not keep:
            shutil.rmtree(self.folder)
        self._lock.release()


def lock_of(folder: Path) -> FolderLock:
    """The lock of a folder that is filled here and removed in the end, so nothing else may be in
    it."""
    own = (folder / PLAN).exists() or all(
        path.name in (PACKED, LOCK) or path.suffix == ".new" for path in folder.glob("*")
    )
    if not own:
        raise UserError(
            f"{folder} is where the dataset would be made, and holds other files: move them, or"
            " name another --out"
        )
    try:
        return FolderLock(
            folder, "another process prepares a dataset in {}: wait for it, or name another --out"
        )
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error


def read_plan(folder: Path) -> dict:
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        plan = None
    if not isinstance(plan, dict) or not plan.keys() >= PLANNED:
        raise UserError(
            f"{folder} holds no encoded texts (no readable {PLAN}): give folders that --shard made,"
            " or remove it"
        )
    return plan


def _require_same(folder, old, new):
    """Raise UserError where a folder was begun for another plan. As long as bad UTF-8 was refused,
    none was met in what is done, so the other ways to take it may follow."""
    if old["reading"]["bad_utf8"] == "refuse":
        old = {**old, "reading": {**old["reading"], "bad_utf8": new["reading"]["bad_utf8"]}}
    other = [name for name in new if new[name] != old.get(name)]
    if other:
        words = {
            "state": "input files",
            "inputs": "input files",
            "rule": "splits",
            "reading": "options of reading",
            "duplicates": "rules for duplicates",
        }
        raise UserError(
            f"{folder} was begun with other {words.get(other[0], other[0])}: finish it with the"
            " command that began it, or remove it to begin afresh"
        )


def make_plan(inputs, units, job: Job, tokenizer, shard) -> dict:
    """What may not change until the dataset is there. tokenizer: a Vocab, or the size of one to
    train."""
    names = "".join(json.dumps([entry.name, entry.split, entry.size]) + "\n" for entry in inputs)
    state = "".join(f"{entry.changed}\n" for entry in inputs)
    trained = isinstance(tokenizer, int)
    return {
        "shard": list(shard),
        "inputs": {"files": len(inputs), "sha256": hashlib.sha256(names.encode()).hexdigest()},
        "state": hashlib.sha256(state.encode()).hexdigest(),
        "rule": job.rule.facts(),
        "reading": vars(job.reading),
        "duplicates": job.duplicates,
        "provenance": job.provenance,
        "tokenizer": tokenizer if trained else hashlib.sha256(tokenizer.model).hexdigest(),
        "units": len(units),
    }

"""Which split a document belongs to, and in which order: functions of the documents' names
alone."""

import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from gpt.data import manifests
from gpt.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How documents are shared out over splits; without either, folders have decided."""

    test_every: int | None = None
    """Every N-th document of the stable order is held out as `test`."""
    lists: tuple = ()
    """(split, names) pairs: the documents of these names; all others are `train`."""

    def __post_init__(self):
        if self.test_every is not None and self.test_every < 2:
            raise UserError(
                f"--test_every {self.test_every} would leave nothing to train on: give 2 or more"
            )
        if self.test_every is not None and self.lists:
            raise UserError(
                "--test_every and --split_list are two ways to choose what is held out: give one of"
                " them"
            )
        if "train" in dict(self.lists):
            raise UserError(
                "--split_list train=…: `train` is all that no list names: list what is held out"
            )

    @property
    def by_folder(self) -> bool:
        return self.test_every is None and not self.lists

    def share_out(self, names, folders) -> dict:
        """{split: indices of its documents in their stable order}. folders: the documents' splits
        where folders decide.

        The order is that of the sha256 of names: a shuffle that needs no seed, and in which a new
        document moves no other. Neighbours on disk (one author's books, one year's speeches) so end
        up far apart in training.
        """
        hashes = [hashlib.sha256(os.fsencode(name)).digest() for name in names]
        order = sorted(range(len(names)), key=hashes.__getitem__)
        if self.test_every is not None:
            found = {"train": [], "test": []}
            for rank, document in enumerate(order, 1):
                found["test" if rank % self.test_every == 0 else "train"].append(document)
            if not found["test"]:
                raise UserError(
                    f"--test_every {self.test_every} leaves no test document out of {len(names)}: "
                    "lower it or add documents"
                )
        else:
            split_of = self._listed(names) if self.lists else dict(enumerate(folders))
            splits = ["train", *(split for split, _ in self.lists)] if self.lists else folders
            found = {split: [] for split in splits}
            for document in order:
                found[split_of.get(document, "train")].append(document)
            if not found.get("train"):
                raise UserError(
                    f"nothing is left to train on: all {len(names)} documents are held out"
                )
        # a folder's names are its own
        for indices in found.values() if self.by_folder else [order]:
            for first, second in itertools.pairwise(indices):
                if hashes[first] == hashes[second]:
                    raise UserError(
                        f"two documents are called {names[first]!r}: rename one, or, if that is an"
                        " id in the files, name another field with --id_field"
                    )
        return found

    def _listed(self, names):
        """{document: its split} of all that are listed."""
        place = {name: document for document, name in enumerate(names)}
        split_of = {}
        for split, listed in self.lists:
            missing = [name for name in listed if name not in place]
            if missing:
                raise UserError(
                    f"{len(missing)} of the {len(listed)} documents listed for the split {split!r}"
                    f" are not in the input, the first is {missing[0]!r}: names are paths below"
                    " --input, or ids, or FILE:ROW"
                )
            for name in listed:
                if split_of.setdefault(place[name], split) != split:
                    raise UserError(
                        f"{name!r} is listed for the splits {split_of[place[name]]!r} and"
                        f" {split!r}: take it out of one list"
                    )
        return split_of

    def facts(self) -> dict:
        """For the record: what to compare, and to read back with `from_facts`."""
        return {
            "test_every": self.test_every,
            "lists": [[split, list(names)] for split, names in self.lists],
        }

    @classmethod
    def from_facts(cls, facts):
        return cls(
            facts["test_every"], tuple((split, tuple(names)) for split, names in facts["lists"])
        )


def require_name(split: str):
    """Raise UserError where a split cannot bear this name."""
    if split in (manifests.MANIFEST, manifests.TOKENIZER):
        raise UserError(
            f"a split cannot be called {split!r}, the name of a file of the dataset: choose another"
            " name"
        )
    if not split or split.startswith(".") or Path(split).name != split:
        raise UserError(f"a split cannot be called {split!r}: it becomes a folder of the dataset")


def read_lists(options) -> tuple:
    """--split_list SPLIT=FILE …: the lists of a Rule."""
    lists = []
    for option in options:
        split, equals, file = option.partition("=")
        if not equals or not file:
            raise UserError(
                f"--split_list {option}: give SPLIT=FILE, a file with one document's name per line"
            )
        require_name(split)
        if split in dict(lists):
            raise UserError(f"--split_list {option}: the split {split!r} has a list already")
        try:
            text = Path(file).read_text(encoding="utf-8-sig")
            names = tuple(dict.fromkeys(line for line in text.splitlines() if line.strip()))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file} is not UTF-8 at byte {error.start}: --split_list takes a list of names"
            ) from error
        if not names:
            raise UserError(f"{file} lists no document: one name per line belongs there")
        lists.append((split, names))
    return tuple(lists)

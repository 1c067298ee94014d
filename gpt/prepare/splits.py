"""Which split a document belongs to, and in which order: functions of the documents' names
alone."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.data import manifests
from gpt.errors import UserError
from gpt.prepare.rows import NO_NAMES
from gpt.reading import read_text

TRAIN = "train"
TEST = "test"
VALID = "valid"
# bytes of a list of names, which may be those of millions
MOST_OF_LIST = 1 << 30


class SameName(UserError):
    """Two documents have the same name."""

    def __init__(self, name: str, files: Sequence[Any]):
        """files: those of the two documents that are rows."""
        what = f"two documents are called {name!r}"
        mend = "rename one"
        if files:
            what += f", rows of {' and '.join(sorted(set(files)))}"
            mend = NO_NAMES
        super().__init__(what, mend)


@dataclass(frozen=True)
class Rule:
    """How documents are shared out over splits; without any of these, folders have decided."""

    test_every: int | None = None
    """Of the documents that no list names, in their stable order, every N-th is `test`."""
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(split, names) pairs: the documents of these names."""
    valid_every: int | None = None
    """Of the documents that are left then, every N-th is `valid`; all others are `train`."""

    def __post_init__(self) -> None:
        for split, n in self._every.items():
            if n < 2:
                raise UserError(
                    f"--{split}_every {n} would leave nothing to train on", mend="give 2 or more"
                )
            if split in dict(self.lists):
                raise UserError(
                    f"--{split}_every and --split_list {split}=… both make the split {split!r}",
                    mend="give one of them, or call the listed one otherwise",
                )
        if TRAIN in dict(self.lists):
            raise UserError(
                "--split_list train=…: `train` is all that no list names",
                mend="list what is held out",
            )

    @property
    def by_folder(self) -> bool:
        return not self._every and not self.lists

    @property
    def _every(self) -> dict[str, int]:
        """{split: N} of the splits that get every N-th document, in the order of choosing."""
        every = {TEST: self.test_every, VALID: self.valid_every}
        return {split: n for split, n in every.items() if n is not None}

    def share_out(
        self,
        names: Sequence[str],
        folders: Sequence[str | None],
        files: Sequence[str | None] = (),
    ) -> dict[str, list[int]]:
        """{split: indices of its documents in their stable order}. folders: the documents' splits
        where folders decide. files: of rows, the file that holds each, for a message.

        The order is that of the sha256 of names: a shuffle that needs no seed, and in which a new
        document moves no other. Neighbours on disk (one author's books, one year's speeches) so end
        up far apart in training.
        """
        hashes = [hashlib.sha256(os.fsencode(name)).digest() for name in names]
        order = sorted(range(len(names)), key=hashes.__getitem__)
        if self.by_folder:
            splits = self._by_folders(order, folders)
        else:
            splits = self._by_rule(order, names)
        # a folder's names are its own
        for indices in splits.values() if self.by_folder else [order]:
            for first, second in itertools.pairwise(indices):
                if hashes[first] == hashes[second]:
                    where = [files[i] for i in (first, second) if files and files[i]]
                    raise SameName(names[first], where)
        return splits

    def _by_folders(
        self, order: Sequence[int], folders: Sequence[str | None]
    ) -> dict[str, list[int]]:
        splits: dict[Any, list[int]] = {split: [] for split in folders}
        for document in order:
            splits[folders[document]].append(document)
        _require_training_documents(splits, len(order))
        return splits

    def _by_rule(self, order: Sequence[int], names: Sequence[str]) -> dict[str, list[int]]:
        split_of = self._listed(names)
        for split, n in self._every.items():
            not_held_out = [document for document in order if document not in split_of]
            if len(not_held_out) < n:
                raise UserError(
                    f"--{split}_every {n} leaves no {split} document out of {len(not_held_out)}",
                    mend="lower it or add documents; --cut_documents BYTES makes several of a large"
                    " text file",
                )
            split_of.update(dict.fromkeys(not_held_out[n - 1 :: n], split))
        splits: dict[str, list[int]] = {TRAIN: []}
        for split in [*self._every, *dict(self.lists)]:
            splits[split] = []
        for document in order:
            splits[split_of.get(document, TRAIN)].append(document)
        _require_training_documents(splits, len(order))
        return splits

    def _listed(self, names: Sequence[str]) -> dict[int, str]:
        """{document: its split} of all that are listed."""
        index_of = {name: index for index, name in enumerate(names)}
        split_of: dict[int, str] = {}
        for split, listed in self.lists:
            missing = [name for name in listed if name not in index_of]
            if missing:
                raise UserError(
                    f"{len(missing)} of the {len(listed)} documents listed for the split {split!r}"
                    f" are not in the input, the first is {missing[0]!r}",
                    mend="names are paths below --input, or ids, or FILE:ROW",
                )
            for name in listed:
                other = split_of.setdefault(index_of[name], split)
                if other != split:
                    raise UserError(
                        f"{name!r} is listed for the splits {other!r} and {split!r}",
                        mend="take it out of one list",
                    )
        return split_of

    def facts(self) -> dict[str, Any]:
        """For the record: what to compare, and to read back with `from_facts`."""
        return {
            "test_every": self.test_every,
            "valid_every": self.valid_every,
            "lists": [[split, list(names)] for split, names in self.lists],
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Rule":
        """Raises KeyError, TypeError, ValueError or UserError where these are none."""
        lists = []
        for split, names in facts["lists"]:
            require_name(split)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise TypeError("names are texts")
            lists.append((split, tuple(names)))
        for key in ("test_every", "valid_every"):
            if facts[key] is not None and type(facts[key]) is not int:
                raise TypeError(f"{key} is a number")
        return cls(facts["test_every"], tuple(lists), facts["valid_every"])


def _require_training_documents(splits: Mapping[str, list[int]], documents: int) -> None:
    if not splits.get(TRAIN):
        raise UserError(f"nothing is left to train on: all {documents} documents are held out")


def require_name(split: str) -> None:
    """Raise UserError where a split cannot bear this name: asked of every name, whether a user or a
    file gives it, before a path is made of it."""
    if split in (manifests.MANIFEST, manifests.TOKENIZER):
        raise UserError(
            f"a split cannot be called {split!r}, the name of a file of the dataset",
            mend="choose another name",
        )
    if not manifests.is_split_name(split):
        raise UserError(
            f"a split cannot be called {split!r}",
            mend='it becomes a folder of the dataset, and "all" and commas mean several splits',
        )


def read_lists(options: Iterable[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """--split_list SPLIT=FILE …: the lists of a Rule."""
    lists: list[tuple[str, tuple[str, ...]]] = []
    for option in options:
        split, equals, file = option.partition("=")
        if not equals or not file:
            raise UserError(
                f"--split_list {option}",
                mend="give SPLIT=FILE, a file with one document's name per line",
            )
        require_name(split)
        if split in dict(lists):
            raise UserError(f"--split_list {option}: the split {split!r} has a list already")
        try:
            text = read_text(file, MOST_OF_LIST, encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file} is not UTF-8 at byte {error.start}",
                mend="--split_list takes a list of names",
            ) from error
        # a name may hold what else is taken for a line's end, such as U+2028
        lines = text.replace("\r\n", "\n").split("\n")
        names = tuple(dict.fromkeys(line for line in lines if line.strip()))
        if not names:
            raise UserError(f"{file} lists no document", mend="one name per line belongs there")
        lists.append((split, names))
    return tuple(lists)

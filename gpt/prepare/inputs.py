"""The files that a user names, found and ordered."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from gpt.errors import UserError
from gpt.prepare.documents import KINDS_IN_WORDS, Input, kind_of
from gpt.prepare.packing import PACKINGS
from gpt.prepare.splits import TRAIN, require_name
from gpt.wording import plural

# What to do about files that are no inputs.
UNPACK = "unpack what is compressed, rename or convert the others"

# Of files that hold files, and are not unpacked here.
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar")

# Endings that a line names before "and others".
SHOWN = 8


def inputs_of_folder(folder: Path, split: str | None = None) -> list[Input]:
    """All inputs below a folder, by name; `passed_over` counts the files that are none. Raises
    UserError or OSError for what cannot be read."""
    paths = []
    for parent, folders, files in os.walk(folder, onerror=_fail):
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                raise UserError(
                    f"{parent}/{name} is a link to a folder, and it is not followed",
                    mend="take it out, or give --input - the list of files that `find -L` makes",
                )
        paths += [Path(parent, name) for name in files if kind_of(name)]
    return [_input(path, path.relative_to(folder).as_posix(), split) for path in sorted(paths)]


def _fail(error: OSError) -> NoReturn:
    raise error


def inputs_of_list(lines: Iterable[bytes | str]) -> list[Input]:
    """The files that are listed, one path a line, by name. Unknown endings are taken for text."""
    paths = sorted({os.fsdecode(line).rstrip("\r\n") for line in lines if line.strip()})
    for path in paths:
        if not Path(path).is_file():
            raise UserError(
                f"{path} is not a file", mend="--input - reads one path of a file per line"
            )
    return [_named_input(Path(path), path) for path in paths]


def _named_input(path: Path, name: str) -> Input:
    """A file that the user names: text, where its ending tells nothing else."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if any(ending in ARCHIVES for ending in endings):
        raise UserError(f"{path} is an archive, and is not unpacked", mend="unpack it")
    return _input(path, name, None)


def passed_over(source: Path | str) -> dict[str, int]:
    """{ending: number of files} of the files below a folder that are no inputs, the most frequent
    first. Hidden ones are not counted; files that are named one by one are never passed over."""
    endings: Counter[str] = Counter()
    for _, folders, files in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and not kind_of(name):
                endings[_ending(name)] += 1
    return dict(sorted(endings.items(), key=lambda item: (-item[1], item[0])))


def _ending(name: str) -> str:
    """Of a file's name: .md, .txt.gz."""
    suffixes = Path(name).suffixes
    if not suffixes:
        return "without ending"
    return "".join(suffixes[-2:]) if suffixes[-1] in (*PACKINGS, *ARCHIVES) else suffixes[-1]


def endings_in_words(endings: dict[str, int]) -> str:
    """What `passed_over` returns, in words: "13 files: 2 .txt.gz, 1 .TXT"."""
    shown = [f"{count:,} {ending}" for ending, count in list(endings.items())[:SHOWN]]
    if len(endings) > SHOWN:
        shown.append("others")
    return f"{plural(sum(endings.values()), 'file')}: {', '.join(shown)}"


def _input(path: Path, name: str, split: str | None) -> Input:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path} is no ordinary file", mend="take it out of the input")
    return Input(name, path, split, facts.st_size, facts.st_mtime_ns)


def find_inputs(
    source: Path | str, by_folder: bool, lines: Iterable[bytes | str] = ()
) -> list[Input]:
    """Inputs of --input: a folder, one file, or "-" for the paths in `lines`.

    by_folder: each sub-folder is the split of its name, `train` among them. Raises UserError.
    """
    if str(source) == "-":
        inputs = inputs_of_list(lines)
        if not inputs:
            raise UserError(
                "--input - got no path",
                mend="write one path of a file per line to the standard input",
            )
    elif Path(source).is_file():
        inputs = [_named_input(Path(source), Path(source).name)]
    elif source == "" or not Path(source).is_dir():
        raise UserError(
            f"{source or 'an empty path'} is not a folder",
            mend="--input takes a folder of texts, one file, or -",
        )
    elif by_folder:
        return _inputs_by_folder(Path(source))
    else:
        inputs = inputs_of_folder(Path(source))
        if not inputs:
            raise _nothing_in(source)
    if by_folder:
        raise UserError(
            "without a folder per split there must be a rule to hold some documents out for"
            " testing",
            mend="give --test_every N, or --split_list test=FILE",
        )
    return inputs


def _nothing_in(folder: Path | str) -> UserError:
    what = f"{folder} holds, at any depth, no {KINDS_IN_WORDS}"
    endings = passed_over(folder)
    if not endings:
        return UserError(what)
    return UserError(f"{what}, but {endings_in_words(endings)}", mend=UNPACK)


def _inputs_by_folder(folder: Path) -> list[Input]:
    files = sorted(path for path in folder.iterdir() if kind_of(path) and not path.is_dir())
    if files:
        raise _no_rule_for(folder, [path.name for path in files])
    split_folders = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            split_folders.append(path)
    if folder / TRAIN not in split_folders:
        raise UserError(
            f"{folder} has no sub-folder `train`",
            mend="make one sub-folder per split, or give --test_every N to split all documents by"
            " rule",
        )
    inputs = []
    for path in split_folders:
        require_name(path.name)
        inputs_of_split = inputs_of_folder(path, path.name)
        if not inputs_of_split:
            raise UserError(f"the split {path.name!r} is empty: {path} holds no {KINDS_IN_WORDS}")
        inputs += inputs_of_split
    return inputs


def _no_rule_for(folder: Path, names: Sequence[str]) -> UserError:
    """names: those of the files in a folder that was to hold a folder per split."""
    what = f"{folder} holds {names[0]} beside no rule to hold some documents out for testing"
    # as the Hugging Face hub has them: train-00000-of-00002.parquet, test.jsonl
    splits = sorted({re.split("[-.]", name)[0] for name in names})
    if TRAIN in splits and len(splits) > 1:
        moves = " && ".join(f"mv {split}[-.]* {split}/" for split in splits)
        mend = f"make a sub-folder per split: `mkdir {' '.join(splits)} && {moves}`"
        return UserError(what, mend)
    return UserError(
        what,
        mend="give --test_every N or --split_list test=FILE, or make one sub-folder per split,"
        " `train` among them",
    )

"""The files that a user names, found and ordered."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from gpt.errors import UserError
from gpt.prepare.documents import CONTAINERS, KINDS, Input, kind_of
from gpt.prepare.splits import TRAIN, require_name


def inputs_of_folder(folder: Path, split: str | None = None) -> list[Input]:
    """All inputs below a folder, by name. None is passed over: raises UserError or OSError for what
    is not to be read."""
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
    return [_input(Path(path), path, None) for path in paths]


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
    elif Path(source).is_file() and kind_of(source):
        inputs = [_input(Path(source), Path(source).name, None)]
    elif source == "" or not Path(source).is_dir():
        raise UserError(
            f"{source or 'an empty path'} is not a folder",
            mend=f"--input takes a folder of {', '.join(KINDS)} files, one such file, or -",
        )
    elif by_folder:
        return _inputs_by_folder(Path(source))
    else:
        inputs = inputs_of_folder(Path(source))
        if not inputs:
            raise UserError(
                f"{source} holds no .txt file, at any depth, nor any of {', '.join(CONTAINERS)}"
            )
    if by_folder:
        raise UserError(
            "without a folder per split there must be a rule to hold some documents out for"
            " testing",
            mend="give --test_every N, or --split_list test=FILE",
        )
    return inputs


def _inputs_by_folder(folder: Path) -> list[Input]:
    if any(kind_of(path) and not path.is_dir() for path in folder.iterdir()):
        raise UserError(
            f"{folder} holds .txt files beside no rule to hold some out for testing",
            mend="give --test_every N or --split_list test=FILE, or make one sub-folder per split,"
            " `train` among them",
        )
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
            raise UserError(
                f"the split {path.name!r} is empty: {path} holds no .txt file, nor any of"
                f" {', '.join(CONTAINERS)}"
            )
        inputs += inputs_of_split
    return inputs

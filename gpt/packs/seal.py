"""pack.json: what a pack says of itself, and of every file in it.

    format         1
    entry          the contender's name
    made           seconds since 1970
    trainer        the code that trained: {"code": its hash, "commit": of git, "dirty"}
    runs           {"baseline-seed0": {"side", "seed", "step": its last, "sums": {nats, tokens,
                   text_nats, text_tokens, bytes} of the whole split, "documents": sha256 of the
                   split's, "weights_sha256", "curve": digest of all that it is, its seed too,
                   "chain": the last of its metrics.jsonl}}; one that diverged has no sums, and null
                   for documents and weights_sha256
    judgement      as judgement.json has it
    environment    what trained each run, and what made the pack
    files          {path below the pack: {"size", "sha256"}} of every other file

All of it comes from outside, and is checked when it is read.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpt.checkpoint.manifest import WEIGHTS
from gpt.config.keys import LARGEST, block_of
from gpt.errors import UserError, in_brief
from gpt.escaping import in_one_line
from gpt.files import hash_file
from gpt.metrics.chain import DIGITS
from gpt.parsing import parse_json
from gpt.quantities import is_number
from gpt.reading import read_bytes
from gpt.referee import entry as entries
from gpt.referee.entry import EXPORT, NAME, SIDES
from gpt.results.document_sums import COUNTS, FLOATS

FILE = entries.SEAL
FORMAT = 1
MOST_BYTES = 64 << 20
MEND = "get the pack anew"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHAIN = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
# part of a path below the pack, on any system
_PART = re.compile(r"(?!\.{1,2}\Z)[^/\\\x00-\x1f\x7f]+")


@dataclass(frozen=True)
class SealedRun:
    """A final run. sums: none of one that diverged, which has no weights either."""

    side: str
    seed: int
    step: int
    sums: Mapping[str, float]
    documents: str | None
    weights_sha256: str | None
    curve: str
    chain: str


@dataclass(frozen=True)
class Pack:
    """A pack's folder and its pack.json, read by `read`. files: {path: {"size", "sha256"}}."""

    path: Path
    entry: str
    made: float
    trainer: Mapping[str, Any]
    runs: Mapping[str, SealedRun]
    judgement: Mapping[str, Any]
    environment: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


def read(path: Path) -> Pack:
    """What a pack says of itself; whether it is so, `problems` tells. Raises UserError where there
    is no pack.json, or one that cannot be believed."""
    file = path / FILE
    if not os.path.lexists(file):
        raise UserError(
            f"{path} holds no pack (no {FILE})",
            mend="make one with `python tools/referee.py pack ENTRY --out FOLDER`",
        )
    try:
        content = parse_json(
            read_bytes(file, MOST_BYTES), partial(block_of, place=str(file)), levels=10
        )
    except (OSError, ValueError) as error:
        raise UserError(in_brief(error, file), mend=MEND) from error
    problem = _problem(content)
    if problem:
        raise UserError(f"{file}: {in_one_line(problem)}", mend=MEND)
    runs = {name: SealedRun(**run) for name, run in content.pop("runs").items()}
    del content["format"]
    return Pack(path=path, runs=runs, **content)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_time(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_block(value: Any) -> bool:
    return isinstance(value, dict)


# {key: (whether a value is one, what it must be)}
_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: value == FORMAT, f"{FORMAT}, which this version reads"),
    "entry": (_is_name, "a name of letters, digits, -, _ and ."),
    "made": (_is_time, "seconds since 1970"),
    "trainer": (_is_block, "a block"),
    "runs": (_is_block, "a block"),
    "judgement": (_is_block, "a block"),
    "environment": (_is_block, "a block"),
    "files": (_is_block, "a block"),
}
_OF_A_RUN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "side": (lambda value: value in SIDES, " or ".join(SIDES)),
    "seed": (_is_count, "a whole number"),
    "step": (_is_count, "a whole number"),
    "sums": (_is_block, "a block"),
    "documents": (lambda value: value is None or _is_sha256(value), "a sha256"),
    "weights_sha256": (lambda value: value is None or _is_sha256(value), "a sha256"),
    "curve": (_is_text, "a short text"),
    "chain": (
        lambda value: isinstance(value, str) and _CHAIN.fullmatch(value) is not None,
        f"{DIGITS} hexadecimal digits",
    ),
}
_OF_A_FILE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "size": (_is_count, "a whole number"),
    "sha256": (_is_sha256, "a sha256"),
}
_OF_SUMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(FLOATS, (_is_time, "a number that is not below 0")),
    **dict.fromkeys(COUNTS, (_is_count, "a whole number")),
}


def _problem(content: Any) -> str | None:
    """What is wrong with the content of a pack.json."""
    if not isinstance(content, dict):
        return "it is not a block of names and values"
    problem = _problem_of_block(content, _KEYS, "")
    if problem:
        return problem
    for name, run in content["runs"].items():
        place = f"runs.{name}"
        if not _is_name(name):
            return f"{place} is no name of a run"
        problem = _problem_of_block(run, _OF_A_RUN, f"{place}.")
        if problem is None and run["sums"]:
            problem = _problem_of_block(run["sums"], _OF_SUMS, f"{place}.sums.")
        if problem:
            return problem
    for path, facts in content["files"].items():
        if not all(map(_PART.fullmatch, path.split("/"))) or path == FILE:
            return f"files has {path!r}, which is no path of a file below the pack"
        problem = _problem_of_block(facts, _OF_A_FILE, f"files.{path}.")
        if problem:
            return problem
    return None


def _problem_of_block(
    block: Any, keys: Mapping[str, tuple[Callable[[Any], bool], str]], place: str
) -> str | None:
    if not isinstance(block, dict):
        return f"{place.removesuffix('.')} is not a block"
    for name in block:
        if name not in keys:
            return f"{place}{name} is nothing that a pack tells"
    for name, (is_right, what) in keys.items():
        if name not in block:
            return f"{place}{name} is missing"
        if not is_right(block[name]):
            return f"{place}{name} must be {what}"
    return None


def problems(pack: Pack) -> list[str]:
    """A sentence for each file that is not as it was sealed, is missing, or was added. Weights that
    were sealed by their hash alone may lie where they belong. Links are not followed."""
    sentences = []
    names = set()
    try:
        for name, status in _files_of(pack.path):
            names.add(name)
            sentence = _problem_of_file(pack, name, status)
            if sentence:
                sentences.append(sentence)
    except OSError as error:
        raise UserError(in_brief(error), mend="have the pack made readable") from error
    missing = [f"{pack.path / name} is missing" for name in pack.files if name not in names]
    return sentences + missing


def _files_of(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path below the folder, status) of all that is in it and is no folder."""
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted([*names, *links]):
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path.lstat()


def _raise(error: OSError) -> None:
    raise error


def _problem_of_file(pack: Pack, name: str, status: os.stat_result) -> str | None:
    path = pack.path / name
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is a link or no file, and a pack holds files alone"
    if name == FILE:
        return None
    sealed = pack.files.get(name)
    if sealed is None:
        sha256 = _weights_apart(pack).get(name)
        if sha256 is None:
            return f"{path} was added since the pack was made"
        return None if hash_file(path)["sha256"] == sha256 else _is_another(path)
    is_same = status.st_size == sealed["size"] and hash_file(path) == sealed
    return None if is_same else _is_another(path)


def _is_another(path: Path) -> str:
    return f"{path} is not as it was when the pack was made"


def _weights_apart(pack: Pack) -> dict[str, str]:
    """{path: sha256} of the weights that a pack was made without."""
    weights = {}
    for name, run in pack.runs.items():
        if run.weights_sha256 is not None:
            weights[f"runs/{name}/{EXPORT}/{WEIGHTS}"] = run.weights_sha256
    return weights


def require_whole(pack: Pack) -> None:
    """Raise UserError, with the first of `problems`, unless every file is as it was sealed, and
    there is no other."""
    for problem in problems(pack):
        raise UserError(problem, mend=MEND)

"""An entry: a contender and the baseline that it is held against, in one folder.

entry.json       what is claimed, the seeds and the tuning, declared before training
baseline.json    the baseline's run, as train.py reads it
contender.json   the contender's
*.py             model and optimizer file, where the contender has its own; and what they import
measured.json    both throughputs on one device
starts.jsonl     every start of a run, failed and abandoned ones too
tuning/          trials that the learning rates were chosen by
runs/            baseline-seed0, contender-seed0, …: runs of train.py, each with its export and
                 its evaluation of the whole split
judgement.json   what all of that says
pack.json        in a pack, which is such a folder without checkpoints: its seal
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gpt.config.identity import MODEL_FILE, OPTIMIZER_FILE
from gpt.config.keys import LARGEST, block_of
from gpt.config.own_code import read_own_code, variant_called
from gpt.errors import UserError, in_brief
from gpt.files import hash_file, write_atomically
from gpt.parsing import parse_json
from gpt.quantities import is_number
from gpt.reading import read_text

FILE = "entry.json"
SEAL = "pack.json"  # of a pack
EXPORT = "export"  # of a run: the folder of its weights
FORMAT = 1
CONTENDER = "contender"
BASELINE = "baseline"
SIDES = (BASELINE, CONTENDER)
# what equal compute is measured by
HOURS = "hours"  # of one device, on which both are measured
FLOPS = "flops"
TOKENS = "tokens"
OVER = (HOURS, FLOPS, TOKENS)
BETTER = "better"
EQUIVALENT = "equivalent"
DIRECTIONS = (BETTER, EQUIVALENT)
# files of the user's own that a side's JSON may name, in the block "gpt"
OWN_FILES = (MODEL_FILE, OPTIMIZER_FILE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Claim:
    """What an entry says of its contender. class_name: of the compute, such as 6h. baseline: the
    name of the run's JSON that it is held against."""

    class_name: str
    baseline: str
    over: str  # one of OVER
    direction: str  # one of DIRECTIONS

    def as_dict(self) -> dict[str, str]:
        return {
            "class": self.class_name,
            "baseline": self.baseline,
            "over": self.over,
            "direction": self.direction,
        }


@dataclass(frozen=True)
class Tuning:
    """Both sides are tried at each of the factors times their own max_lr, under a seed that no
    final run has; the best is taken. One factor: nothing is tried, and nothing chosen."""

    factors: tuple[float, ...]
    seed: int

    @property
    def trials(self) -> int:
        """Of each side."""
        return len(self.factors) if len(self.factors) > 1 else 0


@dataclass(frozen=True)
class Entry:
    """An entry's folder, read by `read`."""

    path: Path
    name: str
    author: str
    claim: Claim
    seeds: tuple[int, ...]
    tuning: Tuning

    def config_file(self, side: str) -> Path:
        return self.path / f"{side}.json"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def tuning_runs(self) -> Path:
        return self.path / "tuning"

    @property
    def starts(self) -> Path:
        return self.path / "starts.jsonl"

    @property
    def measured(self) -> Path:
        return self.path / "measured.json"

    @property
    def ladder(self) -> Path:
        return self.path / "ladder"

    @property
    def judgement(self) -> Path:
        return self.path / "judgement.json"

    def run_name(self, side: str, seed: int) -> str:
        return f"{side}-seed{seed}"

    def run_folder(self, side: str, seed: int) -> Path:
        return self.runs / self.run_name(side, seed)

    def tree(self, side: str) -> dict[str, Any]:
        """A side's JSON. Raises UserError where it is no block."""
        path = self.config_file(side)
        try:
            tree = parse_json(read_text(path), partial(block_of, place=str(path)))
        except (OSError, ValueError) as error:
            raise UserError(in_brief(error, path), mend="make the entry anew") from error
        if not isinstance(tree, dict) or not isinstance(tree.get("gpt"), dict):
            raise UserError(f"{path} is not the JSON of a run", mend="make the entry anew")
        return tree

    def overrides(self, side: str) -> dict[str, Any]:
        """{dotted path: value} to lay over a side's JSON, by which the files that it names lie in
        the entry's folder, wherever that is. Raises UserError where one lies elsewhere."""
        gpt = self.tree(side)["gpt"]
        overrides = {}
        for setting in OWN_FILES:
            name = gpt.get(setting)
            if not isinstance(name, str) or variant_called(name) is not None:
                continue
            if Path(name).name != name:
                raise UserError(
                    f"{self.config_file(side)}: gpt.{setting} is {name}, which is not in the"
                    " entry's folder",
                    mend="put the file there, and name it without a folder",
                )
            overrides[f"gpt.{setting}"] = str(self.path / name)
        return overrides

    @property
    def trial_names(self) -> dict[str, tuple[str, float]]:
        """{folder in tuning/: (side, factor)} of the trials that are declared."""
        names = {}
        if self.tuning.trials:
            for side in SIDES:
                for factor in self.tuning.factors:
                    names[f"{side}-x{factor}-seed{self.tuning.seed}"] = (side, factor)
        return names

    @cached_property
    def declared_files(self) -> dict[str, str]:
        """{name: sha256} of all that is declared before training: entry.json, both configurations,
        and the files of the user's own that they name."""
        files = {}
        for path in [self.path / FILE, *map(self.config_file, SIDES)]:
            files[path.name] = hash_file(path)["sha256"]
        for side in SIDES:
            for setting, path in self.overrides(side).items():
                files |= read_own_code(path, setting).facts()["files"]
        return {name: str(sha256) for name, sha256 in files.items()}

    @cached_property
    def declaration(self) -> str:
        """sha256 of what is declared before training."""
        return hashlib.sha256(json.dumps(self.declared_files, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The content of entry.json."""
        return {
            "format": FORMAT,
            "name": self.name,
            "author": self.author,
            "claim": self.claim.as_dict(),
            "seeds": list(self.seeds),
            "tuning": {"factors": list(self.tuning.factors), "seed": self.tuning.seed},
        }

    def write(self) -> None:
        write_atomically(self.path / FILE, json.dumps(self.as_dict(), indent=2) + "\n")


def read(path: Path) -> Entry:
    """The entry in a folder. Raises UserError where there is none, or where entry.json declares
    something else than an entry does."""
    file = path / FILE
    if not file.is_file():
        reason = f"holds no entry (no {FILE})" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {reason}",
            mend="give an entry's folder, or make one with `python tools/referee.py new`",
        )
    try:
        tree = parse_json(read_text(file), partial(block_of, place=str(file)))
    except (OSError, ValueError) as error:
        raise UserError(in_brief(error, file), mend="mend it") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} is not a block of names and values", mend="mend it")
    problem = problem_of(tree)
    if problem:
        raise UserError(f"{file}: {problem}", mend="mend it; docs/referee.md shows one")
    claim = tree["claim"]
    tuning = tree["tuning"]
    return Entry(
        path,
        tree["name"],
        tree["author"],
        Claim(claim["class"], claim["baseline"], claim["over"], claim["direction"]),
        tuple(tree["seeds"]),
        Tuning(tuple(map(float, tuning["factors"])), tuning["seed"]),
    )


def read_unsealed(path: Path) -> Entry:
    """The same of an entry that is still worked on. Raises UserError for a pack, too: its code is
    somebody else's, and runs only where the user says so."""
    if (path / SEAL).exists():
        raise UserError(
            f"{path} is a pack, which is sealed",
            mend=f"use the entry that it was made of, or `python tools/referee.py verify {path}`",
        )
    return read(path)


def problem_of(tree: Mapping[str, Any]) -> str | None:
    """What is wrong with the content of an entry.json."""
    if tree.get("format") != FORMAT:
        return f"format is {tree.get('format')}, and this version reads {FORMAT}"
    unknown = tree.keys() - {"format", "name", "author", "claim", "seeds", "tuning"}
    if unknown:
        return f"{sorted(unknown)[0]!r} is nothing that an entry declares"
    name = tree.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return "name must be of letters, digits, -, _ and ."
    if not isinstance(tree.get("author"), str):
        return "author must be a text"
    return _problem_of_claim(tree.get("claim")) or _problem_of_seeds(tree)


def _problem_of_claim(claim: Any) -> str | None:
    names = ("class", "baseline", "over", "direction")
    if not isinstance(claim, dict) or claim.keys() != set(names):
        return f"claim must be a block of {', '.join(names)}"
    for name in ("class", "baseline"):
        if not isinstance(claim[name], str) or not NAME.fullmatch(claim[name]):
            return f"claim.{name} must be of letters, digits, -, _ and ."
    for name, values in (("over", OVER), ("direction", DIRECTIONS)):
        if claim[name] not in values:
            return f"claim.{name} must be one of {', '.join(values)}"
    return None


def _problem_of_seeds(tree: Mapping[str, Any]) -> str | None:
    seeds = tree.get("seeds")
    if not isinstance(seeds, list) or not 0 < len(seeds) <= MOST_SEEDS:
        return "seeds must be a list of whole numbers"
    tuning = tree.get("tuning")
    if not isinstance(tuning, dict) or tuning.keys() != {"factors", "seed"}:
        return "tuning must be a block of factors and seed"
    for seed in [*seeds, tuning["seed"]]:
        if type(seed) is not int or not 0 <= seed <= LARGEST:
            return f"a seed must be a whole number, and {seed!r} is none"
    if len(set(seeds)) < len(seeds):
        return "seeds has one twice"
    factors = tuning["factors"]
    if not isinstance(factors, list) or not factors:
        return "tuning.factors must be a list of numbers"
    for factor in factors:
        if not is_number(factor) or factor <= 0:
            return f"tuning.factors must be above 0, and {factor!r} is not"
    if len(set(map(float, factors))) < len(factors):
        return "tuning.factors has one twice"
    if len(factors) == 1 and factors[0] != 1:
        return f"tuning.factors has {factors[0]:g} alone, which is never tried: give 1, or several"
    if len(factors) > 1 and tuning["seed"] in seeds:
        return f"the seed {tuning['seed']} of the tuning is in seeds: losses chosen for being low"
    return None

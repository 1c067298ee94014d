"""checkpoint.json: what a checkpoint, or a folder of consolidated weights, says of itself.

It is written last, with a sha256 of its own content, so it marks a whole folder.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.parsing import parse_json
from gpt.reading import read_text

MANIFEST = "checkpoint.json"
WEIGHTS = "model.safetensors"
FORMAT = 2
# Relative difference between two computations of the probe batch's loss from the same weights:
# summation order in fp32; in 16 bits also the rounding of weights and activations, since
# consolidated weights are the fp32 ones.
PROBE_TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
# times the tolerance of 16 bits, up to which a consolidated file is doubtful, not wrong
PROBE_DOUBT = 5
# whole numbers that are believed
_MOST = 2**63
# of DeepSpeed's files and ours, which lie in the checkpoint's own folder
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# what a run needs in order to go on
_NEEDED = (
    "step",
    "evaluated_step",
    "left_out",
    "losses",
    "probe",
    "ranks",
    "precision",
    "zero_stage",
    "loss_scale",
    "seconds",
)
# without which a checkpoint would be whole whatever lies in its folder
_VITAL = ("step", "files")


@dataclass(frozen=True)
class Probe:
    """A few tokens, and the loss that training had on them with the saved weights."""

    tokens: list  # ids, (rows, tokens + 1); empty: no loss is kept
    loss: float  # mean, nats per token


@dataclass(frozen=True)
class Manifest:
    """The content of checkpoint.json, in its order.

    Consolidated weights have `step`, `made_from`, `files` and, those of a run, `probe`; a run's
    checkpoint has all but `made_from`. A field that a file lacks, or has as something else, has its
    default here, and `lacks` names the first that a run needs.
    """

    step: int = 0  # optimizer steps that the weights have seen
    evaluated_step: int | None = None  # of the last evaluation; None before the first
    evaluated_whole: bool = False  # whether that scored the whole split
    left_out: list = field(default_factory=list)  # indices of batches that were left out
    losses: list = field(default_factory=list)  # nats per token, which the next are judged by
    seconds: float = 0.0  # of training until then, without evaluations and checkpoints
    tokens: int = 0  # trained on until then
    ranks: int = 0
    precision: str = "fp32"  # or fp16 or bf16
    zero_stage: int = 0
    loss_scale: float = 1.0  # 1 unless in fp16
    dataset: str = ""  # fingerprint
    # what the weights are held against when they are loaded; an earlier version kept a loss that is
    # not finite, too
    probe: Probe = Probe([], 0.0)
    made_from: dict | None = None  # where consolidated weights are from: a name and a sha256
    files: dict = field(default_factory=dict)  # {name: {"size": bytes, "sha256"}}, without this one
    sha256: str = ""  # of checkpoint.json without this entry
    lacks: str | None = None

    @property
    def files_sha256(self) -> str:
        """Of what the folder holds, which stays whatever is noted of it in this file."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path | str) -> "Manifest":
        """Raises UserError where there is none, or none that can be read."""
        content = read_content(folder)
        valid = {
            name: content[name]
            for name, is_valid in _FIELDS.items()
            if name in content and is_valid(content[name])
        }
        lacks = next((name for name in _NEEDED if name not in valid), None)
        if "probe" in valid:
            valid["probe"] = Probe(content["probe"]["tokens"], content["probe"]["loss"])
        return cls(**valid, lacks=lacks)

    def write(self, folder: Path) -> None:
        write_content(folder, self.to_json())

    def to_json(self) -> dict:
        content = dataclasses.asdict(self)
        if self.made_from is not None:
            names = ("step", "made_from", "files", *(["probe"] if self.probe.tokens else []))
            content = {name: content[name] for name in names}
        else:
            del content["made_from"], content["sha256"], content["lacks"]
        return {"format": FORMAT, **content}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_probe(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("loss")) not in (int, float):
        return False
    rows = value.get("tokens")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return False
    is_even = len({len(row) for row in rows}) <= 1
    return is_even and all(len(row) > 1 and all(map(_is_count, row)) for row in rows)


def _are_files(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    for name, facts in value.items():
        if not FILE_NAME.fullmatch(name) or not isinstance(facts, dict):
            return False
        if not _is_count(facts.get("size")) or not isinstance(facts.get("sha256"), str):
            return False
    return True


# {field: whether a value of JSON is one}
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "evaluated_step": lambda value: value is None or _is_count(value),
    "evaluated_whole": lambda value: isinstance(value, bool),
    "left_out": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "losses": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "seconds": lambda value: _is_number(value) and value >= 0,
    "tokens": _is_count,
    "ranks": lambda value: _is_count(value) and value > 0,
    "precision": lambda value: isinstance(value, str) and value in PROBE_TOLERANCE,
    "zero_stage": lambda value: _is_count(value) and value <= 3,
    "loss_scale": lambda value: _is_number(value) and value > 0,
    "dataset": lambda value: isinstance(value, str),
    "probe": _is_probe,
    "made_from": lambda value: isinstance(value, dict),
    "files": _are_files,
    "sha256": lambda value: isinstance(value, str),
}


def read_content(folder: Path | str) -> dict:
    """checkpoint.json as it stands, its format and its sha256 checked. Raises UserError."""
    path = Path(folder) / MANIFEST
    try:
        content = parse_json(read_text(path))
        if content["format"] != FORMAT or content["sha256"] != _seal(content):
            raise ValueError
        if not all(_FIELDS[name](content[name]) for name in _VITAL):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is missing or damaged, so the checkpoint was not committed or cannot be"
            " verified",
            mend="use another one",
        ) from error
    return content


def write_content(folder: Path | str, content: dict) -> None:
    """Write checkpoint.json with a sha256 of its own content. Raises ValueError where a number is
    not finite, which JSON does not have."""
    sealed = {**content, "sha256": _seal(content)}
    write_atomically(Path(folder) / MANIFEST, json.dumps(sealed, allow_nan=False) + "\n")


def _seal(content: dict):
    unsealed = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def same_loss(loss: float, stored: float, *precisions: str, times: float = 1.0) -> bool:
    """Whether a probe batch's loss is the one that was stored with the weights, as far as the less
    exact of these precisions can tell. times: more than the usual tolerance."""
    tolerance = max(PROBE_TOLERANCE[precision] for precision in precisions)
    return abs(loss - stored) <= times * (tolerance * abs(stored))

"""checkpoint.json: what a checkpoint, or a folder of consolidated weights, says of itself.

It is written last, with a sha256 of its own content, so it marks a whole folder.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.files import write_atomically

MANIFEST = "checkpoint.json"
FORMAT = 2
# Relative difference between two computations of the probe batch's loss from the same weights:
# summation order in fp32; in 16 bits also the rounding of weights and activations, since
# consolidated weights are the fp32 ones.
PROBE_TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
# times the tolerance of 16 bits, up to which a consolidated file is doubtful, not wrong
PROBE_DOUBT = 5

# what a run needs in order to go on: {field: its types in JSON}
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "evaluated_step": (int, type(None)),
    "left_out": list,
    "losses": list,
    "probe": dict,
    "ranks": int,
    "precision": str,
    "zero_stage": int,
    "loss_scale": (int, float),
    "seconds": (int, float),
}


@dataclass(frozen=True)
class Probe:
    """A few tokens, and the loss that training had on them with the saved weights."""

    tokens: list  # ids, (rows, tokens + 1); empty: no loss is kept
    loss: float  # mean, nats per token


@dataclass(frozen=True)
class Manifest:
    """The content of checkpoint.json, in its order.

    Consolidated weights have `step`, `made_from`, `files` and, those of a run, `probe`; a run's
    checkpoint has all but `made_from`. A field that an older file lacks has its default here, and
    `lacks` names the first that a run needs.
    """

    step: int = 0  # optimizer steps that the weights have seen
    evaluated_step: int | None = None  # of the last evaluation; None before the first
    evaluated_whole: bool = False  # whether that scored the whole split
    left_out: list = field(default_factory=list)  # indices of batches that were left out
    losses: list = field(default_factory=list)  # nats per token, which the next are judged by
    seconds: float = 0.0  # of training until then, without evaluations and checkpoints
    tokens: int = 0  # trained on until then
    ranks: int = 0
    precision: str = ""  # fp32, fp16 or bf16
    zero_stage: int = 0
    loss_scale: float = 1.0  # 1 unless in fp16
    dataset: str = ""  # fingerprint
    probe: Probe = Probe([], 0.0)  # what the weights are held against when they are loaded
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
        names = {item.name for item in dataclasses.fields(cls)} - {"probe", "lacks"}
        values = {name: content[name] for name in names & content.keys()}
        if _is_probe(content.get("probe")):
            values["probe"] = Probe(content["probe"]["tokens"], content["probe"]["loss"])
        return cls(**values, lacks=_first_lacking(content))

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


def _first_lacking(content: dict) -> str | None:
    for name, types in _NEEDED.items():
        if name not in content or not isinstance(content[name], types):
            return name
    return None if _is_probe(content["probe"]) else "probe"


def _is_probe(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("tokens"), list)
        and isinstance(value.get("loss"), (int, float))
    )


def read_content(folder: Path | str) -> dict:
    """checkpoint.json as it stands, its format and its sha256 checked. Raises UserError."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["sha256"] != _seal(content):
            raise ValueError
        # without them a checkpoint would be whole whatever lies in its folder
        if not isinstance(content["files"], dict) or not isinstance(content["step"], int):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is missing or damaged, so the checkpoint was not committed or cannot be"
            " verified",
            mend="use another one",
        ) from error
    return content


def write_content(folder: Path | str, content: dict) -> None:
    """Write checkpoint.json with a sha256 of its own content."""
    sealed = {**content, "sha256": _seal(content)}
    write_atomically(Path(folder) / MANIFEST, json.dumps(sealed) + "\n")


def _seal(content: dict):
    unsealed = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def same_loss(loss: float, stored: float, *precisions: str, times: float = 1.0) -> bool:
    """Whether a probe batch's loss is the one that was stored with the weights, as far as the less
    exact of these precisions can tell. times: more than the usual tolerance."""
    tolerance = max(PROBE_TOLERANCE[precision] for precision in precisions)
    return abs(loss - stored) <= times * (tolerance * abs(stored))

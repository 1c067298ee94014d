"""Evaluations of a run's weights that eval.py made, kept in the run's folder:
RUN/evaluations/SPLIT-stepN.json.

Each is what `eval.py --json` writes, and a block "run" that tells whose weights they were.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.config.identity import differing, digest_with_seed, with_seed
from gpt.config.saved import CONFIG, read_config
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.metrics.events import METRICS, finite
from gpt.metrics.lines import is_well_formed
from gpt.parsing import parse_json
from gpt.quantities import contradiction
from gpt.reading import read_bytes

FOLDER = "evaluations"
MOST_BYTES = 1 << 20  # of one of them


def file_of(run_dir: Path, split: str, step: int) -> Path:
    return run_dir / FOLDER / f"{split}-step{step}.json"


def make_folder(run_dir: Path) -> None:
    """The one that evaluations of a run are kept in."""
    (run_dir / FOLDER).mkdir(exist_ok=True)


def require_of_run(run_dir: Path, weights: Checkpoint) -> None:
    """Raise UserError unless consolidated weights are of a checkpoint of the run."""
    if not (run_dir / METRICS).is_file():
        raise UserError(
            f"{run_dir} holds no run (no {METRICS})",
            mend="give --join the folder that training made",
        )
    made_from = weights.manifest.made_from or {}
    if not isinstance(made_from.get("checkpoint"), str):
        raise UserError(
            f"{weights.path} is not made from one checkpoint of a run",
            mend="join the evaluation of what tools/zero_to_fp32.py made of one",
        )
    of_run, of_weights = (
        with_seed(config) for config in (read_config(run_dir / CONFIG), weights.config)
    )
    for path in differing([of_run, of_weights]):
        raise UserError(
            f"{weights.path} was not trained by {run_dir} as it is: {path} is {of_run.get(path)} in"
            f" the run, and {of_weights.get(path)} in the weights' config.yaml",
            mend="give --join the run that they are from",
        )
    checkpoint = folders.of_run(run_dir) / made_from["checkpoint"]
    if checkpoint.is_dir():
        sha256 = Checkpoint.open(checkpoint).manifest.files_sha256
        if sha256 != made_from.get("sha256"):
            raise UserError(
                f"{weights.path} is made from another {checkpoint.name} than {checkpoint}",
                mend="consolidate that one, and evaluate it",
            )


def require_same_measure(run_dir: Path, result: Mapping[str, Any]) -> None:
    """Raise UserError where an evaluation that is yet to be made would not be taken for the run's.
    result: its split, documents and seq_len."""
    mistake = _other_measure(read_config(run_dir / CONFIG), result, ["documents"])
    if mistake:
        raise UserError(
            f"--join {run_dir}: this evaluation of {result['split']!r} {mistake}",
            mend="give the dataset that the run was trained on, and no --seq_len",
        )


def join(run_dir: Path, result: Mapping[str, Any], weights: Checkpoint) -> str:
    """Write an evaluation of weights, for which `require_of_run` holds, into the run's folder.

    Returns its path, and what it replaces, in words. Raises UserError, and writes nothing, where
    `read` would refuse it.
    """
    made_from = weights.manifest.made_from or {}
    run = {
        "name": weights.config.get("name"),
        "step": weights.step,
        "curve": digest_with_seed(weights.config),
        "checkpoint": made_from.get("checkpoint"),
        "sha256": made_from.get("sha256"),
    }
    split = result["split"]
    path = file_of(run_dir, split, weights.step)
    content = finite({**result, "run": run})
    config = read_config(run_dir / CONFIG)
    mistake = _mistake(content, config, split, weights.step)
    if mistake:
        raise UserError(
            f"nothing is joined to {run_dir}: this evaluation {mistake}",
            mend="give the dataset that the run was trained on, and no --seq_len",
        )
    replaced = ""
    if path.exists():
        earlier = _content(path)
        last_n = earlier.get("last_n") if isinstance(earlier, dict) else "unknown"
        replaced = f" (last_n {content['last_n']}; replaces the one with last_n {last_n})"
    make_folder(run_dir)
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return f"{path}{replaced}"


def _content(path: Path) -> Any:
    """Of a JSON file; None where there is none."""
    try:
        return parse_json(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError):
        return None


def read(run_dir: Path, config: Mapping[str, Any], split: str, step: int) -> dict | None:
    """The evaluation of the whole split after a step that was joined to a run; None where there is
    none. config: the run's config.yaml. Raises UserError where what is there is of another run,
    split or step, or contradicts itself."""
    path = file_of(run_dir, split, step)
    if not os.path.lexists(path):
        return None
    result = _content(path)
    mistake = _mistake(result, config, split, step) or _of_other_weights(run_dir, result)
    if mistake:
        raise UserError(f"{path} {mistake}", mend="remove it, or evaluate again with --join")
    return result


def _mistake(result: Any, config: Mapping[str, Any], split: str, step: int) -> str | None:
    """Why a file's content is not the evaluation that it should be."""
    is_result = isinstance(result, dict) and is_well_formed(result)
    if not is_result or not isinstance(result.get("run"), dict):
        return "is not what eval.py --join writes"
    run = result["run"]
    if run.get("curve") != digest_with_seed(config):
        return "is of another run, or of other settings"
    if (result.get("split"), run.get("step"), result.get("step")) != (split, step, step):
        return "is of another split or step than its name says"
    if result.get("tokens") != result.get("of_tokens"):
        return "is not of the whole split"
    if type(result.get("last_n")) is not int:
        return "does not tell its last_n"
    other = _other_measure(config, result, ("documents", "tokens", "bytes"))
    if other:
        return other
    problem = contradiction(result)
    return f"contradicts itself: {problem}" if problem else None


def _other_measure(
    config: Mapping[str, Any], result: Mapping[str, Any], facts: Iterable[str]
) -> str | None:
    """In what an evaluation differs from those that training made of its split. facts: what is
    compared of the split."""
    if result.get("seq_len") != config["model"]["seq_len"]:
        return "is with another seq_len than the model's"
    scored = (config.get("dataset") or {}).get("scored") or {}
    if scored.get("split") == result.get("split"):
        for name in facts:
            if scored.get(name) != result.get(name):
                return f"is of other {name} than the run's own evaluations"
    return None


def _of_other_weights(run_dir: Path, result: Mapping[str, Any]) -> str | None:
    """Why it is not of the weights that the run has; None too where their checkpoint is gone."""
    run = result["run"]
    checkpoint = folders.of_run(run_dir) / str(run.get("checkpoint"))
    try:
        sha256 = Checkpoint.open(checkpoint).manifest.files_sha256
    except UserError:
        return None
    return None if sha256 == run.get("sha256") else f"is of other weights than {checkpoint.name}"

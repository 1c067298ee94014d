"""Evaluations of a run's weights that eval.py made, kept in the run's folder:
RUN/evaluations/SPLIT-stepN.json.

Each is what `eval.py --json` writes, and a block "run" that tells whose weights they were.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.config.identity import curve, differences_of
from gpt.config.saved import CONFIG, read_config
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.metrics.events import METRICS, finite
from gpt.quantities import contradiction, contradiction_without_sums, has_sums

FOLDER = "evaluations"


def file_of(run_dir: Path, split: str, step: int) -> Path:
    return run_dir / FOLDER / f"{split}-step{step}.json"


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
    differences = differences_of(read_config(run_dir / CONFIG), weights.config)
    if differences:
        path, (of_run, of_weights) = next(iter(differences.items()))
        raise UserError(
            f"{weights.path} was not trained by {run_dir}: {path} is {of_run} in the run, and"
            f" {of_weights} in the weights' config.yaml",
            mend="give --join the run that they are from",
        )
    checkpoint = folders.of_run(run_dir) / made_from["checkpoint"]
    if checkpoint.is_dir():
        sha256 = Checkpoint.open(checkpoint).manifest.sha256
        if sha256 != made_from.get("sha256"):
            raise UserError(
                f"{weights.path} is made from another {checkpoint.name} than {checkpoint}",
                mend="consolidate that one, and evaluate it",
            )


def join(run_dir: Path, result: Mapping[str, Any], weights: Checkpoint) -> Path:
    """Write an evaluation of weights, for which `require_of_run` holds, into the run's folder."""
    run = {
        "name": weights.config.get("name"),
        "step": weights.step,
        "curve": _digest(weights.config),
        "checkpoint": (weights.manifest.made_from or {}).get("checkpoint"),
    }
    path = file_of(run_dir, result["split"], weights.step)
    path.parent.mkdir(exist_ok=True)
    content = finite({**result, "run": run})
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def read(run_dir: Path, config: Mapping[str, Any], split: str, step: int) -> dict | None:
    """The evaluation of the whole split after a step that was joined to a run; None where there is
    none. config: the run's config.yaml. Raises UserError where what is there is of another run,
    split or step, or contradicts itself."""
    path = file_of(run_dir, split, step)
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        result = None
    mistake = _mistake(result, config, split, step)
    if mistake:
        raise UserError(f"{path} {mistake}", mend="remove it, or evaluate again with --join")
    return result


def _mistake(result: Any, config: Mapping[str, Any], split: str, step: int) -> str | None:
    """Why a file's content is not the evaluation that it should be."""
    if not isinstance(result, dict) or not isinstance(result.get("run"), dict):
        return "is not what eval.py --join writes"
    run = result["run"]
    if run.get("curve") != _digest(config):
        return "is of another run, or of other settings"
    if (result.get("split"), run.get("step"), result.get("step")) != (split, step, step):
        return "is of another split or step than its name says"
    if result.get("tokens") != result.get("of_tokens"):
        return "is not of the whole split"
    scored = (config.get("dataset") or {}).get("scored") or {}
    if scored.get("split") == split and scored.get("documents") != result.get("documents"):
        return "is of other documents than the run's own evaluations"
    contradicts = contradiction if has_sums(result) else contradiction_without_sums
    problem = contradicts(result)
    return f"contradicts itself: {problem}" if problem else None


def _digest(config: Mapping[str, Any]) -> str:
    """12 characters that are the same for weights of one course."""
    text = json.dumps(curve(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

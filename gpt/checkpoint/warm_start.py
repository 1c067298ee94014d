"""A run that begins with given weights instead of drawn ones: `init_from`, a consolidated folder,
our own or imported.

Optimizer, schedule and data begin anew. The weights are taken over in fp32, into the copies that
the optimizer updates.
"""

import dataclasses
from pathlib import Path

from gpt.architecture.architecture import Architecture
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import WEIGHTS
from gpt.checkpoint.tensor_files import WeightsFile
from gpt.checkpoint.weights import check, open_folder
from gpt.checkpoint.zero_files import FullState
from gpt.config.shape import ModelConfig
from gpt.data.manifests import TOKENIZER
from gpt.errors import UserError


def origin(folder: Path | str, model: Architecture, tokenizer: str | None) -> dict:
    """{"folder", "step", "sha256"} of weights that are whole and fit the run, for its config.yaml.
    Raises UserError.

    tokenizer: fingerprint of the dataset's; None where it is not known yet.
    """
    folder = Path(folder)
    checkpoint = open_folder(folder)
    _require_shape(checkpoint, model.shape)
    check(WeightsFile(folder / WEIGHTS), model, folder / WEIGHTS, f"the run's model ({model})")
    dataset = checkpoint.config.get("dataset")
    trained_on = dataset.get("tokenizer") if isinstance(dataset, dict) else None
    if None not in (tokenizer, trained_on) and tokenizer != trained_on:
        raise UserError(
            f"--init_from {folder}: its model was trained with another tokenizer than that of the"
            " run's dataset",
            mend=f"prepare the text with `--tokenizer {folder / TOKENIZER}`, or give other weights",
        )
    return {
        "folder": str(folder),
        "step": checkpoint.step,
        "sha256": checkpoint.manifest.files[WEIGHTS]["sha256"],
    }


def _require_shape(checkpoint: Checkpoint, model: ModelConfig):
    theirs = checkpoint.config["model"]
    differences = []
    for name, value in dataclasses.asdict(model).items():
        their_value = theirs.get(name)
        if their_value != value:
            differences.append(f"{name} is {their_value} there and {value} here")
    if differences:
        raise UserError(
            f"--init_from {checkpoint.path}: its model has another shape than the run's"
            f" ({', '.join(differences)})",
            mend="set the run's alike, or give other weights",
        )


def state(folder: Path | str, model: Architecture) -> FullState:
    """The weights, for gpt.engine.boundary.Engine.adopt; every rank reads them. Raises UserError
    where they are not on its host, or are others there."""
    weights_file = Path(folder) / WEIGHTS
    if not weights_file.is_file():
        raise UserError(
            f"--init_from {folder}: no {WEIGHTS} is there on this host",
            mend="every host reads it, so copy the folder to all",
        )
    weights = WeightsFile(weights_file)
    check(weights, model, weights_file)
    return FullState(
        source=Path(folder),
        step=0,
        stage=0,
        weights=weights,
        moments={},
        counts={},
        scheduler=None,
    )

"""A run that begins with given weights instead of drawn ones: `init_from`, a consolidated folder,
our own or imported.

Optimizer, schedule and data begin anew. The weights are taken over in fp32, into the copies that
the optimizer updates.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

from gpt.checkpoint.weights import WEIGHTS, read_folder
from gpt.checkpoint.zero_files import FullState
from gpt.config.shape import ModelConfig
from gpt.errors import UserError


def origin(folder, model: ModelConfig, tokenizer: str | None) -> dict:
    """{"folder", "step", "sha256"} of weights that are whole and fit the run, for its config.yaml.
    Raises UserError.

    tokenizer: fingerprint of the dataset's; None where it is not known yet.
    """
    folder = Path(folder)
    config, manifest = read_folder(folder)
    here = dataclasses.asdict(model)
    wrong = [
        f"{name} is {config['model'].get(name)} there and {value} here"
        for name, value in here.items()
        if config["model"].get(name) != value
    ]
    if wrong:
        raise UserError(
            f"--init_from {folder}: its model has another shape than the run's"
            f" ({', '.join(wrong)}): set the run's alike, or give other weights"
        )
    trained_on = (
        config["dataset"].get("tokenizer") if isinstance(config.get("dataset"), dict) else None
    )
    if None not in (tokenizer, trained_on) and tokenizer != trained_on:
        raise UserError(
            f"--init_from {folder}: its model was trained with another tokenizer than that of the"
            f" run's dataset: prepare the text with `--tokenizer {folder / 'tokenizer.model'}`, or"
            " give other weights"
        )
    return {
        "folder": str(folder),
        "step": manifest["step"],
        "sha256": manifest["files"][WEIGHTS]["sha256"],
    }


def state(folder) -> FullState:
    """The weights, for gpt.engine.boundary.Engine.adopt; every rank reads them. Raises UserError
    where they are not on its host."""
    if not (Path(folder) / WEIGHTS).is_file():
        raise UserError(
            f"--init_from {folder}: no {WEIGHTS} is there on this host: every host reads it, so"
            " copy the folder to all"
        )
    return FullState(
        step=0,
        stage=0,
        weights=_Weights(Path(folder) / WEIGHTS),
        moments={},
        updates=0.0,
        scheduler=None,
    )


class _Weights(Mapping):
    """{name: tensor} of a safetensors file, each read when it is asked for."""

    def __init__(self, path):
        self._file = safe_open(str(path), framework="pt")

    def __getitem__(self, name):
        return self._file.get_tensor(name)

    def __iter__(self):
        return iter(self._file.keys())

    def __len__(self):
        return len(self._file.keys())

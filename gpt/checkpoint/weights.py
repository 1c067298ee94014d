"""Consolidated fp32 weights: out of a checkpoint's files, checked, written, read.

runs/24h/export/
    model.safetensors    the weights
    config.yaml          of the run that trained them, with their step
    tokenizer.model      of its dataset
    checkpoint.json      each file's size and sha256, and where the weights are from
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import PROBE_DOUBT, Manifest, same_loss
from gpt.checkpoint.zero_files import read_state
from gpt.config.saved import CONFIG, model_config, write_config
from gpt.config.shape import ModelConfig
from gpt.data.manifests import TOKENIZER
from gpt.errors import UserError
from gpt.files import built_aside, hash_file, require_new_folder
from gpt.model import GPT

WEIGHTS = "model.safetensors"


def expected_shapes(config: ModelConfig) -> dict[str, tuple]:
    """{parameter name: shape} of a model, without its memory."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT(config, seed=None).named_parameters()}


@dataclass(frozen=True)
class Consolidated:
    """What `consolidate` wrote."""

    step: int
    stage: int  # of ZeRO, that the checkpoint was written at
    parameters: int
    probe_loss: float | None  # of the written weights, nats per token; None without a probe
    doubt: str | None  # a sentence on that loss


def consolidate(
    checkpoint_dir: Path | str, output_dir: Path | str, tag: str | None = None
) -> Consolidated:
    """Write the fp32 weights of a checkpoint into the new folder `output_dir`.

    The result is whole or absent: names, shapes, types and values are checked, and its loss on the
    checkpoint's probe batch. Raises UserError for a missing or damaged checkpoint, or an existing
    output.
    """
    source = folders.find(checkpoint_dir, tag)
    require_new_folder(output_dir)
    checkpoint = Checkpoint.open(source).verify()
    shapes = expected_shapes(checkpoint.shape)
    state = read_state(source)
    _check(state.weights, shapes, source)
    tokenizer = source / TOKENIZER
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer} is missing", mend="copy the dataset's tokenizer.model there")
    probe_loss, doubt = write_folder(
        output_dir,
        state.weights,
        {**checkpoint.config, "step": state.step},
        tokenizer.read_bytes(),
        {"checkpoint": checkpoint.tag, "sha256": checkpoint.manifest.sha256},
        lambda weights_file: _probe(weights_file, checkpoint),
    )
    parameters = sum(map(math.prod, shapes.values()))
    return Consolidated(state.step, state.stage, parameters, probe_loss, doubt)


def write_folder(
    output: Path | str,
    weights: Mapping[str, torch.Tensor],
    config: dict,
    tokenizer: bytes,
    made_from: dict,
    check: Callable[[Path], Any] = lambda weights_file: None,
) -> Any:
    """Write a consolidated folder, whole or absent.

    weights: {parameter name: fp32 tensor}, asked for one at a time. config: for config.yaml, "step"
    included. made_from: what the manifest tells of its origin. check(weights_file): a last look at
    what was written, which may raise; what it returns is returned.
    """
    with built_aside(output) as building:
        _write(building / WEIGHTS, weights, {"format": "pt", "step": str(config["step"])})
        write_config(building / CONFIG, config)
        (building / TOKENIZER).write_bytes(tokenizer)
        _compare(building / WEIGHTS, weights)
        checked = check(building / WEIGHTS)
        files = {name: hash_file(building / name) for name in (WEIGHTS, CONFIG, TOKENIZER)}
        Manifest(step=config["step"], made_from=made_from, files=files).write(building)
    return checked


def open_folder(folder: Path | str) -> Checkpoint:
    """A consolidated folder, each of whose files is as it was written. Raises UserError."""
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no {WEIGHTS}",
            mend="give a folder of consolidated weights, which tools/zero_to_fp32.py or"
            " tools/import_languini.py make",
        )
    return Checkpoint.open(folder).verify()


def _write(path: Path, weights: Mapping[str, torch.Tensor], metadata: dict):
    """The format of safetensors, one tensor at a time: the header's length in 8 bytes, a JSON
    header, the values."""
    header = {"__metadata__": metadata}
    end = 0
    for name, weight in weights.items():
        start = end
        end += 4 * weight.numel()
        shape = list(weight.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            file.write(weight.contiguous().numpy().data.cast("B"))


def _probe(weights_file: Path, checkpoint: Checkpoint):
    """(loss of the written weights on the checkpoint's probe batch, what is doubtful about it);
    None for either.

    Raises UserError where it is not the loss that training had. A model trained in 16 bits computed
    that loss with rounded weights, by a GPU's kernels: how far that takes it nobody knows for every
    model, so there is room for doubt.
    """
    tokens = torch.tensor(checkpoint.manifest.probe.tokens)
    stored = checkpoint.manifest.probe.loss
    precision = checkpoint.manifest.precision
    if not tokens.numel():
        return None, None
    with torch.no_grad():
        model = load_model(weights_file, checkpoint.config, weights_file)
        loss = model(tokens[:, :-1], tokens[:, 1:]).item()
    if same_loss(loss, stored, precision):
        return loss, None
    if precision == "fp32" or not same_loss(loss, stored, precision, times=PROBE_DOUBT):
        raise UserError(
            f"{checkpoint.path}: the consolidated weights give the loss {loss:.6f} on the probe"
            f" batch, where training had {stored:.6f} when it saved them",
            mend="use another checkpoint",
        )
    doubt = (
        f"training had {stored:.6f} there in {precision}, and rounding seldom takes it so far:"
        " compare gpt/eval.py's loss with the run's last evaluation before you use these weights"
    )
    return loss, doubt


def _check(weights: Mapping[str, torch.Tensor], shapes: dict[str, tuple], source: Path | str):
    """Exactly the model's parameters, each of its shape, fp32 and finite. Raises UserError."""
    missing = sorted(shapes.keys() - weights.keys())
    extra = sorted(weights.keys() - shapes.keys())
    misfit = f"{source} does not fit its config.yaml"
    if missing:
        raise UserError(f"{misfit}: {missing[0]} is missing")
    if extra:
        raise UserError(f"{misfit}: {extra[0]} is not a parameter of the model")
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        if shape != shapes[name]:
            raise UserError(
                f"{source}: {name} has the shape {shape}, its config.yaml says {shapes[name]}"
            )
        if weight.dtype != torch.float32:
            raise UserError(f"{source}: {name} is {weight.dtype}, not float32")
        if not bool(torch.isfinite(weight).all()):
            raise UserError(
                f"{source}: {name} holds values that are not finite",
                mend="use an earlier checkpoint",
            )


def _compare(path: Path, weights: Mapping[str, torch.Tensor]):
    """What was written is what was meant, bit for bit."""
    with safe_open(path, framework="pt") as written:
        assert set(written.keys()) == set(weights), "safetensors lost or added a tensor"
        for name, weight in weights.items():
            assert torch.equal(written.get_tensor(name), weight), f"safetensors changed {name}"


def load_model(weights_file: Path | str, config: dict, where: Path | str) -> GPT:
    """The model of a config.yaml with the weights of a consolidated file. Raises UserError.

    where: what a mistake in the config.yaml is told of.
    """
    shape = model_config(config, where)
    try:
        weights = load_file(str(weights_file))
    except FileNotFoundError as error:
        raise UserError(
            f"{weights_file} does not exist",
            mend="consolidate a checkpoint with `python tools/zero_to_fp32.py CHECKPOINT_DIR"
            " OUTPUT_DIR`",
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{weights_file} is not a safetensors file ({error})",
            mend=f"give the {WEIGHTS} that tools/zero_to_fp32.py wrote; files with pickles are"
            " never loaded",
        ) from error
    _check(weights, expected_shapes(shape), weights_file)
    with torch.device("meta"):
        model = GPT(shape, seed=None)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def file_of_weights(text: str) -> Path:
    """--checkpoint_file as a path. Raises UserError where no such file is there."""
    path = Path(text)
    if (path / WEIGHTS).is_file():
        raise UserError(f"{text} is a folder", mend=f"give the file {path / WEIGHTS}")
    if not path.is_file():
        problem = f"is a folder without {WEIGHTS}" if path.is_dir() else "does not exist"
        raise UserError(
            f"{text} {problem}",
            mend="consolidate a checkpoint with `python tools/zero_to_fp32.py RUN/checkpoints OUT`,"
            f" and give OUT/{WEIGHTS}",
        )
    return path

"""Consolidated fp32 weights: out of a checkpoint's files, checked, written, read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gpt.checkpoint import folders
from gpt.checkpoint.zero_files import (
    read_state,
)
from gpt.config.saved import CONFIG, model_config, read_config, write_config
from gpt.config.shape import ModelConfig
from gpt.data.manifests import TOKENIZER
from gpt.errors import UserError
from gpt.files import (
    built_aside,
    hash_file,
    require_new_folder,
)
from gpt.model import GPT

WEIGHTS = "model.safetensors"


def expected_shapes(config: ModelConfig) -> dict:
    """{parameter name: shape} of a model, without its memory."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT(config, seed=None).named_parameters()}


def consolidate(checkpoint_dir, output_dir, tag=None) -> dict:
    """Write the fp32 weights of a checkpoint into the new folder `output_dir`; returns {"step",
    "parameters", "stage", "probe_loss", "doubt"}, where doubt is a sentence on that loss, or None.

    The result is whole or absent: names, shapes, types and values are checked, and its loss on the
    checkpoint's probe batch. Raises UserError for a missing or damaged checkpoint, or an existing
    output.
    """
    source = folders.resolve(checkpoint_dir, tag)
    require_new_folder(output_dir)
    manifest = folders.verify(source)
    config = read_config(source / CONFIG)
    shapes = expected_shapes(model_config(config, source / CONFIG))
    step, stage, weights = read_weights(source)
    _check(weights, shapes, source)
    if not (source / TOKENIZER).is_file():
        raise UserError(
            f"{source / TOKENIZER} is missing: copy the dataset's tokenizer.model there"
        )
    made_from = {"checkpoint": source.name, "sha256": manifest["sha256"]}
    loss, doubt = write_folder(
        output_dir,
        weights,
        {**config, "step": step},
        (source / TOKENIZER).read_bytes(),
        made_from,
        lambda weights_file: _probe(weights_file, config, manifest, source),
    )
    parameters = sum(map(math.prod, shapes.values()))
    return {
        "step": step,
        "stage": stage,
        "parameters": parameters,
        "probe_loss": loss,
        "doubt": doubt,
    }


def write_folder(
    output,
    weights: Mapping,
    config: dict,
    tokenizer: bytes,
    made_from: dict,
    check=lambda weights_file: None,
):
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
        found = check(building / WEIGHTS)
        files = {name: hash_file(building / name) for name in (WEIGHTS, CONFIG, TOKENIZER)}
        facts = {"step": config["step"], "made_from": made_from}
        folders.write_manifest(building, {"format": folders.FORMAT, **facts, "files": files})
    return found


def read_folder(folder):
    """(config.yaml, manifest) of a consolidated folder, each of whose files is as it was written.
    Raises UserError."""
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no {WEIGHTS}: give a folder of consolidated weights, which"
            " tools/zero_to_fp32.py or tools/import_languini.py make"
        )
    manifest = folders.verify(folder)
    return read_config(folder / CONFIG), manifest


def _write(path, weights, metadata):
    """The format of safetensors, one tensor at a time: the header's length in 8 bytes, a JSON
    header, the values."""
    header, end = {"__metadata__": metadata}, 0
    for name, weight in weights.items():
        size = 4 * weight.numel()
        header[name] = {
            "dtype": "F32",
            "shape": list(weight.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            file.write(memoryview(weight.contiguous().numpy()).cast("B"))


def _probe(path, config, manifest, source):
    """(loss of the written weights on the checkpoint's probe batch, what is doubtful about it);
    None for either.

    Raises UserError where it is not the loss that training had. A model trained in 16 bits computed
    that loss with rounded weights, by a GPU's kernels: how far that takes it nobody knows for every
    model, so there is room for doubt.
    """
    tokens = torch.tensor(manifest["probe"]["tokens"])
    stored = manifest["probe"]["loss"]
    if not tokens.numel():
        return None, None
    with torch.no_grad():
        found = load_model(path, config, path)(tokens[:, :-1], tokens[:, 1:]).item()
    precision = manifest["precision"]
    off = abs(found - stored)
    usual = folders.PROBE_TOLERANCE[precision] * abs(stored)
    if off <= usual:
        return found, None
    if precision == "fp32" or not off <= folders.PROBE_DOUBT * usual:
        raise UserError(
            f"{source}: the consolidated weights give the loss {found:.6f} on the probe batch,"
            f" where training had {stored:.6f} when it saved them: use another checkpoint"
        )
    return (
        found,
        (
            f"training had {stored:.6f} there in {precision}, and rounding seldom takes it so far:"
            " compare gpt/eval.py's loss with the run's last evaluation before you use these"
            " weights"
        ),
    )


def read_weights(source: Path):
    """(step, ZeRO stage, {name: fp32 tensor}) of a checkpoint's folder."""
    state = read_state(source)
    return state.step, state.stage, state.weights


def _check(weights, shapes, where):
    """Exactly the model's parameters, each of its shape, fp32 and finite. Raises UserError."""
    missing = sorted(shapes.keys() - weights.keys())
    extra = sorted(weights.keys() - shapes.keys())
    if missing or extra:
        raise UserError(
            f"{where} does not fit its config.yaml: "
            + (
                f"{missing[0]} is missing"
                if missing
                else f"{extra[0]} is not a parameter of the model"
            )
        )
    for name, weight in weights.items():
        if tuple(weight.shape) != shapes[name]:
            raise UserError(
                f"{where}: {name} has the shape {tuple(weight.shape)}, its config.yaml says"
                f" {shapes[name]}"
            )
        if weight.dtype != torch.float32:
            raise UserError(f"{where}: {name} is {weight.dtype}, not float32")
        if not bool(torch.isfinite(weight).all()):
            raise UserError(
                f"{where}: {name} holds values that are not finite: use an earlier checkpoint"
            )


def _compare(path, weights):
    """What was written is what was meant, bit for bit."""
    with safe_open(path, framework="pt") as written:
        assert set(written.keys()) == set(weights), "safetensors lost or added a tensor"
        for name, weight in weights.items():
            assert torch.equal(written.get_tensor(name), weight), f"safetensors changed {name}"


def load_model(weights_file, config: dict, where) -> GPT:
    """The model of a config.yaml with the weights of a consolidated file. Raises UserError."""
    shape = model_config(config, where)
    try:
        weights = load_file(str(weights_file))
    except FileNotFoundError as error:
        raise UserError(
            f"{weights_file} does not exist: consolidate a checkpoint with `python"
            " tools/zero_to_fp32.py CHECKPOINT_DIR OUTPUT_DIR`"
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{weights_file} is not a safetensors file ({error}): give the model.safetensors that "
            "tools/zero_to_fp32.py wrote; files with pickles are never loaded"
        ) from error
    _check(weights, expected_shapes(shape), weights_file)
    with torch.device("meta"):
        model = GPT(shape, seed=None)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def file_of_weights(text: str) -> Path:
    """--checkpoint_file as a path. Raises UserError where no such file is there."""
    path, name = Path(text), "model.safetensors"
    if (path / name).is_file():
        raise UserError(f"{text} is a folder: give the file {path / name}")
    if not path.is_file():
        raise UserError(
            f"{text} {f'is a folder without {name}' if path.is_dir() else 'does not exist'}:"
            " consolidate a checkpoint with `python tools/zero_to_fp32.py RUN/checkpoints OUT`,"
            f" and give OUT/{name}"
        )
    return path

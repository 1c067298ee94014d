"""A checkpoint of the seed project's GPT (model.pt), into consolidated weights of ours.

The two models are the same function; what differs is the names, and that q, k and v are three
matrices there and the thirds of one here. model.pt holds {"step", "model_state_dict",
"opt_state_dict"}; of its pickle only tensors and plain values are built. The pickled config beside
it is not needed: every size but a head's is that of a weight.
"""

import re
from pathlib import Path

import torch

from gpt.architecture.architecture import Architecture
from gpt.checkpoint import zero_files
from gpt.checkpoint.weights import write_folder
from gpt.checkpoint.zero_files import Joined
from gpt.config.saved import foreign_config
from gpt.config.shape import ModelConfig, load_presets
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file, require_new_folder
from gpt.wording import nearest

# of DistributedDataParallel and torch.compile
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
_CONSTANT = re.compile(r"layers\.[0-9]+\.attn\.mask")  # the causal mask
_LAYER = re.compile(r"layers\.([0-9]{1,9})\.")
_NAMES = (  # ours, theirs
    ("token_embedding.", "input_embedding."),
    ("blocks.", "layers."),
    (".attn.c_proj.", ".attn.linear_O."),
    ("head.", "linear."),
)


def import_weights(
    file: Path | str,
    vocab: Vocab,
    out: Path | str,
    head_dim: int | None = None,
    preset: str | None = None,
) -> tuple[ModelConfig, int]:
    """Write the weights of `file` as the new consolidated folder `out`; returns (ModelConfig,
    step).

    head_dim or preset: what tells the size of a head. vocab: the one that it was trained with.
    Raises UserError for a file that is not such a checkpoint or holds code, and where shape,
    tokenizer and head do not fit together.
    """
    require_new_folder(out)
    file = Path(file)
    if not file.is_file():
        raise UserError(
            f"{file} is not a file",
            mend="--file takes the model.pt in the folder checkpoints of a run",
        )
    step, state = _read(file)
    shape = _shape(state, file, _head_dim(head_dim, preset))
    if preset is not None:
        _require_preset(shape, preset, file)
    if vocab.size != shape.vocab_size:
        raise UserError(
            f"{vocab.name} has {vocab.size} ids, and {file} was trained with {shape.vocab_size}",
            mend="give the tokenizer that it was trained with",
        )
    weights = Joined(_parts(state, shape, file))
    config = foreign_config(file.stem, step, shape, vocab.fingerprint)
    made_from = {
        "file": file.name,
        "sha256": hash_file(file)["sha256"],
        "kind": "checkpoint of the Languini Kitchen's GPT",
    }
    write_folder(out, weights, config, vocab.model, made_from)
    return shape, step


def _read(file: Path):
    """(optimiser steps that the weights have seen, {their name without wrappers: tensor})."""
    zero_files.require_whole_records(file)
    content = zero_files.load_weights_only(file, mmap=True)
    content = content if isinstance(content, dict) else {}
    state = content.get("model_state_dict")
    if not isinstance(state, dict) or not _are_tensors(state):
        raise UserError(
            f"{file} holds no model_state_dict with tensors, so it is not a model.pt of the seed"
            " project",
            mend="--file takes the one in the folder checkpoints of a run",
        )
    last_index = content.get("step")
    if type(last_index) is not int or last_index < 0:
        raise UserError(
            f"{file} does not tell its step",
            mend="--file takes a whole model.pt of the seed project",
        )
    # It counts steps from 0 and saves after the update, so the weights of "step" 99 have seen 100.
    return last_index + 1, {_WRAPPERS.sub("", name): value for name, value in state.items()}


def _are_tensors(state: dict) -> bool:
    """Whether this is {name: tensor}, of one at least."""
    are_names = all(isinstance(name, str) for name in state)
    return bool(state) and are_names and all(map(torch.is_tensor, state.values()))


def _head_dim(head_dim: int | None, preset: str | None):
    if preset is None:
        assert head_dim is not None, "give head_dim or preset"
        if head_dim < 1:
            raise UserError(f"--head_dim {head_dim}", mend="give a positive number, such as 64")
        return head_dim
    presets = load_presets()
    if preset not in presets:
        raise UserError(
            f"--preset {preset}{nearest(preset, presets)}",
            mend=f"the presets are {', '.join(presets)}",
        )
    return presets[preset]["head_dim"]


def _shape(state: dict[str, torch.Tensor], file: Path, head_dim: int) -> ModelConfig:
    def size(name: str, dimension: int):
        if name not in state or state[name].dim() != 2 or not state[name].numel():
            raise UserError(
                f"{file} lacks the matrix {name}: it is not a checkpoint of the seed project's GPT"
            )
        return state[name].shape[dimension]

    layers = {int(match[1]) for match in map(_LAYER.match, state) if match}
    if layers and max(layers) >= len(layers):
        raise UserError(
            f"{file} lacks layers before layers.{max(layers)}: it is not a whole checkpoint of the"
            " seed project's GPT"
        )
    width = size("layers.0.attn.linear_Q.weight", 0)
    if width % head_dim:
        raise UserError(
            f"{file}: its heads are {width} wide together, which is no multiple of head_dim"
            f" {head_dim}",
            mend="give the head_dim that it was trained with",
        )
    return ModelConfig(
        n_layers=max(layers) + 1,
        h_dim=size("input_embedding.weight", 1),
        mlp_dim=size("layers.0.mlp.c_fc.weight", 0),
        n_heads=width // head_dim,
        head_dim=head_dim,
        vocab_size=size("input_embedding.weight", 0),
        seq_len=size("position_embedding.weight", 0),
    )


def _require_preset(shape: ModelConfig, preset: str, file: Path):
    differences = [
        f"{name} {getattr(shape, name)} instead of {value}"
        for name, value in load_presets()[preset].items()
        if getattr(shape, name) != value
    ]
    if differences:
        raise UserError(
            f"{file} is not the preset {preset}: it has {', '.join(differences)}; name another"
            " preset, or give --head_dim"
        )


def _parts(state: dict[str, torch.Tensor], shape: ModelConfig, file: Path) -> dict:
    """{our name: (shape, flat pieces)} for gpt.checkpoint.zero_files.Joined; each of their tensors
    must be used, and each of ours be made."""
    parts = {}
    used = set()
    for name, whole_shape in Architecture(shape).shapes().items():
        theirs = _their_names(name)
        rows = whole_shape[0] // len(theirs)
        for part in theirs:
            _require(state, part, (rows, *whole_shape[1:]), file)
        parts[name] = whole_shape, [state[part].reshape(-1) for part in theirs]
        used.update(theirs)
    extra = sorted(name for name in state.keys() - used if not _CONSTANT.fullmatch(name))
    if extra:
        raise UserError(
            f"{file} holds {extra[0]}, which the seed project's GPT does not have: it is another"
            " model"
        )
    return parts


def _their_names(name: str):
    """Of the tensors that make one of ours, in order: q, k and v are three there."""
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    if ".qkv." not in name:
        return [name]
    return [name.replace(".qkv.", f".linear_{letter}.") for letter in "QKV"]


def _require(state: dict[str, torch.Tensor], name: str, shape: tuple, file: Path):
    if name not in state:
        raise UserError(
            f"{file} lacks {name}: it is not a whole checkpoint of the seed project's GPT"
        )
    tensor = state[name]
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{file}: {name} has the shape {tuple(tensor.shape)}, which should be {shape} by the"
            " other weights"
        )
    if tensor.dtype != torch.float32:
        raise UserError(
            f"{file}: {name} is {tensor.dtype}, and the seed project keeps its weights in float32"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(
            f"{file}: {name} holds values that are not finite", mend="take an earlier checkpoint"
        )

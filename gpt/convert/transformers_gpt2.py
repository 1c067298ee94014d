"""Our weights as those of transformers' GPT-2, and back. Nothing here needs transformers; the
tokenizer is gpt/convert/transformers_tokenizer.py's.

GPT-2 is the same function under three changes: its embedding carries our factor sqrt(h_dim),
multiplied in as the model does it, so that the stream begins with the same bits; its matrices are
transposed; and heads times head_dim is its h_dim.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpt.architecture.architecture import Architecture
from gpt.checkpoint.tensor_files import WeightsFile
from gpt.config.identity import MODEL_FILE, code_in_words
from gpt.config.saved import foreign_config, model_config, write_config
from gpt.config.shape import ModelConfig
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.parsing import parse_json, parse_yaml
from gpt.reading import read_text

# of a GPT2LMHeadModel's folder, as save_pretrained names them
CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_BLOCK = {  # ours, theirs, whether transposed
    "ln1": ("ln_1", False),
    "attn.qkv": ("attn.c_attn", True),
    "attn.c_proj": ("attn.c_proj", True),
    "ln2": ("ln_2", False),
    "mlp.c_fc": ("mlp.c_fc", True),
    "mlp.c_proj": ("mlp.c_proj", True),
}
_OUTER = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "ln_f.weight": "transformer.ln_f.weight",
    "ln_f.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
_FIXED: dict[str, Any] = {  # what a GPT2Config must say to be one of ours
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
MOST = 2**24  # sizes and steps that are believed
# our own keys in config.json, which transformers takes along: optimiser steps that the weights have
# seen, how they are scored, and the vocabulary's fingerprint
STEPS = "trained_steps"
LAST_N = "last_n"
FINGERPRINT = "tokenizer_fingerprint"
# the run that trained the weights: {"weights": sha256 of WEIGHTS, "config": its config.yaml}
RUN = "run.yaml"


class Imported(NamedTuple):
    """A GPT2LMHeadModel's folder as one of our models."""

    shape: ModelConfig
    weights: dict[str, torch.Tensor]  # fp32, by our names
    step: int
    last_n: int | None  # as its run was evaluated; None where that is not told
    tokenizer: str | None  # fingerprint of the vocabulary; likewise


def require_gpt(folder: Path | str, config: Mapping[str, Any]) -> None:
    """Raise UserError where weights are of a model that a model file builds. config: their
    config.yaml."""
    if config.get(MODEL_FILE):
        raise UserError(
            f"{folder} is a model that {code_in_words(config[MODEL_FILE])} builds, and GPT-2 of"
            " transformers computes the baseline's model only",
            mend="evaluate it by gpt/eval.py, and draw text by tools/sample.py",
        )


def require_gpt2_shape(model: ModelConfig) -> None:
    """Raise UserError where GPT-2 cannot have this shape."""
    width = model.n_heads * model.head_dim
    if width != model.h_dim:
        raise UserError(
            "transformers' GPT-2 derives the size of a head as h_dim / n_heads, so it cannot be"
            f" this model, whose {model.n_heads} heads of {model.head_dim} are {width} wide"
            f" together and h_dim is {model.h_dim}",
            mend="only shapes with n_heads x head_dim = h_dim, such as tiny, small, medium and"
            " large, can be exported",
        )


def require_gpt2_names(model: ModelConfig) -> None:
    """Raise UserError unless our model's code has exactly the parameters that GPT-2 has."""
    ours = set(Architecture(model).shapes())
    differing = sorted(ours ^ names_of(model).keys())
    if differing:
        state = "has" if differing[0] in ours else "lacks"
        raise UserError(
            f"the model of gpt/model.py {state} {differing[0]}, unlike transformers' GPT-2, which"
            " is the baseline's model",
            mend="a model whose code was changed cannot be exported; take the code of the baseline",
        )


def config_of(model: ModelConfig, vocab: Vocab, step: int, last_n: int | None) -> dict:
    """Arguments of transformers' GPT2Config."""
    own = {STEPS: step, FINGERPRINT: vocab.fingerprint}
    if last_n is not None:
        own[LAST_N] = last_n
    return {
        "vocab_size": model.vocab_size,
        "n_positions": model.seq_len,
        "n_embd": model.h_dim,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.mlp_dim,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": vocab.eod_id,
        "eos_token_id": vocab.eod_id,
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float32",
        **own,
        **{name: value for name, value in _FIXED.items() if name != "model_type"},
    }


def names_of(model: ModelConfig) -> dict[str, tuple[str, bool]]:
    """{our parameter name: (GPT-2's, whether transposed)}"""
    names = {ours: (theirs, False) for ours, theirs in _OUTER.items()}
    for layer in range(model.n_layers):
        for ours, (theirs, transposed) in _BLOCK.items():
            prefix = f"transformer.h.{layer}.{theirs}"
            names[f"blocks.{layer}.{ours}.weight"] = f"{prefix}.weight", transposed
            names[f"blocks.{layer}.{ours}.bias"] = f"{prefix}.bias", False
    return names


def to_gpt2(weights: Mapping[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """{GPT-2's name: tensor}. weights: {our name: tensor}."""
    converted = {
        theirs: _transposed_if(transposed, weights[ours])
        for ours, (theirs, transposed) in names_of(model).items()
    }
    factor = math.sqrt(model.h_dim)
    converted[_OUTER["token_embedding.weight"]] = weights["token_embedding.weight"] * factor
    return converted


def _transposed_if(transposed: bool, weight: torch.Tensor):
    return weight.t().contiguous() if transposed else weight


def from_gpt2(folder: Path | str) -> Imported:
    """A GPT2LMHeadModel's folder. Raises UserError.

    The embedding is divided by sqrt(h_dim) such that multiplying gives the same bits again wherever
    a float does so; the bits of the embedding itself come back where sqrt(h_dim) is a power of two,
    else up to the last one.
    """
    folder = Path(folder)
    config = _read_config(folder)
    width = config["n_embd"]
    model = ModelConfig(
        n_layers=config["n_layer"],
        h_dim=width,
        mlp_dim=config.get("n_inner") or 4 * width,
        n_heads=config["n_head"],
        head_dim=width // config["n_head"],
        vocab_size=config["vocab_size"],
        seq_len=config["n_positions"],
    )
    stored = _open_weights(folder)
    # before names are made of so many
    if model.n_layers > len(stored):
        raise UserError(
            f"{folder / WEIGHTS} holds {len(stored)} tensors, and its {CONFIG} calls for"
            f" {model.n_layers} layers"
        )
    names = names_of(model)
    weights = _read_weights(stored, names, folder / WEIGHTS)
    _check(weights, names, model, folder / WEIGHTS)
    for ours, (_, transposed) in names.items():
        weights[ours] = _transposed_if(transposed, weights[ours])
    embedding = weights["token_embedding.weight"]
    weights["token_embedding.weight"] = _divided(embedding, math.sqrt(width))
    return Imported(model, weights, config[STEPS], config.get(LAST_N), config.get(FINGERPRINT))


def _open_weights(folder: Path) -> WeightsFile:
    if not (folder / WEIGHTS).exists():
        raise UserError(
            f"{folder} holds no {WEIGHTS}",
            mend="save the model with save_pretrained in one file (max_shard_size)",
        )
    return WeightsFile(folder / WEIGHTS)


def _read_weights(
    stored: Mapping[str, torch.Tensor], names: dict[str, tuple[str, bool]], path: Path
) -> dict[str, torch.Tensor]:
    """{our name: fp32 tensor as GPT-2 has it}"""
    weights = {}
    missing = sorted(theirs for theirs, _ in names.values() if theirs not in stored)
    if missing:
        raise UserError(f"{path} lacks {missing[0]}, which its {CONFIG} calls for")
    for ours, (theirs, _) in names.items():
        weight = stored[theirs]
        if not weight.is_floating_point():
            raise UserError(f"{path}: {theirs} is {weight.dtype}, which holds no weights")
        weights[ours] = weight.float()
    return weights


def _check(
    weights: dict[str, torch.Tensor],
    names: dict[str, tuple[str, bool]],
    model: ModelConfig,
    path: Path,
):
    """Raise UserError unless each weight has GPT-2's shape for it and is finite."""
    for ours, shape in Architecture(model).shapes().items():
        theirs, transposed = names[ours]
        expected = shape[::-1] if transposed else shape
        actual = tuple(weights[ours].shape)
        if actual != expected:
            raise UserError(
                f"{path}: {theirs} has the shape {actual}, which should be {expected} by its"
                f" {CONFIG}"
            )
        if not bool(torch.isfinite(weights[ours]).all()):
            raise UserError(
                f"{path}: {theirs} holds values that are not finite", mend="take an earlier one"
            )


def _divided(product: torch.Tensor, factor: float):
    """x such that x * factor is `product` to the bit, where there is one; else the nearest."""
    nearest = product / factor
    quotient = nearest.clone()
    for end in (-math.inf, math.inf):
        neighbour = torch.nextafter(nearest, torch.tensor(end))
        wrong = quotient * factor != product
        exact = neighbour[wrong] * factor == product[wrong]
        quotient[wrong] = torch.where(exact, neighbour[wrong], quotient[wrong])
    return quotient


def _read_config(folder: Path) -> dict:
    path = folder / CONFIG
    try:
        stored = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is missing or not JSON",
            mend="give the folder of a GPT2LMHeadModel, as export_hf.py or save_pretrained writes"
            " it",
        ) from error
    # what GPT2Config takes where its file says nothing, all but two of ours
    config = {**_FIXED, STEPS: 0}
    del config["model_type"], config["tie_word_embeddings"]
    if isinstance(stored, dict):
        config |= stored
    mistakes = [
        f"{name} is {config.get(name)!r}, not {value!r}"
        for name, value in _FIXED.items()
        if config.get(name) != value
    ]
    for name, least in _least_sizes(config).items():
        if type(config.get(name)) is not int or not least <= config[name] <= MOST:
            mistakes.append(f"{name} is {config.get(name)!r}")
    if not mistakes and config["n_embd"] % config["n_head"]:
        mistakes = [f"n_embd {config['n_embd']} is no multiple of n_head {config['n_head']}"]
    if mistakes:
        raise UserError(f"{path} is not that of a GPT-2 like ours ({'; '.join(mistakes)})")
    return config


def _least_sizes(config: dict):
    """{size in a GPT2Config: its least value}"""
    sizes = dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"), 1)
    sizes[STEPS] = 0
    if config.get("n_inner") is not None:
        sizes["n_inner"] = 1
    if LAST_N in config:
        sizes[LAST_N] = 1
    return sizes


def write_run(folder: Path, config: dict) -> None:
    """Write which run trained the weights in a folder. config: its config.yaml."""
    sha256 = hash_file(folder / WEIGHTS)["sha256"]
    write_config(folder / RUN, {"weights": sha256, "config": config})


def run_config_of(folder: Path, imported: Imported, vocab: Vocab, sha256: str) -> dict:
    """config.yaml for imported weights: their run's, where they are as they were exported; else
    what of it is known. sha256: of the folder's WEIGHTS."""
    try:
        run = parse_yaml(read_text(folder / RUN))
        is_same_model = model_config(run["config"], RUN) == imported.shape
        is_gpt = run["config"].get(MODEL_FILE) is None
        if run["weights"] == sha256 and is_same_model and is_gpt:
            return {**run["config"], "step": imported.step}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        pass  # no file, or none of ours
    config = foreign_config(folder.name, imported.step, imported.shape, vocab.fingerprint)
    if imported.last_n is not None:
        config["run"]["gpt"][LAST_N] = imported.last_n
    return config

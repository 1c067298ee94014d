"""Our weights and tokenizer as those of transformers' GPT-2, and back. Nothing here needs
transformers or tokenizers but `save_tokenizer`.

GPT-2 is the same function under three changes: its embedding carries our factor sqrt(h_dim),
multiplied in as the model does it, so that the stream begins with the same bits; its matrices are
transposed; and heads times head_dim is its h_dim.
"""

import json
import math
from pathlib import Path

import sentencepiece
import torch
from safetensors import SafetensorError, safe_open

from gpt.checkpoint.weights import expected_shapes
from gpt.config.shape import ModelConfig
from gpt.data.vocab import BLANK
from gpt.errors import UserError

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
_FIXED = {  # what a GPT2Config must say to be one of ours
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# our own key in config.json: optimiser steps that the weights have seen
STEPS = "trained_steps"


def require_gpt2_shape(model: ModelConfig):
    """Raise UserError where GPT-2 cannot have this shape."""
    width = model.n_heads * model.head_dim
    if width != model.h_dim:
        raise UserError(
            "transformers' GPT-2 derives the size of a head as h_dim / n_heads, so it cannot be"
            f" this model, whose {model.n_heads} heads of {model.head_dim} are {width} wide"
            f" together and h_dim is {model.h_dim}: only shapes with n_heads x head_dim = h_dim,"
            " such as tiny, small, medium and large, can be exported"
        )


def config_of(model: ModelConfig, eod_id: int, step: int) -> dict:
    """Arguments of transformers' GPT2Config."""
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
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
        STEPS: step,
        **{name: value for name, value in _FIXED.items() if name != "model_type"},
    }


def names_of(model: ModelConfig) -> dict:
    """{our parameter name: (GPT-2's, whether transposed)}"""
    names = {ours: (theirs, False) for ours, theirs in _OUTER.items()}
    for layer in range(model.n_layers):
        for ours, (theirs, transposed) in _BLOCK.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{layer}.{ours}.{kind}"] = (
                    f"transformer.h.{layer}.{theirs}.{kind}",
                    transposed and kind == "weight",
                )
    return names


def to_gpt2(weights, model: ModelConfig) -> dict:
    """{GPT-2's name: tensor}. weights: {our name: tensor}."""
    found = {
        theirs: weights[ours].t().contiguous() if transposed else weights[ours]
        for ours, (theirs, transposed) in names_of(model).items()
    }
    found["transformer.wte.weight"] = weights["token_embedding.weight"] * math.sqrt(model.h_dim)
    return found


def from_gpt2(folder):
    """(ModelConfig, {our name: fp32 tensor}, steps) of a GPT2LMHeadModel's folder. Raises
    UserError.

    The embedding is divided by sqrt(h_dim) such that multiplying gives the same bits again wherever
    a float does so; the bits of the embedding itself come back where sqrt(h_dim) is a power of two,
    else up to the last one.
    """
    folder = Path(folder)
    config = _read_config(folder)
    heads, width = config["n_head"], config["n_embd"]
    model = ModelConfig(
        n_layers=config["n_layer"],
        h_dim=width,
        mlp_dim=config.get("n_inner") or 4 * width,
        n_heads=heads,
        head_dim=width // heads,
        vocab_size=config["vocab_size"],
        seq_len=config["n_positions"],
    )
    names, path = names_of(model), folder / "model.safetensors"
    try:
        with safe_open(str(path), framework="pt") as file:
            there = set(file.keys())
            missing = sorted(theirs for theirs, _ in names.values() if theirs not in there)
            if missing:
                raise UserError(f"{path} lacks {missing[0]}, which its config.json calls for")
            weights = {ours: file.get_tensor(theirs).float() for ours, (theirs, _) in names.items()}
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no model.safetensors: save the model with save_pretrained in one file "
            "(max_shard_size)"
        ) from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from error
    for ours, wanted in expected_shapes(model).items():
        theirs, transposed = names[ours]
        wanted = wanted[::-1] if transposed else wanted
        found = tuple(weights[ours].shape)
        if found != wanted:
            raise UserError(
                f"{path}: {theirs} has the shape {found}, which should be {wanted} by its"
                " config.json"
            )
        if not bool(torch.isfinite(weights[ours]).all()):
            raise UserError(
                f"{path}: {theirs} holds values that are not finite: take an earlier one"
            )
    weights = {
        ours: weights[ours].t().contiguous() if transposed else weights[ours]
        for ours, (_, transposed) in names.items()
    }
    weights["token_embedding.weight"] = _divided(
        weights["token_embedding.weight"], math.sqrt(width)
    )
    return model, weights, config[STEPS]


def _divided(product, factor):
    """x such that x * factor is `product` to the bit, where there is one; else the nearest."""
    nearest = product / factor
    found = nearest.clone()
    for end in (-math.inf, math.inf):
        neighbour = torch.nextafter(nearest, torch.tensor(end))
        wrong = found * factor != product
        found[wrong] = torch.where(
            neighbour[wrong] * factor == product[wrong], neighbour[wrong], found[wrong]
        )
    return found


def _read_config(folder) -> dict:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is missing or not JSON: give the folder of a GPT2LMHeadModel, as export_hf.py"
            " or save_pretrained writes it"
        ) from error
    config = config if isinstance(config, dict) else {}
    config = {
        **{
            name: value
            for name, value in _FIXED.items()
            if name not in ("model_type", "tie_word_embeddings")
        },
        STEPS: 0,
        **config,
    }
    wrong = [
        f"{name} is {config.get(name)!r}, not {value!r}"
        for name, value in _FIXED.items()
        if config.get(name) != value
    ]
    sizes = {
        **dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"), 1),
        STEPS: 0,
    }
    sizes |= {"n_inner": 1} if config.get("n_inner") is not None else {}
    wrong += [
        f"{name} is {config.get(name)!r}"
        for name, least in sizes.items()
        if type(config.get(name)) is not int or config[name] < least
    ]
    if not wrong and config["n_embd"] % config["n_head"]:
        wrong = [f"n_embd {config['n_embd']} is no multiple of n_head {config['n_head']}"]
    if wrong:
        raise UserError(f"{path} is not that of a GPT-2 like ours ({'; '.join(wrong)})")
    return config


def save_tokenizer(vocab, seq_len: int, folder):
    """Write the SentencePiece BPE vocabulary as a PreTrainedTokenizerFast, with the end of a
    document for bos and eos.

    Of merges the one whose result SentencePiece scores highest comes first. Hold its ids against
    SentencePiece's before use: a vocabulary of another kind than BPE with byte fallback, the
    identity normalisation and no dummy prefix, as ours and the seed project's are, gives others.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    ids = {pieces.id_to_piece(i): i for i in range(vocab.size)}
    special = (
        pieces.is_byte,
        pieces.is_control,
        pieces.is_unknown,
        pieces.is_unused,
        lambda i: i == vocab.eod_id,
    )
    merges = []
    for piece, i in ids.items():
        if any(kind(i) for kind in special):
            continue
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [
            (-pieces.get_score(i), i, pair) for pair in halves if pair[0] in ids and pair[1] in ids
        ]
    unknown = pieces.id_to_piece(pieces.unk_id()) if pieces.unk_id() >= 0 else None
    found = Tokenizer(
        models.BPE(
            ids, [pair for _, _, pair in sorted(merges)], unk_token=unknown, byte_fallback=True
        )
    )
    found.normalizer = normalizers.Replace(" ", BLANK)
    found.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    end = AddedToken(pieces.id_to_piece(vocab.eod_id), special=True, normalized=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=found,
        bos_token=end,
        eos_token=end,
        model_max_length=seq_len,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    # transformers 5 writes a name that 4 does not know
    saved = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**saved, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=1) + "\n",
        encoding="utf-8",
    )

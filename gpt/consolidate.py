"""A DeepSpeed checkpoint of any ZeRO stage to one file of fp32 weights, checked; and that file back
into a model.

Nothing here imports DeepSpeed, and no pickle runs code: the few types of DeepSpeed that stand in
its files are replaced by stand-ins. A consolidated folder holds model.safetensors, config.yaml,
tokenizer.model, and checkpoint.json with the size and sha256 of each. Checkpoints are memory-mapped
and put together one tensor at a time.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gpt import checkpoint
from gpt.corpus import TOKENIZER
from gpt.errors import UserError
from gpt.files import built_aside, hash_file, require_new_folder
from gpt.model import GPT
from gpt.plan import ModelConfig
from gpt.schema import GPT_KEYS

WEIGHTS = "model.safetensors"


class _StandIn:
    """In place of DeepSpeed's types of which nothing is needed here."""


STAND_INS = (
    (_StandIn, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_StandIn, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_StandIn, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)


def model_config(config: dict, where) -> ModelConfig:
    """The shape in a config.yaml. Raises UserError where a value is missing or no whole number."""
    fields = ModelConfig.__dataclass_fields__
    found = {name: config["model"].get(name) for name in fields}
    wrong = [
        f"model.{name} {GPT_KEYS[name].problem(value)}"
        for name, value in found.items()
        if GPT_KEYS[name].problem(value)
    ]
    if wrong:
        raise UserError(
            f"{where}: {wrong[0]}; use the config.yaml that was written beside the checkpoint"
        )
    return ModelConfig(**found)


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
    source = checkpoint.resolve(checkpoint_dir, tag)
    require_new_folder(output_dir)
    manifest = checkpoint.verify(source)
    config = checkpoint.read_config(source / checkpoint.CONFIG)
    shapes = expected_shapes(model_config(config, source / checkpoint.CONFIG))
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
        checkpoint.write_config(building / checkpoint.CONFIG, config)
        (building / TOKENIZER).write_bytes(tokenizer)
        _compare(building / WEIGHTS, weights)
        found = check(building / WEIGHTS)
        files = {
            name: hash_file(building / name) for name in (WEIGHTS, checkpoint.CONFIG, TOKENIZER)
        }
        facts = {"step": config["step"], "made_from": made_from}
        checkpoint.write_manifest(building, {"format": checkpoint.FORMAT, **facts, "files": files})
    return found


def foreign_config(name: str, step: int, shape: ModelConfig, vocab) -> dict:
    """config.yaml for weights that came from elsewhere: of their run it tells the shape and the
    tokenizer."""
    model = asdict(shape)
    return {
        "name": name,
        "step": step,
        "precision": "fp32",
        "model": model,
        "run": {"gpt": {**model}},
        "dataset": {"tokenizer": vocab.fingerprint},
    }


def read_folder(folder):
    """(config.yaml, manifest) of a consolidated folder, each of whose files is as it was written.
    Raises UserError."""
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no {WEIGHTS}: give a folder of consolidated weights, which"
            " tools/zero_to_fp32.py or tools/import_languini.py make"
        )
    manifest = checkpoint.verify(folder)
    return checkpoint.read_config(folder / checkpoint.CONFIG), manifest


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
    usual = checkpoint.PROBE_TOLERANCE[precision] * abs(stored)
    if off <= usual:
        return found, None
    if precision == "fp32" or not off <= checkpoint.PROBE_DOUBT * usual:
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


class Joined(Mapping):
    """{name: tensor}, each put together from its pieces when it is asked for.

    parts: {name: (shape, flat pieces in order, whose end may be padding)}.
    """

    def __init__(self, parts: dict):
        self._parts = parts

    def __getitem__(self, name):
        shape, pieces = self._parts[name]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.detach().narrow(0, 0, math.prod(shape)).view(shape)

    def __iter__(self):
        return iter(self._parts)

    def __len__(self):
        return len(self._parts)


@dataclass(frozen=True)
class FullState:
    """A checkpoint with its tensors whole, whatever ranks and ZeRO stage wrote it."""

    step: int
    stage: int
    weights: Mapping  # {parameter name: fp32 tensor}
    # {"exp_avg", "exp_avg_sq" or "momentum_buffer": {parameter name: fp32 tensor}}
    moments: dict
    updates: float  # optimizer steps that the moments have seen
    scheduler: dict | None  # the scheduler's own state


def read_state(source: Path) -> FullState:
    """All tensors of a checkpoint's folder, put together. Raises UserError where a file is missing
    or strange."""
    models = _rank_files(
        source, "mp_rank_00_model_states.pt", "zero_pp_rank_*_mp_rank_00_model_states.pt"
    )
    model = checkpoint.load_weights_only(models[0], STAND_INS, mmap=True)
    optimizers = sorted(source.glob("*_optim_states.pt"), key=checkpoint.rank_of)
    try:
        if not optimizers and model.get("optimizer") is not None:
            return _unshared(model)
        ranks = model["dp_world_size"]
        missing = [
            r for r in range(ranks) if r not in [checkpoint.rank_of(path) for path in optimizers]
        ]
        if missing:
            raise UserError(
                f"{source} lacks zero_pp_rank_{missing[0]}_mp_rank_00_optim_states.pt of a run on"
                f" {ranks} rank(s): copy the checkpoint's files from every host into one folder"
            )
        states = [
            checkpoint.load_weights_only(path, STAND_INS, mmap=True)["optimizer_state_dict"]
            for path in optimizers
        ]
        return _shared(model, states[:ranks])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{source} is not a checkpoint of this trainer ({type(error).__name__}: {error})"
        ) from error


def _unshared(model) -> FullState:
    """Stage 0: the model file holds all, in fp32."""
    names = list(model["module"])
    inner = model["optimizer"]["state"]
    keys = [
        key for key, value in inner.get(0, {}).items() if torch.is_tensor(value) and value.dim()
    ]
    moments = {key: {name: inner[index][key] for index, name in enumerate(names)} for key in keys}
    weights = {name: weight.float() for name, weight in model["module"].items()}
    return FullState(
        model["step"],
        0,
        weights,
        moments,
        float(inner.get(0, {}).get("step", 0)),
        model["lr_scheduler"],
    )


def _shared(model, states) -> FullState:
    """Stages 1 to 3: every rank's optimizer file holds its stretches of weights and moments."""
    stage = int(states[0]["zero_stage"])
    groups = model["param_shapes"]
    if stage == 3:
        flat = [state["fp32_flat_groups"] for state in states]
        inner = [s["optimizer_state_dict"]["state"] for s in states]
    else:
        flat = [state["single_partition_of_fp32_groups"] for state in states]
        inner = [state["base_optimizer_state"]["state"] for state in states]
    join = _join_stage3 if stage == 3 else _join_stage12
    first = inner[0].get(0, {})
    keys = [
        key
        for key, value in first.items()
        if torch.is_tensor(value) and value.shape == flat[0][0].shape
    ]
    moments = {
        key: join([[s[index][key] for index in range(len(s))] for s in inner], groups)
        for key in keys
    }
    return FullState(
        model["step"],
        stage,
        join(flat, groups),
        moments,
        float(first.get("step", 0)),
        model["lr_scheduler"],
    )


def _rank_files(source, single, pattern):
    if (source / single).is_file():
        return [source / single]
    files = sorted(source.glob(pattern), key=checkpoint.rank_of)
    if not files:
        raise UserError(
            f"{source} holds no file {single} or {pattern}: it is no whole DeepSpeed checkpoint"
        )
    return files


def _join_stage12(flat, groups):
    """Each group's parameters lie flattened one after another, and every rank holds an equal
    stretch of them.

    flat: per rank, a flat tensor per group.
    """
    parts = {}
    for index, shapes in enumerate(groups):
        stretches, start = [rank[index] for rank in flat], 0
        for name, shape in shapes.items():
            parts[name] = shape, _cut(stretches, start, math.prod(shape))
            start += math.prod(shape)
    return Joined(parts)


def _cut(stretches, start, count):
    """Views of elements [start, start + count) of stretches laid end to end."""
    parts = []
    for stretch in stretches:
        take = max(0, min(count, stretch.numel() - start))
        if take:
            parts.append(stretch.narrow(0, start, take))
            start, count = start + take, count - take
        start -= stretch.numel()
    assert count == 0, "the stretches end before the parameter does"
    return parts


def _join_stage3(flat, groups):
    """Every parameter is cut into equal stretches, one per rank, the last one padded. flat as in
    `_join_stage12`."""
    parts, start = {}, 0
    for name, shape in ((name, shape) for shapes in groups for name, shape in shapes.items()):
        stretch = math.ceil(math.prod(shape) / len(flat))
        parts[name] = shape, [piece for rank in flat for piece in _cut(rank, start, stretch)]
        start += stretch
    return Joined(parts)


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

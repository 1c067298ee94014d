"""A DeepSpeed checkpoint of any ZeRO stage to one file of fp32 weights, checked; and that file back into a model.

Nothing here imports DeepSpeed, and no pickle runs code: the few types of DeepSpeed that stand in its files are replaced
by stand-ins. A consolidated folder holds model.safetensors, config.yaml and tokenizer.model.
"""

import math
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from gpt import checkpoint
from gpt.corpus import TOKENIZER
from gpt.errors import UserError
from gpt.model import GPT
from gpt.plan import ModelConfig
from gpt.schema import GPT_KEYS

WEIGHTS = "model.safetensors"


class _StandIn:
    """In place of DeepSpeed's types of which nothing is needed here."""


_STAND_INS = (
    (_StandIn, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_StandIn, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_StandIn, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)


def model_config(config: dict, where) -> ModelConfig:
    """The shape in a config.yaml. Raises UserError where a value is missing or no whole number."""
    fields = ModelConfig.__dataclass_fields__
    found = {name: config["model"].get(name) for name in fields}
    wrong = [f"model.{name} {GPT_KEYS[name].problem(value)}" for name, value in found.items() if GPT_KEYS[name].problem(value)]
    if wrong:
        raise UserError(f"{where}: {wrong[0]}; use the config.yaml that was written beside the checkpoint")
    return ModelConfig(**found)


def expected_shapes(config: ModelConfig) -> dict:
    """{parameter name: shape} of a model, without its memory."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT(config, seed=None).named_parameters()}


def consolidate(checkpoint_dir, output_dir, tag=None) -> dict:
    """Write the fp32 weights of a checkpoint into the new folder `output_dir`; returns {"step", "parameters", "stage"}.

    The result is whole or absent. Raises UserError for a missing or damaged checkpoint, or an existing output.
    """
    source = checkpoint.resolve(checkpoint_dir, tag)
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already: remove it first, or name another folder")
    checkpoint.verify(source)
    config = checkpoint.read_config(source / checkpoint.CONFIG)
    shapes = expected_shapes(model_config(config, source / checkpoint.CONFIG))
    step, stage, weights = read_weights(source)
    _check(weights, shapes, source)
    if not (source / TOKENIZER).is_file():
        raise UserError(f"{source / TOKENIZER} is missing: copy the dataset's tokenizer.model there")
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        save_file(weights, str(building / WEIGHTS), metadata={"format": "pt", "step": str(step)})
        checkpoint.write_config(building / checkpoint.CONFIG, {**config, "step": step})
        shutil.copyfile(source / TOKENIZER, building / TOKENIZER)
        _compare(building / WEIGHTS, weights)
        (building / WEIGHTS).chmod(0o644)  # safetensors' files and mkdtemp's folders are private
        building.chmod(0o755)
        building.replace(output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {"step": step, "stage": stage, "parameters": sum(w.numel() for w in weights.values())}


def read_weights(source: Path):
    """(step, ZeRO stage, {name: fp32 tensor}) of a checkpoint's folder."""
    models = _rank_files(source, "mp_rank_00_model_states.pt", "zero_pp_rank_*_mp_rank_00_model_states.pt")
    model = checkpoint.load_weights_only(models[0], _STAND_INS)
    ranks, step = model["dp_world_size"], model["step"]
    optimizers = sorted(source.glob("*_optim_states.pt"), key=checkpoint.rank_of)
    if not optimizers and model.get("optimizer") is not None:  # stage 0: the model file holds all, in fp32
        return step, 0, {name: weight.float() for name, weight in model["module"].items()}
    missing = [r for r in range(ranks) if r not in [checkpoint.rank_of(path) for path in optimizers]]
    if missing:
        raise UserError(f"{source} lacks zero_pp_rank_{missing[0]}_mp_rank_00_optim_states.pt of a run on {ranks} "
                        "rank(s): copy the checkpoint's files from every host into one folder")
    states = [checkpoint.load_weights_only(p, _STAND_INS, mmap=True)["optimizer_state_dict"] for p in optimizers[:ranks]]
    stage = int(states[0]["zero_stage"])
    groups = model["param_shapes"]
    return step, stage, (_join_stage3 if stage == 3 else _join_stage12)(states, groups)


def _rank_files(source, single, pattern):
    if (source / single).is_file():
        return [source / single]
    files = sorted(source.glob(pattern), key=checkpoint.rank_of)
    if not files:
        raise UserError(f"{source} holds no file {single} or {pattern}: it is no whole DeepSpeed checkpoint")
    return files


def _join_stage12(states, groups):
    """Each group's parameters lie flattened one after another, and every rank holds an equal stretch of them."""
    weights = {}
    for index, shapes in enumerate(groups):
        stretches = [state["single_partition_of_fp32_groups"][index] for state in states]
        start = 0
        for name, shape in shapes.items():
            weights[name] = _cut(stretches, start, math.prod(shape)).view(shape)
            start += math.prod(shape)
    return weights


def _cut(stretches, start, count):
    """Elements [start, start + count) of stretches laid end to end; a view where one stretch holds them all."""
    parts, size = [], stretches[0].numel()
    while count:
        rank, offset = divmod(start, size)
        take = min(count, size - offset)
        parts.append(stretches[rank].narrow(0, offset, take))
        start, count = start + take, count - take
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _join_stage3(states, groups):
    """Every parameter is cut into equal stretches, one per rank, the last one padded."""
    flat = [torch.cat(state["fp32_flat_groups"]) for state in states]
    weights, start = {}, 0
    for name, shape in ((name, shape) for shapes in groups for name, shape in shapes.items()):
        count = math.prod(shape)
        stretch = math.ceil(count / len(flat))
        parts = [rank.narrow(0, start, stretch) for rank in flat]
        weights[name] = torch.cat(parts).narrow(0, 0, count).view(shape)
        start += stretch
    return weights


def _check(weights, shapes, where):
    """Exactly the model's parameters, each of its shape, fp32 and finite. Raises UserError."""
    missing, extra = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing or extra:
        raise UserError(f"{where} does not fit its config.yaml: " + (f"{missing[0]} is missing" if missing else
                        f"{extra[0]} is not a parameter of the model"))  # fmt: skip
    for name, weight in weights.items():
        if tuple(weight.shape) != shapes[name]:
            raise UserError(f"{where}: {name} has the shape {tuple(weight.shape)}, its config.yaml says {shapes[name]}")
        if weight.dtype != torch.float32:
            raise UserError(f"{where}: {name} is {weight.dtype}, not float32")
        if not bool(torch.isfinite(weight).all()):
            raise UserError(f"{where}: {name} holds values that are not finite: use an earlier checkpoint")


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
        raise UserError(f"{weights_file} does not exist: consolidate a checkpoint with `python tools/zero_to_fp32.py "
                        "CHECKPOINT_DIR OUTPUT_DIR`") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights_file} is not a safetensors file ({error}): give the model.safetensors that "
                        "tools/zero_to_fp32.py wrote; files with pickles are never loaded") from error
    _check(weights, expected_shapes(shape), weights_file)
    model = GPT(shape, seed=None)
    model.load_state_dict(weights)
    return model.eval()

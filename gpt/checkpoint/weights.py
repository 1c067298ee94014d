"""Consolidated fp32 weights: out of a checkpoint's files, checked, written, read.

runs/24h/export/
    model.safetensors    the weights
    config.yaml          of the run that trained them, with their step
    tokenizer.model      of its dataset
    my_model.py …        the model's own code, where it is no GPT
    checkpoint.json      each file's size and sha256, and where the weights are from

`made_from` in checkpoint.json is {"checkpoint", "sha256"}, or lists of both where the weights are
the mean of several checkpoints'.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt.architecture.architecture import Architecture, Model
from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.code_files import architecture_of, write_code
from gpt.checkpoint.manifest import MANIFEST, PROBE_DOUBT, WEIGHTS, Manifest, Probe, same_loss
from gpt.checkpoint.tensor_files import Mean, WeightsFile, write_tensors
from gpt.checkpoint.zero_files import FullState, read_state
from gpt.config.identity import own_model
from gpt.config.own_code import VARIANTS, OwnCode
from gpt.config.saved import CONFIG, write_config
from gpt.data.manifests import TOKENIZER
from gpt.errors import UserError
from gpt.files import built_aside, hash_file, require_new_folder
from gpt.reading import read_bytes

# of a folder that transformers made
HF_CONFIG = "config.json"


@dataclass(frozen=True)
class Consolidated:
    """What `consolidate` wrote."""

    steps: list[int]  # of the checkpoints, several where the weights are their mean
    stage: int  # of ZeRO, that the last one was written at
    parameters: int
    probe_loss: float | None  # of the written weights, nats per token; None without a probe
    doubt: str | None  # a sentence on that loss


def consolidate(
    checkpoint_dir: Path | str,
    output_dir: Path | str,
    tag: str | None = None,
    trusted: bool = False,
) -> Consolidated:
    """Write the fp32 weights of a checkpoint into the new folder `output_dir`.

    The result is whole or absent: names, shapes, types and values are checked, and its loss on the
    checkpoint's probe batch. trusted: whether code of the model's that lies in the checkpoint may
    be run. Raises UserError for a missing or damaged checkpoint, or an existing output.
    """
    source = folders.find(checkpoint_dir, tag)
    require_new_folder(output_dir)
    checkpoint = Checkpoint.open(source).verify()
    architecture = _architecture_of(checkpoint, trusted)
    state = _checked_state(checkpoint, architecture)
    probe_loss, doubt = write_folder(
        output_dir,
        state.weights,
        {**checkpoint.config, "step": state.step},
        _tokenizer_of(source),
        {"checkpoint": checkpoint.tag, "sha256": checkpoint.manifest.files_sha256},
        lambda weights_file: _probe(_load(weights_file, architecture), checkpoint),
        checkpoint.manifest.probe.tokens,
        architecture.code,
    )
    parameters = architecture.parameters()
    return Consolidated([state.step], state.stage, parameters, probe_loss, doubt)


def consolidate_mean(
    checkpoint_dir: Path | str,
    output_dir: Path | str,
    count: int,
    tag: str | None = None,
    trusted: bool = False,
) -> Consolidated:
    """The same of the mean of the last `count` checkpoints' weights, up to `tag`, or the latest.

    Raises UserError, too, where there are fewer, or one of them is damaged.
    """
    last = folders.find(checkpoint_dir, tag)
    require_new_folder(output_dir)
    tags = folders.committed(last.parent)
    if last.name not in tags:
        raise UserError(
            f"{last} is no checkpoint among others", mend="give a run's checkpoints folder"
        )
    tags = tags[: tags.index(last.name) + 1]
    if len(tags) < count:
        raise UserError(
            f"{last.parent} has {len(tags)} checkpoint(s) up to {last.name}, not {count}",
            mend=f"give --average {len(tags)} at most; a run keeps as many as its keep_last says",
        )
    checkpoints = [Checkpoint.open(last.parent / other).verify() for other in tags[-count:]]
    checkpoint = checkpoints[-1]
    _require_one_model(checkpoints)
    architecture = _architecture_of(checkpoint, trusted)
    states = [_checked_state(other, architecture) for other in checkpoints]
    steps = [state.step for state in states]
    mean = Mean([state.weights for state in states])
    made_from = {
        "checkpoint": [other.tag for other in checkpoints],
        "sha256": [other.manifest.files_sha256 for other in checkpoints],
    }
    probe_loss, _ = write_folder(
        output_dir,
        mean,
        {**checkpoint.config, "step": steps[-1], "mean_of_steps": steps},
        _tokenizer_of(last),
        made_from,
        lambda weights_file: (_probe_loss(_load(weights_file, architecture), checkpoint), None),
        checkpoint.manifest.probe.tokens,
        architecture.code,
    )
    return Consolidated(steps, states[-1].stage, architecture.parameters(), probe_loss, None)


def _architecture_of(checkpoint: Checkpoint, trusted: bool) -> Architecture:
    folder = checkpoint.path
    return architecture_of(checkpoint.config, folder / CONFIG, folder, trusted)


def _require_one_model(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise UserError unless checkpoints are of one model."""
    last = checkpoints[-1]
    for checkpoint in checkpoints:
        difference = None
        if checkpoint.shape != last.shape:
            difference = "of another shape than"
        elif own_model(checkpoint.config) != own_model(last.config):
            difference = "by another model_file or other model_options than"
        if difference:
            raise UserError(
                f"{checkpoint.path} is of a model {difference} {last.path}",
                mend="average fewer of them",
            )


def _tokenizer_of(source: Path) -> bytes:
    tokenizer = source / TOKENIZER
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer} is missing", mend="copy the dataset's tokenizer.model there")
    return read_bytes(tokenizer)


def _checked_state(checkpoint: Checkpoint, architecture: Architecture) -> FullState:
    """A checkpoint's tensors; its weights are those that its config.yaml calls for."""
    state = read_state(checkpoint.path)
    check(state.weights, architecture, checkpoint.path)
    if state.step != checkpoint.step:
        raise UserError(
            f"{checkpoint.path}: its tensors are of step {state.step}, its {MANIFEST} of step"
            f" {checkpoint.step}",
            mend="use another checkpoint",
        )
    return state


def load_checkpoint(checkpoint: Checkpoint, trusted: bool = False) -> tuple[Model, str | None]:
    """(the model of a run's verified checkpoint, what is doubtful about its loss on the probe
    batch). Raises UserError where that is not the loss that training had.

    trusted: whether code of the model's that lies in the checkpoint may be run.
    """
    architecture = _architecture_of(checkpoint, trusted)
    state = _checked_state(checkpoint, architecture)
    model = architecture.with_weights(state.weights)
    _, doubt = _probe(model, checkpoint)
    return model, doubt


def write_folder(
    output: Path | str,
    weights: Mapping[str, torch.Tensor],
    config: dict,
    tokenizer: bytes,
    made_from: dict,
    check: Callable[[Path], tuple[float | None, str | None]] = lambda weights_file: (None, None),
    probe_tokens: list | None = None,
    code: OwnCode | None = None,
) -> tuple[float | None, str | None]:
    """Write a consolidated folder, whole or absent.

    weights: {parameter name: fp32 tensor}, asked for one at a time. config: for config.yaml, "step"
    included. made_from: what the manifest tells of its origin. check(weights_file): a last look at
    what was written, which may raise; the (loss on the probe batch, what is doubtful about it) that
    it returns are returned. probe_tokens: that batch, which is kept with the loss, so that whoever
    loads the weights computes as the code did that trained them. code: of the model's own, which is
    kept with them.
    """
    with built_aside(output) as building:
        metadata = {"format": "pt", "step": str(config["step"])}
        write_tensors(building / WEIGHTS, weights, metadata)
        write_config(building / CONFIG, config)
        (building / TOKENIZER).write_bytes(tokenizer)
        _compare(building / WEIGHTS, weights)
        checked = check(building / WEIGHTS)
        own_files = write_code(building, [code] if code else [])
        names = (WEIGHTS, CONFIG, TOKENIZER, *own_files)
        files = {name: hash_file(building / name) for name in names}
        loss, _ = checked
        probe = Probe([], 0.0) if loss is None else Probe(probe_tokens or [], loss)
        manifest = Manifest(step=config["step"], made_from=made_from, files=files, probe=probe)
        manifest.write(building)
    return checked


def open_folder(folder: Path | str) -> Checkpoint:
    """A consolidated folder, each of whose files is as it was written. Raises UserError."""
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file", mend=f"give the folder {folder.parent}")
    require_our_layout(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no {WEIGHTS}",
            mend="give a folder of consolidated weights, which tools/zero_to_fp32.py or"
            " tools/import_languini.py make",
        )
    return Checkpoint.open(folder).verify()


def require_our_layout(folder: Path) -> None:
    """Raise UserError for a folder that transformers made."""
    if (folder / HF_CONFIG).is_file() and not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} is a model in the layout of transformers ({HF_CONFIG})",
            mend=f"bring it into ours with `python tools/export_hf.py --back {folder} OUT`, and"
            " give OUT",
        )


def _probe_loss(model: Model, checkpoint: Checkpoint) -> float | None:
    """The model's loss on the checkpoint's probe batch, nats per token; None without one."""
    tokens = torch.tensor(checkpoint.manifest.probe.tokens)
    if not tokens.numel():
        return None
    shape = model.config
    if int(tokens.max()) >= shape.vocab_size or tokens.shape[1] > shape.seq_len + 1:
        raise UserError(
            f"the probe batch of {checkpoint.path / MANIFEST} does not fit the model",
            mend="use another checkpoint",
        )
    with torch.no_grad():
        return model(tokens[:, :-1], tokens[:, 1:]).item()


def _probe(model: Model, checkpoint: Checkpoint) -> tuple[float | None, str | None]:
    """(the model's loss on the checkpoint's probe batch, what is doubtful about it); None for
    either.

    Raises UserError where it is not the loss that training had. A model trained in 16 bits computed
    that loss with rounded weights, by a GPU's kernels: how far that takes it nobody knows for every
    model, so there is room for doubt.
    """
    stored = checkpoint.manifest.probe.loss
    precision = checkpoint.manifest.precision
    loss = _probe_loss(model, checkpoint)
    if loss is None:
        return None, None
    if same_loss(loss, stored, precision):
        return loss, None
    if precision == "fp32" or not same_loss(loss, stored, precision, times=PROBE_DOUBT):
        raise UserError(
            f"{checkpoint.path}: the consolidated weights give the loss {loss:.6f} on the probe"
            f" batch, where training had {stored:.6f} when it saved them",
            mend="use another checkpoint, or the code that trained it, if the model's has changed",
        )
    doubt = (
        f"training had {stored:.6f} there in {precision}, and rounding seldom takes it so far:"
        " compare gpt/eval.py's loss with the run's last evaluation before you use these weights"
    )
    return loss, doubt


def check(
    weights: Mapping[str, torch.Tensor],
    architecture: Architecture,
    source: Path | str,
    model: str = "its config.yaml",
) -> None:
    """Raise UserError unless weights are exactly a model's parameters, each of its shape, fp32 and
    finite. source: what messages call the file, or its folder. model: what they call the model."""
    # before a model of so many is built, if only on paper; one of the user's may share them
    layers = architecture.shape.n_layers
    code = architecture.code
    is_ours = code is None or code.path.parent == VARIANTS
    if is_ours and layers > len(weights):
        raise UserError(
            f"{source} does not fit {model}: it holds {len(weights)} tensors, and the model"
            f" has {layers} layers",
            mend="use the config.yaml that was written beside it",
        )
    shapes = architecture.shapes()
    missing = sorted(shapes.keys() - weights.keys())
    extra = sorted(weights.keys() - shapes.keys())
    misfit = None
    if missing:
        misfit = f"{missing[0]} is missing"
    elif extra:
        misfit = f"{extra[0]} is not a parameter of the model"
    if misfit:
        raise UserError(
            f"{source} does not fit {model}: {misfit}",
            mend="weights of another program become ours by tools/import_languini.py or"
            " `tools/export_hf.py --back`; those of a changed model need its code",
        )
    for name, weight in weights.items():
        actual = tuple(weight.shape)
        if actual != shapes[name]:
            raise UserError(f"{source}: {name} has the shape {actual}, {model} says {shapes[name]}")
        if weight.dtype != torch.float32:
            raise UserError(f"{source}: {name} is {weight.dtype}, not float32")
        if not bool(torch.isfinite(weight).all()):
            raise UserError(
                f"{source}: {name} holds values that are not finite",
                mend="use an earlier checkpoint",
            )


def require_fit(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Raise UserError where a checkpoint's weights do not fit the model that a run has now."""
    model = f"the run's model ({architecture})"
    check(read_state(checkpoint.path).weights, architecture, checkpoint.path, model)


def _compare(path: Path, weights: Mapping[str, torch.Tensor]):
    """What was written is what was meant, bit for bit."""
    written = WeightsFile(path)
    assert written.keys() == weights.keys(), "safetensors lost or added a tensor"
    for name, weight in weights.items():
        assert torch.equal(written[name], weight), f"safetensors changed {name}"


def load_model(
    weights_file: Path | str, config: dict, where: Path | str, trusted: bool = False
) -> Model:
    """The model of a config.yaml with the weights of a consolidated file. Raises UserError.

    where: what a mistake in the config.yaml is told of. trusted: whether code of the model's that
    lies beside the weights may be run.
    """
    return _load(weights_file, architecture_of(config, where, Path(weights_file).parent, trusted))


def _load(weights_file: Path | str, architecture: Architecture) -> Model:
    weights = dict(WeightsFile(weights_file))
    check(weights, architecture, weights_file)
    model = architecture.with_weights(weights)
    _require_kept_loss(model, Path(weights_file).parent)
    return model


def _require_kept_loss(model: Model, folder: Path) -> None:
    """Raise UserError where consolidated weights no longer give the loss on the probe batch that is
    kept beside them: where the model's code is not that which trained them."""
    if not (folder / MANIFEST).is_file():
        return
    consolidated = Checkpoint.open(folder)
    loss = _probe_loss(model, consolidated)
    kept = consolidated.manifest.probe.loss
    if loss is not None and not same_loss(loss, kept, "fp32"):
        raise UserError(
            f"{folder}: its weights give the loss {loss:.6f} on the probe batch, and gave"
            f" {kept:.6f} when they were consolidated",
            mend="the model's code has changed: use that which trained them",
        )


def file_of_weights(text: str) -> Path:
    """--checkpoint_file as a path. Raises UserError where no such file is there."""
    path = Path(text)
    if (path / WEIGHTS).is_file():
        raise UserError(f"{text} is a folder", mend=f"give the file {path / WEIGHTS}")
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        if path.is_dir():
            problem = f"is a folder without {WEIGHTS}"
        raise UserError(
            f"{text} {problem}",
            mend="consolidate a checkpoint with `python tools/zero_to_fp32.py RUN/checkpoints OUT`,"
            f" and give OUT/{WEIGHTS}",
        )
    return path

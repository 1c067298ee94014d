"""DeepSpeed's files of a checkpoint of any ZeRO stage, put together to whole tensors.

Nothing here imports DeepSpeed, and no pickle runs code: the few types of DeepSpeed that stand in
its files are replaced by stand-ins. The files are memory-mapped and put together one tensor at a
time.
"""

import math
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt.checkpoint import folders
from gpt.errors import UserError, in_brief
from gpt.reading import name_of_open, open_regular


class _StandIn:
    """In place of DeepSpeed's types of which nothing is needed here."""


STAND_INS = (
    (_StandIn, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_StandIn, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_StandIn, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)


class Joined(Mapping):
    """{name: tensor}, each put together from its pieces when it is asked for.

    parts: {name: (shape, flat pieces in order, whose end may be padding)}.
    """

    def __init__(self, parts: dict):
        self._parts = parts

    def __getitem__(self, name: str) -> torch.Tensor:
        shape, pieces = self._parts[name]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.detach().narrow(0, 0, math.prod(shape)).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@dataclass(frozen=True)
class FullState:
    """A checkpoint with its tensors whole, whatever ranks and ZeRO stage wrote it."""

    source: Path  # the folder
    step: int
    stage: int
    weights: Mapping  # {parameter name: fp32 tensor}
    # {"exp_avg", "exp_avg_sq" or "momentum_buffer": {parameter name: fp32 tensor}}
    moments: dict
    updates: float  # optimizer steps that the moments have seen
    scheduler: dict | None  # the scheduler's own state


def read_state(source: Path) -> FullState:
    """All tensors of a checkpoint's folder, put together. Raises UserError where a file is missing
    or strange; whether they are a model's is `gpt.checkpoint.weights.check`'s to say."""
    model_file = _model_file(source)
    model = load_weights_only(model_file, STAND_INS, mmap=True)
    optimizer_files = sorted(source.glob("*_optim_states.pt"), key=folders.rank_of)
    try:
        if type(model["step"]) is not int:
            raise ValueError("its step is no number")
        if not optimizer_files and model.get("optimizer") is not None:
            return _unshared(source, model)
        ranks = model["dp_world_size"]
        if type(ranks) is not int or ranks < 1:
            raise ValueError("dp_world_size is no number of ranks")
        _require_all(optimizer_files, ranks, source)
        states = [
            load_weights_only(path, STAND_INS, mmap=True)["optimizer_state_dict"]
            for path in optimizer_files
        ]
        return _shared(source, model, states[:ranks])
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{source} is not a checkpoint of this trainer ({in_brief(error)})",
            mend="use another checkpoint",
        ) from error


def _model_file(source: Path) -> Path:
    """The model's file, or rank 0's part of it under ZeRO 3, which tells as much."""
    single = "mp_rank_00_model_states.pt"
    pattern = "zero_pp_rank_*_mp_rank_00_model_states.pt"
    if (source / single).is_file():
        return source / single
    files = sorted(source.glob(pattern), key=folders.rank_of)
    if not files:
        raise UserError(
            f"{source} holds no file {single} or {pattern}: it is no whole DeepSpeed checkpoint"
        )
    return files[0]


def _require_all(optimizer_files: list[Path], ranks: int, source: Path):
    present = {folders.rank_of(path) for path in optimizer_files}
    for rank in range(ranks):
        if rank not in present:
            raise UserError(
                f"{source} lacks zero_pp_rank_{rank}_mp_rank_00_optim_states.pt of a run on"
                f" {ranks} rank(s)",
                mend="copy the checkpoint's files from every host into one folder",
            )


def _unshared(source: Path, model: dict) -> FullState:
    """Stage 0: the model file holds all, in fp32."""
    names = list(model["module"])
    for weight in model["module"].values():
        _require_floats(weight)
    states = model["optimizer"]["state"]
    first = states.get(0, {})
    keys = [key for key, value in first.items() if torch.is_tensor(value) and value.dim()]
    moments = {key: {name: states[index][key] for index, name in enumerate(names)} for key in keys}
    return FullState(
        source=source,
        step=model["step"],
        stage=0,
        weights={name: weight.float() for name, weight in model["module"].items()},
        moments=moments,
        updates=float(first.get("step", 0)),
        scheduler=model["lr_scheduler"],
    )


def _require_floats(*tensors: Any) -> None:
    """Raise ValueError unless these are tensors of floating numbers."""
    for tensor in tensors:
        if not torch.is_tensor(tensor) or not tensor.is_floating_point():
            raise ValueError("what should be weights is no tensor of floating numbers")


def _require_shapes(shapes: dict) -> None:
    """Raise ValueError unless this is {parameter name: shape}."""
    for name, shape in shapes.items():
        are_sizes = isinstance(shape, tuple) and all(type(size) is int for size in shape)
        if not are_sizes or min(shape, default=0) < 0:
            raise ValueError(f"the shape of {name} is none")


def _shared(source: Path, model: dict, states: list[dict]) -> FullState:
    """Stages 1 to 3: every rank's optimizer file holds its stretches of weights and moments."""
    stage = int(states[0]["zero_stage"])
    groups = model["param_shapes"]
    for shapes in groups:
        _require_shapes(shapes)
    if stage == 3:
        flat = [state["fp32_flat_groups"] for state in states]
        inner = [state["optimizer_state_dict"]["state"] for state in states]
        join = _join_stage3
    else:
        flat = [state["single_partition_of_fp32_groups"] for state in states]
        inner = [state["base_optimizer_state"]["state"] for state in states]
        join = _join_stage12
    for stretches in flat:
        _require_floats(*stretches)
    first = inner[0].get(0, {})
    shape = flat[0][0].shape
    keys = [key for key, value in first.items() if torch.is_tensor(value) and value.shape == shape]
    moments = {}
    for key in keys:
        flat_of_ranks = [[rank[group][key] for group in range(len(rank))] for rank in inner]
        moments[key] = join(flat_of_ranks, groups)
    return FullState(
        source=source,
        step=model["step"],
        stage=stage,
        weights=join(flat, groups),
        moments=moments,
        updates=float(first.get("step", 0)),
        scheduler=model["lr_scheduler"],
    )


def _join_stage12(flat: list[list[torch.Tensor]], groups: list[dict]):
    """Each group's parameters lie flattened one after another, and every rank holds an equal
    stretch of them.

    flat: per rank, a flat tensor per group.
    """
    parts = {}
    for index, shapes in enumerate(groups):
        stretches = [rank[index] for rank in flat]
        start = 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            parts[name] = shape, _cut(stretches, start, size)
            start += size
    return Joined(parts)


def _cut(stretches: list[torch.Tensor], start: int, count: int):
    """Views of elements [start, start + count) of stretches laid end to end."""
    parts = []
    for stretch in stretches:
        take = max(0, min(count, stretch.numel() - start))
        if take:
            parts.append(stretch.narrow(0, start, take))
            start += take
            count -= take
        start -= stretch.numel()
    if count != 0:
        raise ValueError("its stretches of weights end before the parameters do")
    return parts


def _join_stage3(flat: list[list[torch.Tensor]], groups: list[dict]):
    """Every parameter is cut into equal stretches, one per rank, the last one padded. flat as in
    `_join_stage12`."""
    parts = {}
    start = 0
    for shapes in groups:
        for name, shape in shapes.items():
            stretch = math.ceil(math.prod(shape) / len(flat))
            pieces = []
            for rank in flat:
                pieces += _cut(rank, start, stretch)
            parts[name] = shape, pieces
            start += stretch
    return Joined(parts)


def load_weights_only(
    path: Path | str,
    classes: Iterable = (),
    map_location: str | torch.device = "cpu",
    mmap: bool = False,
) -> Any:
    """torch.load that builds tensors, plain values and the named classes only; anything else is a
    UserError.

    classes: classes, or (class, "module.name") to let a class of our own stand in for a pickled
    name. map_location: as torch.load takes it.
    """
    _require_zip(path)
    try:
        with open_regular(path) as file, torch.serialization.safe_globals(list(classes)):
            # mapped by name, which torch takes in UTF-8 only
            name = name_of_open(file.fileno())
            return torch.load(name, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason:
            raise UserError(
                f"{path} holds code or types that a checkpoint does not need, and was not loaded",
                mend="take one whose origin you know",
            ) from error
        raise UserError(f"{path} is damaged, or no file of torch.save", _GET_ANEW) from error
    # what torch raises of pickles and records that are not its own
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        OverflowError,
    ) as error:
        raise UserError(
            f"{path} is damaged, or no file of torch.save ({in_brief(error)})", _GET_ANEW
        ) from error


def why_not_written(error: Exception, path: str) -> str:
    """Why a file could not be written by torch.save, which tells the end of the room by the places
    in the file that it is at."""
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return f"{path}: the disk is full, or a file may not grow so large (ulimit -f)"
    return in_brief(error, path)


_GET_ANEW = "get the file anew, or use another one"


def _require_zip(path: Path | str) -> None:
    """Raise UserError unless a file is one that torch.save wrote since its version 1.6: a zip."""
    try:
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                return
    except OSError as error:
        raise UserError(in_brief(error, path), _GET_ANEW) from error
    raise UserError(
        f"{path} is damaged, or is not in the format that torch.save writes since torch 1.6",
        mend="get the file anew; one of an older torch has to be saved again with a newer one",
    )


def require_whole_records(path: Path | str) -> None:
    """Raise UserError where a record of torch.save's file is not as it was written, by its CRC: a
    bit that flipped in a weight gives another weight, which nothing else tells. The whole file is
    read, once."""
    _require_zip(path)
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as records:
            damaged = records.testzip()
    # what zipfile raises of damaged headers
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} is damaged ({in_brief(error)})", _GET_ANEW) from error
    if damaged is not None:
        raise UserError(
            f"{path} is damaged: its record {damaged!r} is not as it was written (its CRC differs)",
            _GET_ANEW,
        )

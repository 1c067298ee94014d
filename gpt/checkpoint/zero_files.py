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


# where an optimizer file has the stretches of weights, and those of the optimizer's states
_STAGES_1_AND_2 = ("single_partition_of_fp32_groups", "base_optimizer_state")
_STAGE_3 = ("fp32_flat_groups", "optimizer_state_dict")
# (shape, flat pieces in order, whose end may be padding)
Part = tuple[tuple[int, ...], list[torch.Tensor]]


class Joined(Mapping):
    """{name: tensor}, each put together from its pieces when it is asked for."""

    def __init__(self, parts: dict[str, Part]):
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
    # {such as "exp_avg" or "momentum_buffer": {parameter name: tensor}}, of those that have it
    moments: Mapping
    # {such as "step": {parameter name: number}}, of the same
    counts: Mapping
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
    for weight in model["module"].values():
        _require_floats(weight)
    states = model["optimizer"]["state"]
    moments: dict[str, dict] = {}
    counts: dict[str, dict] = {}
    for index, name in enumerate(_names_in_optimizer(model)):
        shape = model["module"][name].shape
        for key, value in states.get(index, {}).items():
            kind = counts if _is_count(value, shape) else moments
            kind.setdefault(key, {})[name] = value
    return FullState(
        source=source,
        step=model["step"],
        stage=0,
        weights={name: weight.float() for name, weight in model["module"].items()},
        moments=moments,
        counts=counts,
        scheduler=model["lr_scheduler"],
    )


def _names_in_optimizer(model: dict) -> list[str]:
    """Parameters in the order in which stage 0's optimizer numbers them: the model's, or that of
    its groups where there are several."""
    names: list[str] = []
    for group in model["optimizer"]["param_groups"]:
        names += group.get("param_names", ())
    return names or list(model["module"])


def _is_count(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether an optimizer's state is no tensor of the parameter's, but a number such as that of
    its updates. shape: of the parameter."""
    if not torch.is_tensor(value) or not value.dim():
        return True
    return value.numel() == 1 and value.shape != shape


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
    name_of_flat, name_of_state = _STAGE_3 if stage == 3 else _STAGES_1_AND_2
    flat = [state[name_of_flat] for state in states]
    optimizers = [state[name_of_state] for state in states]
    for stretches in flat:
        _require_floats(*stretches)
    weights: dict[str, Part] = {}
    moments: dict[str, dict[str, Part]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for index, shapes in enumerate(groups):
        stretches = [rank[index] for rank in flat]
        join = _join_stage3 if stage == 3 else _join_stage12
        weights |= join(stretches, shapes)
        kept = [optimizer["state"].get(index, {}) for optimizer in optimizers]
        has_muon = stage < 3 and optimizers[0]["param_groups"][index].get("use_muon")
        for key, value in next(filter(None, kept), {}).items():
            if _is_count(value, stretches[0].shape):
                counts.setdefault(key, {}).update(dict.fromkeys(shapes, value))
            elif has_muon:
                tensors = [rank.get(key) for rank in kept]
                parts = _join_whole(tensors, shapes, stretches[0].numel())
                moments.setdefault(key, {}).update(parts)
            else:
                parts = join([rank[key] for rank in kept], shapes)
                moments.setdefault(key, {}).update(parts)
    return FullState(
        source=source,
        step=model["step"],
        stage=stage,
        weights=Joined(weights),
        moments={key: Joined(parts) for key, parts in moments.items()},
        counts=counts,
        scheduler=model["lr_scheduler"],
    )


def _join_stage12(stretches: list[torch.Tensor], shapes: dict) -> dict[str, Part]:
    """A group's parameters lie flattened one after another, and every rank holds an equal stretch
    of them. stretches: one of each rank."""
    parts = {}
    start = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        parts[name] = shape, _cut(stretches, start, size)
        start += size
    return parts


def _join_whole(tensors: list[torch.Tensor | None], shapes: dict, stretch: int) -> dict[str, Part]:
    """Muon's momentum below stage 3: every rank has it whole, one after another, of the parameters
    that it holds a part of. tensors: one of each rank, None where it holds none. stretch: elements
    of a group that a rank holds."""
    parts: dict[str, Part] = {}
    for rank, tensor in enumerate(tensors):
        end = 0
        start_in_tensor = 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            start, end = end, end + size
            if tensor is None or start >= (rank + 1) * stretch or end <= rank * stretch:
                continue
            parts[name] = shape, _cut([tensor], start_in_tensor, size)
            start_in_tensor += size
    return parts


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


def _join_stage3(stretches: list[torch.Tensor], shapes: dict) -> dict[str, Part]:
    """Every parameter is cut into equal stretches, one per rank, the last one padded. stretches: of
    each rank, those of a group's parameters one after another."""
    parts = {}
    start = 0
    for name, shape in shapes.items():
        size = math.ceil(math.prod(shape) / len(stretches))
        pieces = []
        for stretch in stretches:
            pieces += _cut([stretch], start, size)
        parts[name] = shape, pieces
        start += size
    return parts


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

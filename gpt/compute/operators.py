"""torch's operators as a pass on paper meets them: the FLOPs of products of matrices, and the
layouts of what is given."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _vector_flops(matrix: tuple[int, ...], *others: Any, **named: Any) -> int:
    return 2 * math.prod(matrix)


def _added_vector_flops(summand: Any, matrix: tuple[int, ...], *others: Any, **named: Any) -> int:
    return 2 * math.prod(matrix)


def _batches_added_flops(summand: Any, a: Any, b: Any, *others: Any, **named: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _linear_flops(x: tuple[int, ...], weight: tuple[int, ...], *others: Any, **named: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _convolution_backward_flops(
    gradient: tuple[int, ...], x: tuple[int, ...], weight: tuple[int, ...], *others: Any
) -> int:
    """As many as forward for each gradient that is asked for. torch's own formula counts those of a
    grouped weight once for every group."""
    *_, is_transposed, _, _, needed = others
    places = x[2:] if is_transposed else gradient[2:]
    of_x, of_weight, _ = needed
    return 2 * math.prod(weight) * x[0] * math.prod(places) * (of_x + of_weight)


def _trilinear_flops(*arguments: Any) -> int:
    """Of three factors, multiplied and summed; dimensions that each lacks are told after them."""
    shapes = []
    for shape, missing in zip(arguments[:3], arguments[3:6]):
        full = list(shape)
        for dimension in sorted(missing):
            full.insert(dimension, 1)
        shapes.append(full)
    return 2 * math.prod(map(max, *shapes))


def _fourier_flops(shape: tuple[int, ...], dimensions: list[int], *others: Any) -> int:
    """5 n log2 n a transform of n complex numbers (Frigo and Johnson, "The design and
    implementation of FFTW3", 2005, section 6)."""
    length = math.prod(shape[dimension] for dimension in dimensions)
    return round(5 * math.prod(shape) * math.log2(length))


def _real_fourier_flops(shape: tuple[int, ...], dimensions: list[int], *others: Any) -> int:
    return _fourier_flops(shape, dimensions) // 2


def _fourier_to_real_flops(
    shape: tuple[int, ...], dimensions: list[int], normalisation: int, length: int
) -> int:
    real = list(shape)
    real[dimensions[-1]] = length
    return _real_fourier_flops(tuple(real), dimensions)


# what torch's registry lacks or has otherwise, with arguments by their shapes
_FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mv: _vector_flops,
    aten.dot: _vector_flops,
    aten.vdot: _vector_flops,
    aten.addmv: _added_vector_flops,
    aten.addmv_: _added_vector_flops,
    aten.addmm_: _batches_added_flops,
    aten.baddbmm_: _batches_added_flops,
    aten.addbmm: _batches_added_flops,
    aten.addbmm_: _batches_added_flops,
    aten.linear: _linear_flops,
    aten.convolution_backward: _convolution_backward_flops,
    aten._trilinear: _trilinear_flops,
    aten._fft_c2c: _fourier_flops,
    aten._fft_r2c: _real_fourier_flops,
    aten._fft_c2r: _fourier_to_real_flops,
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _FORMULAS[torch.ops.mkldnn._linear_pointwise] = _linear_flops


def product_flops(function: Any, args: Any, kwargs: Any, result: Any) -> int | None:
    """FLOPs of an operator's call, where it is a product of matrices or a transform; None of all
    else."""
    operator = getattr(function, "_overloadpacket", function)
    if operator in _FORMULAS:
        return _FORMULAS[operator](*(arg.shape if torch.is_tensor(arg) else arg for arg in args))
    if operator in flop_registry:
        return flop_registry[operator](*args, **kwargs, out_val=result)
    return None


def makes_tensors(function: Any) -> bool:
    """Whether an operator gives new values, and no view of old ones."""
    return _kind(function) is not None


_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Results:
    """What operators give on the meta device. torch finds the layout of many in Python, in up to a
    millisecond, which a recurrence asks for thousands of times: here once for inputs alike."""

    def __init__(self) -> None:
        self._layouts: dict[tuple, _Layout] = {}

    def of(self, function: Any, args: Any, kwargs: Any) -> Any:
        key = _key(function, args, kwargs)
        if key in self._layouts:
            if _kind(function) == "in place":
                return args[0]
            size, stride, dtype = self._layouts[key]
            return torch.empty_strided(size, stride, dtype=dtype, device="meta")
        result = function(*args, **kwargs)
        if key is not None and isinstance(result, Tensor) and result.is_meta:
            self._layouts[key] = _layout_of(result)
        return result


def _layout_of(tensor: Tensor) -> _Layout:
    return tensor.shape, tensor.stride(), tensor.dtype


@cache
def _kind(function: Any) -> str | None:
    """Whether an operator gives a new tensor, or works in place without a change of layout."""
    schema = getattr(function, "_schema", None)
    if schema is None or torch.Tag.inplace_view in function.tags:
        return None
    aliased = [part.name for part in schema.arguments if part.alias_info]
    if not aliased and not any(part.alias_info for part in schema.returns):
        return "new"
    return "in place" if aliased == ["self"] and schema.name.endswith("_") else None


def _key(function: Any, args: Any, kwargs: Any) -> tuple | None:
    """The same for calls that give tensors of the same layout; None where that hangs on more than
    the layout of the inputs."""
    if _kind(function) is None:
        return None
    key: list[Any] = [function, *kwargs]
    for value in (*args, *kwargs.values()):
        parts = value if isinstance(value, (list, tuple)) else (value,)
        for part in parts:
            if not isinstance(part, Tensor):
                key.append((type(part), str(part)))
            elif part.is_meta and part.dim() > 0:
                key.append(_layout_of(part))
            else:  # a number, perhaps, whose type counts less than that of a tensor
                return None
        key.append(len(parts))
    return tuple(key)

"""What the Triton kernels share: the guarded import, rows of tensors, launch parameters.

Launch parameters are fixed functions of the width, never tuned at run time, so that the order in
which a kernel adds up depends on the shapes and the GPU model alone. That holds for these kernels:
torch's attention, whose backward pass may add up in any order on a GPU, promises less.
"""

import functools
import re
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch

from gpt.errors import in_brief

MINIMUM_TRITON = (3, 4)  # the first with knobs


def _why_no_triton(error: Exception) -> tuple[str, str]:
    """(what is wrong, what to do) where importing from triton raised `error`."""
    version = getattr(sys.modules.get("triton"), "__version__", "")
    if version and tuple(map(int, re.findall(r"\d+", version)[:2])) < MINIMUM_TRITON:
        least = ".".join(map(str, MINIMUM_TRITON))
        remedy = "install torch 2.8 or newer, which brings a newer one"
        return f"triton {version} is older than {least}", remedy
    if isinstance(error, ModuleNotFoundError):
        remedy = "install torch's build for CUDA, which brings it"
        return "the package triton is not installed", remedy
    remedy = "install torch anew, which brings the triton that fits it"
    return f"triton cannot be imported ({in_brief(error)})", remedy


try:
    import triton.language as tl
    from triton import jit, knobs

    OBSTACLE: tuple[str, str] | None = None
# kernels stay plain functions that nothing calls: gpt.kernels.choice.choose sees to that
except Exception as error:
    OBSTACLE = _why_no_triton(error)

    class tl:  # type: ignore[no-redef]  # in the place of triton.language
        constexpr = None  # named in the kernels' signatures

    def jit(**options):
        return lambda function: function


# The fewest rows for which a program writes a row of partial sums of its own. Two such sums cost 8
# bytes written and 8 read per column, a row of a 16-bit LayerNorm backward 8 in all: 16 rows keep
# the sums at an eighth of the traffic.
ROWS_PER_PROGRAM = 16

# Warps per multiprocessor that the looping kernels ask for. Up to 80 registers a thread, all of
# them are resident at once on every GPU from capability 8.0 on (65,536 registers, at least 48
# warps), so no program waits for another's end.
RESIDENT_WARPS = 24


def interpreted() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1, which runs kernels as NumPy on
    the CPU."""
    return OBSTACLE is None and knobs.runtime.interpret


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def block_size(width: int, most: int) -> int:
    """Columns of a program that takes up to `most`, a power of 2, of `width`."""
    return min(most, next_power_of_2(width))


def num_warps(block: int) -> int:
    """Warps for a program on `block` columns: 8 columns a thread, a 128-bit load of 16-bit numbers,
    up to 16 warps."""
    return max(1, min(16, block // 256))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1024
    return torch.cuda.get_device_properties(device.index).multi_processor_count


def share_rows(
    rows: int, warps: int, device: torch.device, resident: int = RESIDENT_WARPS
) -> tuple[int, int]:
    """(programs, rows per program) for a kernel that walks over rows and keeps a partial sum per
    program.

    warps: how many of them work on one row. resident: how many a multiprocessor holds.
    """
    at_once = _multiprocessors(device) * resident
    programs = min(-(-rows // ROWS_PER_PROGRAM), max(1, at_once // warps))
    per_program = -(-rows // max(1, programs))
    return -(-rows // max(1, per_program)), per_program


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(…, width) as (rows, width) with a contiguous last dimension; a view wherever one exists."""
    rows = tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def statistics_dtype(tensor: torch.Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64 tensors: what sums and statistics are kept in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def wide(dtype: torch.dtype) -> Any:
    """Triton's name of `statistics_dtype`, for tensors of this dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager:
    """A context in which kernels start on the tensor's GPU; nothing on a CPU."""
    return torch.cuda.device_of(tensor)

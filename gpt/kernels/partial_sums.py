"""The last step of sums over rows: what each program of a kernel has summed, summed over programs.

One kernel sums and casts, whatever the number of sums. Always in the same order: each row of a tile
adds up every ROWS-th program, then the tile's rows are joined as a tree.
"""

import torch
from torch import Tensor

from gpt.kernels.triton_shared import jit, on_device_of, tl

# A thread holds four columns in a 128-bit load, four lanes a row of 64 bytes, two sectors of the
# cache: narrow, so that 768 columns make programs for half as many multiprocessors a sum.
COLUMNS = 16
# four loads under way a thread
ROWS = 256
WARPS = 8


@jit(do_not_specialize=["programs"])
def _finish_kernel(partial, result, programs, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program COLUMNS columns of one sum."""
    quantity = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sums = partial + quantity.to(tl.int64) * programs * width
    total = tl.zeros((ROWS, COLUMNS), partial.dtype.element_ty)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < programs) & (column < width)
        total += tl.load(sums + row.to(tl.int64) * width + column, mask=inside, other=0.0)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    places = result + quantity * width + column
    tl.store(places, tl.sum(total, 0).to(result.dtype.element_ty), mask=column < width)


def launch(partial: Tensor, result: Tensor) -> None:
    """partial: (quantities, programs, width); result: (quantities, width), written. Contiguous."""
    quantities, programs, width = partial.shape
    with on_device_of(partial):
        _finish_kernel[(-(-width // COLUMNS), quantities)](
            partial,
            result,
            programs,
            width,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )


def finish(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums over programs, cast to `dtype`: (quantities, width).

    partial: (quantities, programs, width), contiguous, fp32 or fp64; no programs sum to zero.
    """
    quantities, _, width = partial.shape
    result = torch.empty((quantities, width), dtype=dtype, device=partial.device)
    launch(partial, result)
    return result

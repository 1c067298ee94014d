"""Buffers by which an access out of bounds is seen, which Triton's interpreter does not notice.

Inputs lie in larger buffers full of NaN, which would show in the results, and outputs in larger
buffers full of a sentinel, which must be there afterwards; outputs start as NaN.
"""

import numpy as np
import torch

MARGIN, SENTINEL = 8192, 7.25


def strided(values, gap=9):
    """The same values as a view, rows `gap` numbers apart, in a buffer of NaN that reaches MARGIN
    further on each side."""
    rows, width = values.shape
    buffer = torch.full((2 * MARGIN + rows * (width + gap),), float("nan"), dtype=values.dtype)
    return (
        buffer[MARGIN : MARGIN + rows * (width + gap)]
        .view(rows, width + gap)[:, 3 : 3 + width]
        .copy_(values)
    )


def fenced(values):
    """A vector (or a contiguous matrix) with NaN before and after it."""
    buffer = torch.full((2 * MARGIN + values.numel(),), float("nan"), dtype=values.dtype)
    return buffer[MARGIN:-MARGIN].view(values.shape).copy_(values)


class Outputs:
    """Output buffers between sentinels. `check()` finds writes outside of them and places left
    unwritten."""

    def __init__(self):
        self.made = []

    def __call__(self, *shape, dtype=torch.float32):
        whole = torch.full((2 * MARGIN + int(np.prod(shape)),), SENTINEL, dtype=dtype)
        view = whole[MARGIN:-MARGIN].view(shape)
        self.made.append((whole, view.fill_(float("nan"))))
        return view

    def check(self):
        for whole, view in self.made:
            assert (whole[:MARGIN] == SENTINEL).all() and (whole[-MARGIN:] == SENTINEL).all()
            assert not view.isnan().any()

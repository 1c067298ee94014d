"""How figures look: readable in black and white, labelled where the lines end, the same bytes from
the same numbers.

Needs matplotlib (extra `plot`).
"""

import math
import warnings
from pathlib import Path

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

# inches; text of 9 points is then as large as a paper's captions
WIDTH = 6.6
HEIGHT = 3.7
# Okabe and Ito: for all eyes
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.2)), (0, (7, 2, 1.5, 2)), (0, (3, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", ">", "p", "h")
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "svg.hashsalt": "gpt",
    "svg.fonttype": "path",
    "savefig.dpi": 200,
}
SMALL = 8.5  # points: names beside lines
LABEL_GAP = 1.25  # distance of two labels, in heights of a line of text


def style(index: int, member: int | None = None) -> dict:
    """Colour, dashes and marker of the index-th line, so that lines can be told apart without
    colour, too. member: its number among lines of one kind, which share colour and dashes."""
    marker = MARKERS[(index if member is None else member) % len(MARKERS)]
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": marker,
    }


def figure(names, panels: int = 1, height: float = HEIGHT, sample: float = 0.0):
    """(Figure, its axes from top to bottom), with room at the right for these names. sample: inches
    of line before each."""
    names = list(names)
    lines = sum(name.count("\n") + 1 for name in names)
    height = max(height, 0.17 * lines / panels + 0.8)
    made = Figure(figsize=(WIDTH, height * panels))
    renderer = FigureCanvasAgg(made).get_renderer()
    axes = made.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    widths = [
        Text(0, 0, short(name), fontsize=SMALL, parse_math="\n" in name, figure=made)
        .get_window_extent(renderer)
        .width
        for name in names
    ]
    room = max(widths, default=0) / made.dpi + sample + 0.3
    made.subplots_adjust(
        left=0.125,
        right=1 - room / WIDTH,
        bottom=0.5 / (height * panels),
        top=1 - 0.3 / (height * panels),
        hspace=0.12,
    )
    return made, list(axes)


def short(name: str) -> str:
    """A name that leaves room for the figure: the middle of its first line goes."""
    first, *rest = name.split("\n")
    return "\n".join([first if len(first) <= 36 else f"{first[:18]}…{first[-17:]}", *rest])


def in_style(draw):
    """Decorator: run a function that draws under SETTINGS."""

    def wrapped(*args, **kwargs):
        with rc_context(SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the figure shows it
            return draw(*args, **kwargs)

    wrapped.__doc__ = draw.__doc__
    return wrapped


def save(made, stem: Path) -> list:
    """Write stem.png and stem.svg; returns their paths. Neither holds a date or a version."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    made.savefig(paths[0], metadata={"Software": None})
    made.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def number(value: float) -> str:
    """A tick: 12k, 2B, 0.001."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:.5g}"


def power_of_ten(value: float) -> str:
    """A tick of numbers too large or small to be written out: 3 x 10^-5."""
    exponent = math.floor(math.log10(abs(value)) + 1e-9) if value else 0
    factor = value / 10.0**exponent
    return (
        f"$10^{{{exponent}}}$"
        if abs(factor - 1) < 1e-6
        else rf"${factor:.3g}\times10^{{{exponent}}}$"
    )


def scale(axis, low: float, high: float, log: bool, plain: bool = True):
    """Set an axis up for values from low to high, with ticks that can be read off on a log axis,
    too. plain: numbers are written out where they are neither tiny nor huge."""
    which = axis.axis_name
    if log and low > 0:
        getattr(axis.axes, f"set_{which}scale")("log")
        axis.set_major_locator(ticker.FixedLocator(_log_ticks(low, high)))
        axis.set_minor_locator(ticker.NullLocator())
    else:
        axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    plain = plain and high < 1e14 and (high >= 1e-3 if not log else low >= 3e-4)
    axis.set_major_formatter(
        ticker.FuncFormatter(
            lambda value, _: number(value) if plain or not value else power_of_ten(value)
        )
    )


def _log_ticks(low, high):
    """Four to eight round numbers in [low, high] where there are as many."""
    decades = math.log10(high / low)
    if decades > 4:
        step = math.ceil(decades / 6)
        return [
            10.0**e
            for e in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1, step)
        ]
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        first = math.floor(math.log10(low))
        found = [
            d * 10.0**e
            for e in range(first, first + 7)
            for d in digits
            if low <= d * 10.0**e <= high
        ]
        if len(found) >= 4:
            return found
    return [
        t
        for t in ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        if low <= t <= high
    ]


def label_ends(axes, ends, lines: int = 1):
    """Write each line's name beside its end, right of the axes, none over another. ends: (x, y,
    name, style); names of more lines than one may hold formulas."""
    axes.figure.canvas.draw()  # positions hold from here on
    gap = 9 / 72 * axes.figure.dpi * LABEL_GAP * lines
    bottom = axes.get_window_extent().y0
    top = axes.get_window_extent().y1
    ends = sorted(ends, key=lambda end: axes.transData.transform(end[:2])[1])
    wanted = [float(np.clip(axes.transData.transform(end[:2])[1], bottom, top)) for end in ends]
    rank = np.arange(len(ends)) * gap
    # none beyond the axes' ends
    places = np.minimum(np.maximum(spread(wanted, gap), bottom + rank), top - rank[::-1])
    for (x, y, name, look), place in zip(ends, places):
        axes.annotate(
            short(name),
            (x, y),
            (1.035, (place - bottom) / (top - bottom)),
            xycoords="data",
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL,
            color=look["color"],
            annotation_clip=False,
            linespacing=1.3,
            parse_math=lines > 1,
            arrowprops={
                "arrowstyle": "-",
                "color": look["color"],
                "linewidth": 0.5,
                "alpha": 0.5,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def legend(axes, names_and_styles):
    """Names with a piece of their lines, right of the axes from the top down: where lines end in
    one place."""
    for index, (name, look) in enumerate(names_and_styles):
        y = 1 - (index + 0.5) * LABEL_GAP * 9 / 72 / (
            axes.get_window_extent().height / axes.figure.dpi
        )
        axes.plot(
            [1.01, 1.04, 1.07],
            [y, y, y],
            transform=axes.transAxes,
            clip_on=False,
            **look,
            markevery=[1],
            markerfacecolor="white",
        )
        axes.text(
            1.085,
            y,
            short(name),
            transform=axes.transAxes,
            va="center",
            fontsize=SMALL,
            color=look["color"],
            parse_math=False,
        )


def spread(places, gap: float) -> list:
    """Rising places moved as little as needed (least squares) to be `gap` apart: neighbours that
    touch form a block about the mean of what its members want."""
    blocks = []  # [sum of (wanted - offset in block), members]
    for place in places:
        blocks.append([place, 1])
        while len(blocks) > 1 and _start(blocks[-2]) + blocks[-2][1] * gap > _start(blocks[-1]):
            total, count = blocks.pop()
            blocks[-1] = [
                blocks[-1][0] + total - count * blocks[-1][1] * gap,
                blocks[-1][1] + count,
            ]
    return [_start(block) + member * gap for block in blocks for member in range(block[1])]


def _start(block):
    return block[0] / block[1]


def thin(x, y, log: bool, points: int = 250):
    """(x, y) as means over at most so many equal stretches of the axis; what is short or fewer
    stays."""
    keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log))
    x, y = x[keep], y[keep]
    if len(x) <= points:
        return x, y
    along = np.log(x) if log else x
    bins = np.minimum(
        ((along - along[0]) / max(along[-1] - along[0], 1e-300) * points).astype(int), points - 1
    )
    _, starts, counts = np.unique(bins, return_index=True, return_counts=True)
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts

"""How figures look: readable in black and white, labelled where the lines end, the same bytes from
the same numbers.

Needs matplotlib (extra `plot`).
"""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from gpt.escaping import in_one_line, printable
from gpt.files import write_atomically
from gpt.results.looks import Place
from gpt.results.panels import with_scale

# inches; text of 9 points is then as large as a paper's captions
WIDTH = 6.6
HEIGHT = 3.7
MARKERS = ("o", "s", "^", "D", "v", ">", "p", "h")
SETTINGS: Any = {
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
GREY = "#444444"
# from a name to the end of its line: no curve looks like that
LEADER = {
    "arrowstyle": "-",
    "linewidth": 0.7,
    "linestyle": (0, (1, 3)),
    "color": "#8a8a8a",
    "shrinkA": 1,
    "shrinkB": 3,
    "relpos": (0, 0.5),
}
# where pieces of lines stand beside names, in inches from the axes' right end
SAMPLE_FROM = 0.16
SAMPLE_TO = 0.44
NAME_FROM = 0.5
LEFT = 0.8  # inches to the axes
TITLE = 10.5  # points
SMALL = 8.5  # points: names beside lines
LABEL_GAP = 1.25  # distance of two labels, in heights of a line of text
TEXT_HEIGHT = 9 / 72  # inches
LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
# kinds of files, and what takes the date and the version out of them
FORMATS: dict[str, Any] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
LONGEST_NAME = 36  # characters that are shown whole
LONGEST_TITLE = 500  # characters; more would reach out of the figure, and take minutes to set


def style(place: Place) -> dict[str, Any]:
    """Colour, dashes and marker of a line, so that lines can be told apart without colour, too."""
    return {
        "color": place.color,
        "linestyle": (0, place.dashes) if place.dashes else "-",
        "marker": MARKERS[place.marker],
    }


def new_figure(
    names: Iterable[str], panels: int = 1, height: float = HEIGHT, title: str | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes from top to bottom, with room at the right for these names, of
    `short`, and a piece of line before each. height: of a panel, in inches. title: stands
    above all."""
    names = list(names)
    lines = sum(1.5 * name.count("\n") + 1 for name in names)
    height = max(height, 0.17 * lines / panels + 0.8)
    figure = Figure(figsize=(WIDTH, height * panels))
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    widths = []
    for name in names:
        text = Text(0, 0, name, fontsize=SMALL, parse_math="\n" in name, figure=figure)
        widths.append(text.get_window_extent(renderer).width)
    room = min(max(widths, default=0) / figure.dpi + NAME_FROM + 0.1, WIDTH - LEFT - 1)
    whole = height * panels
    figure.subplots_adjust(
        left=LEFT / WIDTH,
        right=1 - room / WIDTH,
        bottom=0.5 / whole,
        top=1 - (0.55 if title else 0.3) / whole,
        hspace=0.12,
    )
    if title:
        figure.text(
            LEFT / WIDTH,
            1 - 0.1 / whole,
            printable(title[:LONGEST_TITLE]),
            va="top",
            fontsize=TITLE,
            parse_math=False,
        )
    return figure, list(axes)


def short(name: str) -> str:
    """A name in one line that leaves room for the figure: its middle goes."""
    name = in_one_line(name)
    return f"{name[:18]}…{name[-17:]}" if len(name) > LONGEST_NAME else name


def in_style(draw: Callable) -> Callable:
    """Decorator: run a function that draws under SETTINGS."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with rc_context(SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the figure shows it
            return draw(*args, **kwargs)

    wrapped.__doc__ = draw.__doc__
    return wrapped


def save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write stem.png and so on, for each of FORMATS; returns their paths. None holds a date or a
    version."""
    paths = []
    for name in formats:
        path = stem.with_name(f"{stem.name}.{name}")
        content = io.BytesIO()
        figure.savefig(content, format=name, metadata=FORMATS[name])
        write_atomically(path, content.getvalue())
        paths.append(path)
    return paths


def number(value: float, largest: float) -> str:
    """A tick of an axis that ends at `largest`: 8k beside 12k, 0.5B beside 2B, 0.001."""
    for size, letter in LETTERS:
        if largest >= max(size, 1e4):
            return f"{value / size:.5g}{letter}" if value else "0"
    return f"{value:.5g}"


def number_on_log(value: float, largest: float) -> str:
    """The same on a logarithmic axis, where each tick has its own size: 500, 5k, 50k, 5M."""
    for size, letter in LETTERS:
        if largest >= 1e4 and value >= size:
            return f"{value / size:.5g}{letter}"
    return f"{value:.5g}"


def power_of_ten(value: float) -> str:
    """A tick of numbers too large or small to be written out: 3 x 10^-5."""
    exponent = math.floor(math.log10(abs(value)) + 1e-9) if value else 0
    factor = value / 10.0**exponent
    if abs(factor - 1) < 1e-6:
        return f"$10^{{{exponent}}}$"
    return rf"${factor:.3g}\times10^{{{exponent}}}$"


def set_up(
    axis: XAxis | YAxis, label: str, low: float, high: float, log: bool, plain: bool = True
) -> None:
    """Set an axis up for values from low to high: its name, which says so where it is logarithmic,
    and ticks that can be read off there, too. plain: numbers are written out where they are neither
    tiny nor huge."""
    log = log and low > 0
    if log:
        set_scale = getattr(axis.axes, f"set_{axis.axis_name}scale")
        set_scale("log")
        axis.set_major_locator(ticker.FixedLocator(_log_ticks(low, high)))
        axis.set_minor_locator(ticker.NullLocator())
    else:
        axis.set_major_locator(_linear_ticks())
    is_tiny = low < 3e-4 if log else high < 1e-3
    is_huge = high >= 1e14
    plain = plain and not is_tiny and not is_huge
    written_out = number_on_log if log else number

    def tick(value: float, _: int) -> str:
        return written_out(value, high) if plain or not value else power_of_ten(value)

    axis.set_major_formatter(ticker.FuncFormatter(tick))
    axis.set_label_text(with_scale(in_one_line(label), log), parse_math=False)


def _linear_ticks() -> ticker.Locator:
    return ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])


def _log_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers in [low, high] where there are as many."""
    first = math.floor(math.log10(low))
    decades = math.log10(high / low)
    if decades > 4:
        step = math.ceil(decades / 6)
        exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1, step)
        return [10.0**exponent for exponent in exponents]
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = []
        for exponent in range(first, first + 7):
            ticks += [digit * 10.0**exponent for digit in digits]
        ticks = _between(low, high, ticks)
        if len(ticks) >= 4:
            return ticks
    return _between(low, high, _linear_ticks().tick_values(low, high))


def _between(low: float, high: float, ticks: Iterable[float]) -> list[float]:
    return [tick for tick in ticks if low <= tick <= high]


def note(axes: Axes, text: str) -> None:
    """What the lines are, above the axes."""
    axes.set_title(in_one_line(text), fontsize=8, color=GREY, parse_math=False)


def label_ends(axes: Axes, ends: list[tuple], lines: int = 1) -> None:
    """Write each line's name with a piece of the line, right of the axes at the height of its end,
    none over another. ends: (x, y, name, style); names of more lines than one may hold formulas."""
    axes.figure.canvas.draw()  # positions hold from here on
    gap = TEXT_HEIGHT * axes.figure.dpi * LABEL_GAP * (lines if lines == 1 else lines + 0.5)
    bottom = axes.get_window_extent().y0
    top = axes.get_window_extent().y1

    def pixels_up(end: tuple) -> float:
        return axes.transData.transform(end[:2])[1]

    ends = sorted(ends, key=pixels_up)
    heights = [float(np.clip(pixels_up(end), bottom, top)) for end in ends]
    rank = np.arange(len(ends)) * gap
    # none beyond the axes' ends
    places = np.minimum(np.maximum(spread(heights, gap), bottom + rank), top - rank[::-1])
    for (x, y, name, look), place in zip(ends, places):
        height = (place - bottom) / (top - bottom)
        _name_beside(axes, height, name, look, has_formula=lines > 1)
        axes.annotate(
            "",
            (x, y),
            (_right_of(axes, SAMPLE_FROM), height),
            xycoords="data",
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops=LEADER,
            zorder=1,
        )


def legend(axes: Axes, names_and_styles: Iterable[tuple[str, dict]]) -> None:
    """Names with a piece of their lines, right of the axes from the top down: where lines end in
    one place."""
    height = axes.get_window_extent().height / axes.figure.dpi
    for index, (name, look) in enumerate(names_and_styles):
        _name_beside(axes, 1 - (index + 0.5) * LABEL_GAP * TEXT_HEIGHT / height, name, look)


def _name_beside(
    axes: Axes, height: float, name: str, look: dict, has_formula: bool = False
) -> None:
    """A name with a piece of its line right of the axes, at a height in shares of theirs."""
    first = _right_of(axes, SAMPLE_FROM)
    last = _right_of(axes, SAMPLE_TO)
    sample = Line2D(
        [first, (first + last) / 2, last],
        [height, height, height],
        transform=axes.transAxes,
        **look,
        markevery=[1],
        markerfacecolor="white",
    )
    axes.figure.add_artist(sample)
    axes.text(
        _right_of(axes, NAME_FROM),
        height,
        name,
        transform=axes.transAxes,
        va="center",
        fontsize=SMALL,
        linespacing=1.3,
        parse_math=has_formula,
    )


def _right_of(axes: Axes, inches: float) -> float:
    """A place right of the axes, in shares of their width."""
    return 1 + inches * axes.figure.dpi / axes.get_window_extent().width


def spread(places: Iterable[float], gap: float) -> list[float]:
    """Rising places moved as little as needed (least squares) to be `gap` apart: neighbours that
    touch form a block about the mean of what its members want."""
    blocks: list[list] = []  # [sum of (a member's place - its offset in the block), members]
    for place in places:
        blocks.append([place, 1])
        while len(blocks) > 1 and _start(blocks[-2]) + blocks[-2][1] * gap > _start(blocks[-1]):
            total, count = blocks.pop()
            below = blocks[-1]
            blocks[-1] = [below[0] + total - count * below[1] * gap, below[1] + count]
    moved = []
    for block in blocks:
        moved += [_start(block) + member * gap for member in range(block[1])]
    return moved


def _start(block: list) -> float:
    return block[0] / block[1]


def thin(
    x: np.ndarray, y: np.ndarray, log: bool, points: int = 250
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) as means over at most so many equal stretches of the axis; what is short or fewer
    stays."""
    keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log))
    x = x[keep]
    y = y[keep]
    if len(x) <= points:
        return x, y
    along = np.log(x) if log else x
    length = max(along[-1] - along[0], 1e-300)
    stretches = ((along - along[0]) / length * points).astype(int)
    stretches = np.minimum(stretches, points - 1)
    _, starts, counts = np.unique(stretches, return_index=True, return_counts=True)
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts

"""The figures of runs: curves over every axis, how training went, scaling laws. Needs matplotlib
(extra `plot`)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from gpt.metrics.events import AXES, EVAL, TRAIN
from gpt.results import drawing
from gpt.results.comparison import Group
from gpt.results.leaderboard_text import nominal
from gpt.results.looks import places
from gpt.results.panels import INSIDE, LOSS_SCALE, QUANTITIES, TRAINING, Panel, drawable, in_unit
from gpt.results.power_law import LEVEL, Fit, crossings, pairs
from gpt.wording import first_of, plural, timespan

# of the axes over which laws are fitted
UNITS = {"reference_hours": "h", "flops": "FLOPs"}
MARKED = 20  # evaluations of a line that bear a marker


class Output(NamedTuple):
    """Where figures go and how: every function of this module returns the paths of its files."""

    folder: Path
    formats: Sequence[str] = ("png", "svg")  # of drawing.FORMATS
    title: str | None = None  # stands above every figure

    def save(self, figure: Any, name: str) -> list[Path]:
        return drawing.save(figure, self.folder / name, self.formats)


class Curve(NamedTuple):
    """Numbers of a group that an axis can show."""

    x: np.ndarray
    mean: np.ndarray
    spread: np.ndarray | None  # sample standard deviation over seeds


def _curve(
    group: Group, axis: str, kind: str, quantity: str | Callable, split: str | None = None
) -> Curve | None:
    """None where the group has no such numbers."""
    columns = group.mean(axis, kind, quantity, split)
    if columns is None:
        return None
    x, mean, spread = columns
    x, mean = drawable(x), drawable(mean)
    keep = np.isfinite(x) & np.isfinite(mean) & ((x > 0) | (not AXES[axis].log))
    if not keep.any():
        return None
    return Curve(x[keep], mean[keep], None if spread is None else spread[keep])


def looks(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A style for each group: hue and dashes are its method's."""
    return [drawing.style(place) for place in places([group.method for group in groups])]


def _names(groups: Sequence[Group]) -> list[str]:
    return [drawing.short(group.title) for group in groups]


@drawing.in_style
def curves(groups: Sequence[Group], axis: str, quantity: str, output: Output) -> list[Path]:
    """Files of one of QUANTITIES over one of AXES; none where no group has both. Where a run holds
    evaluations of more splits than one, the one that its configuration names is drawn."""
    title = output.title
    figure, (axes,) = drawing.new_figure(_names(groups), title=title)
    lines = []  # (name, look, training or None, held out or None)
    splits = set()
    for group, name, look in zip(groups, _names(groups), looks(groups)):
        split = (group.runs[0].splits() or [None])[0]
        train = _curve(group, axis, TRAIN, quantity)
        held_out = _curve(group, axis, EVAL, quantity, split)
        if train is not None or held_out is not None:
            lines.append((name, look, train, held_out))
        if held_out is not None:
            splits.add(str(split))
    if not lines:
        return []
    drawn = [curve for _, _, *both in lines for curve in both if curve is not None]
    smallest_x = min(curve.x.min() for curve in drawn)
    largest_x = max(curve.x.max() for curve in drawn)
    label, per_unit = in_unit(AXES[axis].label, largest_x)
    ends = []
    for name, look, train, held_out in lines:
        if train is not None:
            x, mean = drawing.thin(train.x * per_unit, train.mean, AXES[axis].log)
            axes.plot(x, mean, color=look["color"], linewidth=0.6, alpha=0.6)
        if held_out is not None:
            held_out = held_out._replace(x=held_out.x * per_unit)
            _plot_held_out(axes, held_out, look)
            x, mean = held_out.x, held_out.mean
        ends.append((x[-1], mean[-1], name, look))
    x_range = (smallest_x * per_unit, largest_x * per_unit)
    y = np.concatenate([curve.mean for curve in drawn])
    plain = axis != "flops"
    drawing.set_up(axes.xaxis, label, *x_range, AXES[axis].log, plain)
    drawing.set_up(axes.yaxis, QUANTITIES[quantity], y.min(), y.max(), log=True)
    drawing.note(axes, _notes(splits, drawn, lines))
    drawing.label_ends(axes, ends)
    return output.save(figure, f"{quantity}_{axis}")


def _notes(splits: set[str], drawn: list[Curve], lines: list[tuple]) -> str:
    """What a figure's lines are."""
    notes = []
    held_out = [curve for *_, curve in lines if curve is not None]
    if splits:
        names = [drawing.short(split) for split in sorted(splits)]
        notes.append(f"marked: held out ({first_of(names, shown=3)})")
    if any(_is_apart(curve) for curve in held_out):
        notes.append("apart at 0: before training")
    if any(train is not None for _, _, train, _ in lines):
        notes.append("thin: training")
    if any(curve.spread is not None for curve in held_out):
        notes.append("band: 1 s.d. over seeds")
    return "; ".join(notes)


def _is_apart(curve: Curve) -> bool:
    """Whether the first evaluation came before training. A straight line from there to the next
    one, beside the bend of training, would read as a worse model."""
    # hours have passed at step 0, if few
    return len(curve.x) > 1 and curve.x[0] < 1e-4 * curve.x[-1]


def _plot_held_out(axes: Axes, curve: Curve, look: dict) -> None:
    """A marked line, with a band where there are several seeds."""
    marked = {**look, "markerfacecolor": "white", "zorder": 3}
    if _is_apart(curve):
        axes.plot(curve.x[:1], curve.mean[:1], **marked)
        spread = None if curve.spread is None else curve.spread[1:]
        curve = Curve(curve.x[1:], curve.mean[1:], spread)
    stride = math.ceil(len(curve.x) / MARKED)
    # the last bears one
    axes.plot(curve.x, curve.mean, **marked, markevery=((len(curve.x) - 1) % stride, stride))
    if curve.spread is not None:
        low = curve.mean - curve.spread
        high = curve.mean + curve.spread
        axes.fill_between(curve.x, low, high, color=look["color"], alpha=0.2, linewidth=0)


def training(groups: Sequence[Group], output: Output) -> list[Path]:
    """Files of learning rate, gradient norm, loss scale (where one is in use) and throughput over
    steps."""
    lines_of = {panel: _lines(groups, panel) for panel in TRAINING}
    lines_of[LOSS_SCALE] = [
        (look, curve) for look, curve in lines_of[LOSS_SCALE] if (curve.mean != 1).any()
    ]
    return _stacked(groups, lines_of, output, "training")


def inside(groups: Sequence[Group], output: Output) -> list[Path]:
    """Files of what runs told about their weights and activations (log_grads_every,
    log_activations_every) over steps."""
    return _stacked(groups, {panel: _lines(groups, panel) for panel in INSIDE}, output, "inside")


def _lines(groups: Sequence[Group], panel: Panel) -> list[tuple]:
    """[(look, Curve over steps)] of the groups that have a panel's quantity."""
    lines = []
    for group, look in zip(groups, looks(groups)):
        curve = _curve(group, "steps", panel.kinds[0], panel.quantity)
        if curve is not None:
            lines.append((look, curve))
    return lines


@drawing.in_style
def _stacked(groups: Sequence[Group], lines_of: dict, output: Output, name: str) -> list[Path]:
    """Files of panels below each other, {panel: its lines}; those without a line are left out."""
    lines_of = {panel: lines for panel, lines in lines_of.items() if lines}
    if not lines_of:
        return []
    names = _names(groups)
    figure, panels = drawing.new_figure(names, len(lines_of), height=2.2, title=output.title)
    for axes, (panel, lines) in zip(panels, lines_of.items()):
        _draw_panel(axes, panel, lines)
    if any(len(group.runs) > 1 for group in groups):
        drawing.note(panels[0], "means over seeds")
    drawing.legend(panels[0], zip(names, looks(groups)))
    low, high = panels[-1].get_xlim()
    drawing.set_up(panels[-1].xaxis, AXES["steps"].label, low, high, log=False)
    figure.align_ylabels()
    return output.save(figure, name)


def _draw_panel(axes: Axes, panel: Panel, lines: list[tuple]) -> None:
    for look, curve in lines:
        x, mean = drawing.thin(curve.x, curve.mean, log=False)
        axes.plot(
            x,
            mean,
            **look,
            markevery=(len(x) // 8, max(1, len(x) // 4)),
            markerfacecolor="white",
        )
    low = min(curve.mean.min() for _, curve in lines)
    high = max(curve.mean.max() for _, curve in lines)
    drawing.set_up(axes.yaxis, panel.label, low, high, log=panel.log)
    if not panel.log:
        axes.set_ylim(0, 1.05 * high or 1)


@drawing.in_style
def law_figure(
    laws: dict[str, Fit],
    points: dict[str, list[tuple]],
    classes: dict[float, str],
    split: str,
    axis: str,
    output: Output,
) -> list[Path]:
    """Files of final normalised loss over compute. laws: {method: Fit}. points: {method: [(x, mean,
    spread or None)]}. classes: {x: compute class}, of `class_names`."""
    labels = {method: _law_label(method, law, axis) for method, law in laws.items()}
    figure, (axes,) = drawing.new_figure(labels.values(), height=4.2, title=output.title)
    compute, met = _extent(laws)
    losses = [law.loss for law in laws.values()] + [law.loss_at(compute) for law in laws.values()]
    low = min(map(np.min, losses))
    high = max(map(np.max, losses))
    label, per_unit = in_unit(AXES[axis].label, compute[-1])
    ends = []
    for (method, law), place in zip(laws.items(), places(list(laws))):
        look = drawing.style(place)
        _draw_law(axes, law, compute, per_unit, look)
        for x, mean, spread in points[method]:
            _draw_point(axes, x * per_unit, mean, spread, look)
        end = (compute[-1] * per_unit, float(law.loss_at(compute[-1])))
        ends.append((*end, labels[method], look))
    margin = (high / low) ** 0.12
    axes.set_xlim(compute[0] * per_unit, compute[-1] * per_unit)
    axes.set_ylim(low / margin, high * margin)
    drawing.set_up(axes.xaxis, label, *axes.get_xlim(), log=True, plain=axis != "flops")
    name = f"final normalised loss on {split} (nats per byte)"
    drawing.set_up(axes.yaxis, name, *axes.get_ylim(), log=True)
    for at, loss in met:
        _draw_crossing(axes, at * per_unit, loss, _amount(at, axis))
    notes = ["lines: power laws, thin beyond the data", f"bands: {LEVEL:.0%} for the law"]
    if any(spread is not None for of_it in points.values() for _, _, spread in of_it):
        notes.append("bars: 1 s.d. over seeds")
    drawing.note(axes, "; ".join(notes))
    drawn_points = [point for method in laws for point in points[method]]
    _name_classes(axes, drawn_points, classes, per_unit)
    drawing.label_ends(axes, ends, lines=3)
    return output.save(figure, "scaling")


def _extent(laws: dict[str, Fit]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """(the compute over which laws are drawn, (compute, loss) where they cross within it)."""
    least = min(law.compute.min() for law in laws.values())
    most = max(law.compute.max() for law in laws.values())
    met = []
    for first, second in pairs(laws):
        for crossing in crossings(laws[first], laws[second]):
            met.append((crossing.at, float(laws[first].loss_at(crossing.at))))
    rightmost = max([4 * most, *(1.6 * at for at, _ in met)])
    compute = np.geomspace(least / 1.6, rightmost, 200)
    return compute, [(at, loss) for at, loss in met if at > compute[0]]


def _draw_law(axes: Axes, law: Fit, compute: np.ndarray, per_unit: float, look: dict) -> None:
    """A law: over what was measured, thin beyond it, and its band. per_unit: of the axis."""
    color = look["color"]
    measured = np.geomspace(law.compute.min(), law.compute.max(), 100)
    losses = law.loss_at(measured)
    axes.plot(measured * per_unit, losses, color=color, linestyle=look["linestyle"], zorder=3)
    axes.plot(compute * per_unit, law.loss_at(compute), color=color, linewidth=0.6, alpha=0.8)
    band = law.band(compute)
    axes.fill_between(compute * per_unit, *band, color=color, alpha=0.12, linewidth=0)


def _draw_point(axes: Axes, x: float, mean: float, spread: float | None, look: dict) -> None:
    axes.errorbar(
        x,
        mean,
        yerr=spread,
        color=look["color"],
        marker=look["marker"],
        markerfacecolor="white",
        capsize=2.5,
        elinewidth=0.9,
        zorder=4,
    )


def class_names(groups: Sequence[Group], axis: str) -> dict[float, str]:
    """{place of a group's last step on an axis: its compute class}."""
    names = {}
    for group in groups:
        run = group.runs[0]
        hours = run.planned("reference_hours")
        place = run.planned(axis)
        if hours is not None and place is not None:
            names[place] = f"{nominal(hours)} h"
    return names


def _name_classes(
    axes: Axes, points: list[tuple], classes: dict[float, str], per_unit: float
) -> None:
    """Write the compute class below the lowest of the points that are of one class and place."""
    lowest: dict[tuple, tuple] = {}
    for x, mean, spread in points:
        y = mean - (spread or 0)
        key = (classes.get(x), round(10 * math.log(x)))
        if key not in lowest or y < lowest[key][1]:
            lowest[key] = (x * per_unit, y)
    for (name, _), place in lowest.items():
        if name is not None:
            axes.annotate(
                name,
                place,
                (0, -6),
                textcoords="offset points",
                va="top",
                ha="center",
                fontsize=7.5,
                color=drawing.GREY,
            )


def _draw_crossing(axes: Axes, at: float, loss: float, amount: str) -> None:
    """A line where two laws meet, told at the end of it that is farther from them."""
    axes.axvline(at, color="#777777", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    low, high = axes.get_ylim()
    is_low = loss < math.sqrt(low * high)
    axes.annotate(
        f"crossing ${amount}$",
        (at, 0.985 if is_low else 0.015),
        rotation=90,
        va="top" if is_low else "bottom",
        ha="right",
        xycoords=("data", "axes fraction"),
        fontsize=8,
        color=drawing.GREY,
    )


def _law_label(method: str, law: Fit, axis: str) -> str:
    """Three lines: the method's name, its law, and what it rests on, in matplotlib's mathtext."""
    evidence = f"{LEVEL:.0%} interval, {plural(len(law.compute), 'point')}"
    name = drawing.short(method).replace("$", r"\$")
    return f"{name}\n{_formula(law, axis)}\n{evidence}"


def _formula(law: Fit, axis: str) -> str:
    """A law in matplotlib's mathtext, its exponent with half of the interval."""
    compute = rf"(C\,/\,{_amount(law.reference, axis, 2)})"
    exponent = rf"-{law.exponent:.3f}\pm{law.half_widths()[1]:.3f}"
    power = rf"{law.amplitude:.3g}\,{compute}^{{{exponent}}}"
    return f"${law.offset:.3g}+{power}$" if law.offset else f"${power}$"


def _amount(value: float, axis: str, digits: int = 3) -> str:
    """Compute with its unit, in mathtext."""
    if axis == "reference_hours":
        number, unit = timespan(value, digits).split()
        return rf"{number.replace(',', '{,}')}\,\mathrm{{{unit}}}"
    return rf"{_scientific(value, digits)}\,\mathrm{{{UNITS[axis]}}}"


def _scientific(value: float, digits: int) -> str:
    exponent = math.floor(math.log10(value))
    if -4 <= exponent < 4:
        return f"{float(f'{value:.{digits}g}'):g}"
    return rf"{value / 10.0**exponent:.{digits}g}\!\times\!10^{{{exponent}}}"

"""The figures of runs: curves over every axis, how training went, scaling laws. Needs matplotlib
(extra `plot`)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from gpt.metrics.events import ACTIVATIONS, AXES, EVAL, NORMS, TRAIN
from gpt.results import drawing
from gpt.results.comparison import Group
from gpt.results.power_law import Fit, crossings, pairs

QUANTITIES = {"loss": "loss (nats per token)", "normalised_ppl": "normalised perplexity (per byte)"}


class Panel(NamedTuple):
    """One of several curves over steps, drawn below each other. quantity: a number's name in the
    events of a kind, or a function of the event."""

    kind: str
    quantity: str | Callable
    label: str
    log: bool = False


def _norm(event: dict, what: str) -> float:
    """2-norm of all parameter groups together."""
    return math.hypot(*event[what].values())


LOSS_SCALE = Panel(TRAIN, "loss_scale", "loss scale", log=True)
TRAINING = (
    Panel(TRAIN, "lr", "learning rate"),
    Panel(TRAIN, "grad_norm", "gradient norm", log=True),
    LOSS_SCALE,
    Panel(TRAIN, "tokens_per_second", "tokens per second"),
)
INSIDE = (
    Panel(NORMS, lambda event: _norm(event, "weight"), "norm of all weights"),
    Panel(
        NORMS,
        lambda event: 1e6 * _norm(event, "update") / _norm(event, "weight"),
        "update / weights (ppm)",
        log=True,
    ),
    Panel(ACTIVATIONS, "rms/ln_f.stream", "RMS after the last block"),
    Panel(
        ACTIVATIONS, lambda event: max(event["max_abs"].values()), "largest activation", log=True
    ),
)
# of the axes over which laws are fitted
UNITS = {"reference_hours": "h", "flops": "FLOPs"}
GREY = "#444444"


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
    keep = np.isfinite(x) & np.isfinite(mean) & ((x > 0) | (not AXES[axis].log))
    if not keep.any():
        return None
    return Curve(x[keep], mean[keep], None if spread is None else spread[keep])


def looks(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A style for each group: one of its own, or, where there are families of several, its family's
    with its own marker."""
    families = list(dict.fromkeys(group.family for group in groups))
    if not 1 < len(families) < len(groups):
        return [drawing.style(index) for index in range(len(groups))]
    members = dict.fromkeys(families, 0)
    styles = []
    for group in groups:
        styles.append(drawing.style(families.index(group.family), members[group.family]))
        members[group.family] += 1
    return styles


@drawing.in_style
def curves(groups: Sequence[Group], axis: str, quantity: str, out: Path) -> list[Path]:
    """Files of one of QUANTITIES over one of AXES; none where no group has both. Where a run holds
    evaluations of more splits than one, the one that its configuration names is drawn."""
    figure, (axes,) = drawing.new_figure([group.title for group in groups])
    ends = []
    drawn = []
    splits = set()
    has_training = False
    has_band = False
    for group, look in zip(groups, looks(groups)):
        split = (group.runs[0].splits() or [None])[0]
        train = _curve(group, axis, TRAIN, quantity)
        held_out = _curve(group, axis, EVAL, quantity, split)
        if train is not None:
            x, mean = drawing.thin(train.x, train.mean, AXES[axis].log)
            axes.plot(x, mean, color=look["color"], linewidth=0.6, alpha=0.6)
            drawn.append((x, mean))
            has_training = True
        if held_out is not None:
            x, mean = held_out.x, held_out.mean
            _plot_held_out(axes, held_out, look)
            drawn.append((x, mean))
            splits.add(str(split))
            has_band = has_band or held_out.spread is not None
        if train is not None or held_out is not None:
            ends.append((x[-1], mean[-1], group.title, look))
    if not drawn:
        return []
    x = np.concatenate([x for x, _ in drawn])
    y = np.concatenate([y for _, y in drawn])
    drawing.axis_scale(axes.xaxis, x.min(), x.max(), AXES[axis].log, plain=axis != "flops")
    drawing.axis_scale(axes.yaxis, y.min(), y.max(), log=True)
    axes.set_xlabel(AXES[axis].label)
    axes.set_ylabel(QUANTITIES[quantity])
    notes = []
    if splits:
        notes.append(f"marked: held out ({', '.join(sorted(splits))})")
    if has_training:
        notes.append("thin: training")
    if has_band:
        notes.append("band: one standard deviation over seeds")
    axes.set_title("; ".join(notes), fontsize=8, color=GREY, parse_math=False)
    drawing.label_ends(axes, ends)
    return drawing.save(figure, out / f"{quantity}_{axis}")


def _plot_held_out(axes: Axes, curve: Curve, look: dict) -> None:
    """A marked line, with a band where there are several seeds."""
    axes.plot(
        curve.x,
        curve.mean,
        **look,
        markevery=max(1, math.ceil(len(curve.x) / 10)),
        markerfacecolor="white",
        zorder=3,
    )
    if curve.spread is not None:
        low = curve.mean - curve.spread
        high = curve.mean + curve.spread
        axes.fill_between(curve.x, low, high, color=look["color"], alpha=0.2, linewidth=0)


def training(groups: Sequence[Group], out: Path) -> list[Path]:
    """Files of learning rate, gradient norm, loss scale (where one is in use) and throughput over
    steps."""
    lines_of = {panel: _lines(groups, panel) for panel in TRAINING}
    lines_of[LOSS_SCALE] = [
        (look, curve) for look, curve in lines_of[LOSS_SCALE] if (curve.mean != 1).any()
    ]
    return _stacked(groups, lines_of, out / "training")


def inside(groups: Sequence[Group], out: Path) -> list[Path]:
    """Files of what runs told about their weights and activations (log_grads_every,
    log_activations_every) over steps."""
    return _stacked(groups, {panel: _lines(groups, panel) for panel in INSIDE}, out / "inside")


def _lines(groups: Sequence[Group], panel: Panel) -> list[tuple]:
    """[(look, Curve over steps)] of the groups that have a panel's quantity."""
    lines = []
    for group, look in zip(groups, looks(groups)):
        curve = _curve(group, "steps", panel.kind, panel.quantity)
        if curve is not None:
            lines.append((look, curve))
    return lines


@drawing.in_style
def _stacked(groups: Sequence[Group], lines_of: dict, stem: Path) -> list[Path]:
    """Files of panels below each other, {panel: its lines}; those without a line are left out."""
    lines_of = {panel: lines for panel, lines in lines_of.items() if lines}
    if not lines_of:
        return []
    titles = [group.title for group in groups]
    figure, panels = drawing.new_figure(titles, len(lines_of), height=2.2, sample=0.3)
    for axes, (panel, lines) in zip(panels, lines_of.items()):
        _draw_panel(axes, panel, lines)
    drawing.legend(panels[0], zip(titles, looks(groups)))
    panels[-1].xaxis.set_major_formatter(lambda value, _: drawing.number(value))
    panels[-1].set_xlabel(AXES["steps"].label)
    figure.align_ylabels()
    return drawing.save(figure, stem)


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
    drawing.axis_scale(axes.yaxis, low, high, log=panel.log)
    if not panel.log:
        axes.set_ylim(0, 1.05 * high or 1)
    axes.set_ylabel(panel.label)


@drawing.in_style
def law_figure(
    laws: dict[str, Fit], points: dict[str, list[tuple]], split: str, axis: str, out: Path
) -> list[Path]:
    """Files of final normalised loss over compute. laws: {family: Fit}. points: {family: [(x, mean,
    spread or None)]}."""
    labels = {family: f"{family}\n{_formula(law, UNITS[axis])}" for family, law in laws.items()}
    figure, (axes,) = drawing.new_figure(labels.values(), height=4)
    compute, met = _extent(laws)
    losses = [law.loss for law in laws.values()] + [law.loss_at(compute) for law in laws.values()]
    low = min(map(np.min, losses))
    high = max(map(np.max, losses))
    ends = []
    for index, (family, law) in enumerate(laws.items()):
        look = drawing.style(index)
        _draw_law(axes, law, compute, points[family], look)
        ends.append((compute[-1], float(law.loss_at(compute[-1])), labels[family], look))
    margin = (high / low) ** 0.12
    axes.set_xlim(compute[0], compute[-1])
    axes.set_ylim(low / margin, high * margin)
    drawing.axis_scale(axes.xaxis, *axes.get_xlim(), log=True, plain=axis != "flops")
    drawing.axis_scale(axes.yaxis, *axes.get_ylim(), log=True)
    for at in met:
        _draw_crossing(axes, at, UNITS[axis])
    axes.set_xlabel(AXES[axis].label)
    axes.set_ylabel(f"final normalised loss on {split} (nats per byte)", parse_math=False)
    title = "lines: power laws, thin beyond the data; bands: 95% for the law"
    axes.set_title(title, fontsize=8, color=GREY)
    drawing.label_ends(axes, ends, lines=2)
    return drawing.save(figure, out / "scaling")


def _extent(laws: dict[str, Fit]) -> tuple[np.ndarray, list[float]]:
    """(the compute over which laws are drawn, where they cross within it)."""
    least = min(law.compute.min() for law in laws.values())
    most = max(law.compute.max() for law in laws.values())
    met = []
    for first, second in pairs(laws):
        met += [crossing.at for crossing in crossings(laws[first], laws[second])]
    rightmost = max([4 * most, *(1.6 * at for at in met)])
    compute = np.geomspace(least / 1.6, rightmost, 200)
    return compute, [at for at in met if at > compute[0]]


def _draw_law(axes: Axes, law: Fit, compute: np.ndarray, points: list[tuple], look: dict) -> None:
    """A law: over what was measured, thin beyond it, its band and its points."""
    color = look["color"]
    measured = np.geomspace(law.compute.min(), law.compute.max(), 100)
    losses = law.loss_at(measured)
    axes.plot(measured, losses, color=color, linestyle=look["linestyle"], zorder=3)
    axes.plot(compute, law.loss_at(compute), color=color, linewidth=0.6, alpha=0.8)
    axes.fill_between(compute, *law.band(compute), color=color, alpha=0.12, linewidth=0)
    for x, mean, spread in points:
        axes.errorbar(
            x,
            mean,
            yerr=spread,
            color=color,
            marker=look["marker"],
            markerfacecolor="white",
            capsize=2.5,
            elinewidth=0.9,
            zorder=4,
        )


def _draw_crossing(axes: Axes, at: float, unit: str) -> None:
    axes.axvline(at, color="#777777", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        rf"${_scientific(at, 3)}\,\mathrm{{{unit}}}$",
        (at, 0.985),
        rotation=90,
        va="top",
        ha="right",
        xycoords=("data", "axes fraction"),
        fontsize=8,
        color=GREY,
    )


def _formula(law: Fit, unit: str) -> str:
    """A law in matplotlib's mathtext."""
    compute = rf"(C\,/\,{_scientific(law.reference, 2)}\,\mathrm{{{unit}}})"
    power = rf"{law.amplitude:.3g}\,{compute}^{{{-law.exponent:.3f}}}"
    return f"${law.offset:.3g}+{power}$" if law.offset else f"${power}$"


def _scientific(value: float, digits: int) -> str:
    exponent = math.floor(math.log10(value))
    if -4 <= exponent < 4:
        return f"{float(f'{value:.{digits}g}'):g}"
    return rf"{value / 10.0**exponent:.{digits}g}\!\times\!10^{{{exponent}}}"

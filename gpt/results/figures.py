"""The figures of runs: curves over every axis, how training went, scaling laws. Needs matplotlib
(extra `plot`)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt.metrics.events import AXES
from gpt.results import drawing
from gpt.results.power_law import crossings, pairs

QUANTITIES = {"loss": "loss (nats per token)", "normalised_ppl": "normalised perplexity (per byte)"}


class Panel(NamedTuple):
    """One of several curves over steps, drawn below each other. quantity: a number's name in the
    events of a kind, or a function of the event."""

    kind: str
    quantity: str | Callable
    label: str
    log: bool = False


def _norm(event, what):
    """2-norm of all parameter groups together."""
    return math.hypot(*event[what].values())


SCALE = Panel("train", "loss_scale", "loss scale", log=True)
TRAINING = (
    Panel("train", "lr", "learning rate"),
    Panel("train", "grad_norm", "gradient norm", log=True),
    SCALE,
    Panel("train", "tokens_per_second", "tokens per second"),
)
INSIDE = (
    Panel("norms", lambda event: _norm(event, "weight"), "norm of all weights"),
    Panel(
        "norms",
        lambda event: 1e6 * _norm(event, "update") / _norm(event, "weight"),
        "update / weights (ppm)",
        log=True,
    ),
    Panel("activations", "rms/ln_f.stream", "RMS after the last block"),
    Panel(
        "activations", lambda event: max(event["max_abs"].values()), "largest activation", log=True
    ),
)
UNITS = {"reference_hours": "h", "flops": "FLOPs"}


def _points(group, axis, kind, name, split=None):
    """(x, mean, spread or None) of a group where numbers are and the axis can show them; None
    without any."""
    found = group.mean(axis, kind, name, split)
    if found is None:
        return None
    x, mean, spread = found
    keep = np.isfinite(x) & np.isfinite(mean) & ((x > 0) | (not AXES[axis].log))
    return (x[keep], mean[keep], spread if spread is None else spread[keep]) if keep.any() else None


def looks(groups) -> list:
    """A style for each group: one of its own, or, where there are families of several, its family's
    with its own marker."""
    families = list(dict.fromkeys(group.family for group in groups))
    if not 1 < len(families) < len(groups):
        return [drawing.style(index) for index in range(len(groups))]
    members = [
        sum(other.family == group.family for other in groups[:index])
        for index, group in enumerate(groups)
    ]
    return [
        drawing.style(families.index(group.family), member)
        for group, member in zip(groups, members)
    ]


@drawing.in_style
def curves(groups, axis: str, quantity: str, out) -> list:
    """Files of one of QUANTITIES over one of AXES; none where no group has both. Where a run holds
    evaluations of more splits than one, the one that its configuration names is drawn."""
    made, (axes,) = drawing.figure([group.title for group in groups])
    ends = []
    drawn = []
    trained = False
    splits = set()
    seeds = 0
    for group, look in zip(groups, looks(groups)):
        split = (group.runs[0].splits() or [None])[0]
        train = _points(group, axis, "train", quantity)
        held_out = _points(group, axis, "eval", quantity, split)
        if train is not None:
            x, mean = drawing.thin(*train[:2], AXES[axis].log)
            axes.plot(x, mean, color=look["color"], linewidth=0.6, alpha=0.6)
            drawn.append((x, mean))
            trained = True
        if held_out is not None:
            x, mean, spread = held_out
            axes.plot(
                x,
                mean,
                **look,
                markevery=max(1, math.ceil(len(x) / 10)),
                markerfacecolor="white",
                zorder=3,
            )
            if spread is not None:
                axes.fill_between(
                    x, mean - spread, mean + spread, color=look["color"], alpha=0.2, linewidth=0
                )
                seeds += 1
            drawn.append((x, mean))
            splits.add(split)
        if train is not None or held_out is not None:
            ends.append((x[-1], mean[-1], group.title, look))
    if not drawn:
        return []
    x, y = (np.concatenate(parts) for parts in zip(*drawn))
    drawing.scale(axes.xaxis, x.min(), x.max(), AXES[axis].log, plain=axis != "flops")
    drawing.scale(axes.yaxis, y.min(), y.max(), log=True)
    axes.set_xlabel(AXES[axis].label)
    axes.set_ylabel(QUANTITIES[quantity])
    told = [f"marked: held out ({', '.join(sorted(map(str, splits)))})"] * bool(splits)
    told += ["thin: training"] * trained + ["band: one standard deviation over seeds"] * bool(seeds)
    axes.set_title("; ".join(told), fontsize=8, color="#444444", parse_math=False)
    drawing.label_ends(axes, ends)
    return drawing.save(made, out / f"{quantity}_{axis}")


def training(groups, out) -> list:
    """Files of learning rate, gradient norm, loss scale (where one is in use) and throughput over
    steps."""
    series = {panel: _lines(groups, panel) for panel in TRAINING}
    series[SCALE] = [line for line in series[SCALE] if (line[2] != 1).any()]
    return _stacked(groups, series, out / "training")


def inside(groups, out) -> list:
    """Files of what runs told about their weights and activations (log_grads_every,
    log_activations_every) over steps."""
    return _stacked(groups, {panel: _lines(groups, panel) for panel in INSIDE}, out / "inside")


def _lines(groups, panel):
    """[(look, steps, mean)] of the groups that have a panel's quantity."""
    return [
        (look, *found[:2])
        for group, look in zip(groups, looks(groups))
        if (found := _points(group, "steps", panel.kind, panel.quantity))
    ]


@drawing.in_style
def _stacked(groups, series, stem) -> list:
    """Files of panels below each other, {panel: its lines}; those without a line are left out."""
    series = {panel: lines for panel, lines in series.items() if lines}
    if not series:
        return []
    made, panels = drawing.figure(
        [group.title for group in groups], len(series), height=2.2, sample=0.3
    )
    for axes, (panel, lines) in zip(panels, series.items()):
        for look, x, mean in lines:
            x, mean = drawing.thin(x, mean, log=False)
            axes.plot(
                x,
                mean,
                **look,
                markevery=(len(x) // 8, max(1, len(x) // 4)),
                markerfacecolor="white",
            )
        low = min(mean.min() for *_, mean in lines)
        high = max(mean.max() for *_, mean in lines)
        drawing.scale(axes.yaxis, low, high, log=panel.log)
        if not panel.log:
            axes.set_ylim(0, 1.05 * high or 1)
        axes.set_ylabel(panel.label)
    drawing.legend(panels[0], [(group.title, look) for group, look in zip(groups, looks(groups))])
    panels[-1].xaxis.set_major_formatter(lambda value, _: drawing.number(value))
    panels[-1].set_xlabel(AXES["steps"].label)
    made.align_ylabels()
    return drawing.save(made, stem)


@drawing.in_style
def scaling(laws: dict, points: dict, split: str, axis: str, out) -> list:
    """Files of final normalised loss over compute. laws: {family: Fit}. points: {family: [(x, mean,
    spread or None)]}."""
    labels = {family: f"{family}\n{_formula(law, UNITS[axis])}" for family, law in laws.items()}
    made, (axes,) = drawing.figure(labels.values(), height=4)
    least = min(law.compute.min() for law in laws.values())
    most = max(law.compute.max() for law in laws.values())
    met = [
        crossing.at for one, other in pairs(laws) for crossing in crossings(laws[one], laws[other])
    ]
    wide = np.geomspace(least / 1.6, max(4 * most, *(1.6 * at for at in [0, *met])), 200)
    met = [at for at in met if at > wide[0]]
    seen = [law.loss for law in laws.values()] + [law.loss_at(wide) for law in laws.values()]
    low, high = min(map(np.min, seen)), max(map(np.max, seen))
    for index, (family, law) in enumerate(laws.items()):
        look = drawing.style(index)
        color = look["color"]
        measured = np.geomspace(law.compute.min(), law.compute.max(), 100)
        axes.plot(
            measured, law.loss_at(measured), color=color, linestyle=look["linestyle"], zorder=3
        )
        axes.plot(wide, law.loss_at(wide), color=color, linewidth=0.6, alpha=0.8)
        axes.fill_between(wide, *law.band(wide), color=color, alpha=0.12, linewidth=0)
        for x, mean, spread in points[family]:
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
    axes.set_xlim(wide[0], wide[-1])
    axes.set_ylim(low / (high / low) ** 0.12, high * (high / low) ** 0.12)
    drawing.scale(axes.xaxis, *axes.get_xlim(), log=True, plain=axis != "flops")
    drawing.scale(axes.yaxis, *axes.get_ylim(), log=True)
    for at in met:
        axes.axvline(at, color="#777777", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            rf"${_scientific(at, 3)}\,\mathrm{{{UNITS[axis]}}}$",
            (at, 0.985),
            rotation=90,
            va="top",
            ha="right",
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color="#444444",
        )
    axes.set_xlabel(AXES[axis].label)
    axes.set_ylabel(f"final normalised loss on {split} (nats per byte)", parse_math=False)
    axes.set_title(
        "lines: power laws, thin beyond the data; bands: 95% for the law",
        fontsize=8,
        color="#444444",
    )
    drawing.label_ends(
        axes,
        [
            (wide[-1], float(law.loss_at(wide[-1])), labels[family], drawing.style(index))
            for index, (family, law) in enumerate(laws.items())
        ],
        lines=2,
    )
    return drawing.save(made, out / "scaling")


def _formula(law, unit):
    """A law in matplotlib's mathtext."""
    compute = rf"(C\,/\,{_scientific(law.reference, 2)}\,\mathrm{{{unit}}})"
    power = rf"{law.amplitude:.3g}\,{compute}^{{{-law.exponent:.3f}}}"
    return f"${law.offset:.3g}+{power}$" if law.offset else f"${power}$"


def _scientific(value, digits):
    exponent = math.floor(math.log10(value))
    if -4 <= exponent < 4:
        return f"{float(f'{value:.{digits}g}'):g}"
    return rf"{value / 10.0**exponent:.{digits}g}\!\times\!10^{{{exponent}}}"

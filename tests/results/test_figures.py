"""Figures of runs, as a reader sees them."""

import errno
import os
import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, load_command
from matplotlib import image
from matplotlib.text import Text
from scipy import optimize
from synthetic_runs import evaluation, synthetic_run, train, write_lines

from gpt.errors import UserError, in_words
from gpt.metrics.runs import read_runs
from gpt.results import drawing, figures, power_law
from gpt.results.comparison import final_losses, group_by_seed
from gpt.results.figures import Output
from gpt.results.looks import COLORS, Place, places

plot = load_command("plot")
NAMES = {
    f"{quantity}_{axis}"
    for quantity in ("loss", "normalised_ppl")
    for axis in ("steps", "tokens", "flops", "hours", "reference_hours")
}


def ladder(folder, seeds=2, scales=(10, 20, 40, 80)):
    """Two families whose final losses follow known laws of the steps: 1.7 C^-0.05 and 2.5 C^-0.12
    with C in hours."""
    for layers, amplitude, exponent in ((2, 1.7, 0.05), (3, 2.5, 0.12)):
        for steps in scales:
            for seed in range(seeds):
                synthetic_run(
                    folder / f"{layers}l-{steps}h-seed{seed}",
                    steps,
                    final=amplitude * steps**-exponent,
                    n_layers=layers,
                    tokens_per_second=256 / 3600,
                    seed=seed,
                )
    return folder


def test_the_whole_command(tmp_path, run_command):
    ladder(tmp_path / "runs")
    command = [sys.executable, ROOT / "tools/plot.py", "runs", "--scaling", "--out"]
    done = [run_command([*command, out], tmp_path, OMP_NUM_THREADS="1") for out in ("one", "two")]
    assert done[0].returncode == 0, done[0].stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert set(files) == {
        f"{name}.{kind}" for name in NAMES | {"training", "scaling"} for kind in ("png", "svg")
    }
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    lines = done[0].stdout.splitlines()
    assert lines[0].startswith("2x32-mlp64-attn16: L(C) = 1.") and lines[0].endswith(" h)^-0.0500")
    assert lines[3].startswith("3x32-mlp64-attn16: L(C) = ") and lines[3].endswith(" h)^-0.1200")
    at = (2.5 / 1.7) ** (1 / 0.07)
    assert lines[6].startswith(
        f"2x32-mlp64-attn16 and 3x32-mlp64-attn16 cross at C = {at:.3g} h, between "
    )
    assert lines[6].endswith("; an extrapolation")
    pixels = image.imread(tmp_path / "one/scaling.png")
    # neither blank nor black
    assert pixels.shape[:2] == (840, 1320) and 0.5 < pixels[..., :3].mean() < 0.99


def test_older_runs_have_no_figure_over_measured_hours(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        synthetic_run(tmp_path / name, 20, measured=False)
    with open(tmp_path / "b/metrics.jsonl", "a") as file:
        file.write("broken\n")
    in_process(monkeypatch, tmp_path, "a", "b", "--out", "out")
    told = capsys.readouterr().out
    assert (
        "notice: no measured hours of training for a, b: metrics.jsonl does not hold them" in told
    )
    assert (
        "notice: no reference accelerator-hours for a, b: config.yaml has no gpt.tokens_per_second"
        in told
    )
    assert "notice: b/metrics.jsonl: line 24 is damaged and left out" in told
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {
        "training",
        *(n for n in NAMES if not n.endswith("hours")),
    }


def in_process(monkeypatch, folder, *options):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["plot.py", *options])
    plot.main()


WITHOUT_A_LAW = {
    "two scales": (
        "runs",
        "reference_hours",
        "no power law of 2x32-mlp64-attn16: a power law needs final losses at 3 scales of compute "
        "at least, and there are 2",
    ),
    "no reference": (
        "plain",
        "reference_hours",
        "no reference accelerator-hours for plain: config.yaml has no gpt.tokens_per_second",
    ),
    "unfinished": ("begun", "reference_hours", "begun is left out: at step 1 of 10"),
    "other data": (
        "plain other",
        "flops",
        "no power law: these runs cannot be compared: plain and other were trained on different",
    ),
}


@pytest.mark.parametrize("case", WITHOUT_A_LAW)
def test_what_has_no_law_costs_a_notice_and_no_figure(case, folder_of_mistakes, monkeypatch):
    names, axis, sentence = WITHOUT_A_LAW[case]
    monkeypatch.chdir(folder_of_mistakes)
    notices = []
    groups = group_by_seed(read_runs(names.split()))
    assert plot.fit_laws(groups, axis, notices)[1] == {}
    (notice,) = notices
    assert notice.startswith(sentence)


REFUSED = {
    "nothing yet": (["empty"], "no run has a line of training yet: there is nothing to draw"),
    "no run": (["absent"], "absent does not exist: give the folder that training made (--run_dir)"),
    "another axis": (
        ["plain", "--scaling", "tokens"],
        "command line: argument --scaling: invalid choice: 'tokens'",
    ),
}


@pytest.fixture(scope="module")
def folder_of_mistakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    for steps in (10, 20):
        synthetic_run(folder / f"runs/{steps}", steps, tokens_per_second=64.0)
    synthetic_run(folder / "plain", 10)
    synthetic_run(folder / "other", 10, fingerprint="e" * 64)
    write_lines(
        synthetic_run(folder / "begun", 10, tokens_per_second=64.0),
        [train(1, 7.0), evaluation(1, 7.0)],
    )
    write_lines(synthetic_run(folder / "empty", 10), [])
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes(case, folder_of_mistakes, monkeypatch):
    options, sentence = REFUSED[case]
    with pytest.raises(UserError) as error:
        in_process(monkeypatch, folder_of_mistakes, *options, "--out", "out")
    assert str(error.value).startswith(sentence)
    assert not (folder_of_mistakes / "out").exists()


def drawn(monkeypatch, draw):
    """The matplotlib figure that a function of gpt.results.figures draws and would save."""
    made = []
    monkeypatch.setattr(drawing, "save", lambda figure, stem, formats: made.append(figure) or [])
    draw()
    return made[0]


def names_in(figure):
    """{name: box in pixels} of the texts right of the axes."""
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = {text.get_text(): Text.get_window_extent(text) for text in texts}
    return {
        name: box for name, box in boxes.items() if box.x0 > figure.axes[0].get_window_extent().x1
    }


@pytest.mark.parametrize("count", [1, 14])
def test_names_stand_apart_within_the_figure(count, tmp_path, monkeypatch):
    names = [f"run $x^{index}_" + "long" * (index % 4) for index in range(count)]
    for index, name in enumerate(names):
        synthetic_run(
            tmp_path / name,
            20,
            lambda step, index=index: 6 * (step + 1) ** -0.2 + 1e-3 * index,
            max_eval_steps=1 + index,
        )
    groups = group_by_seed(read_runs([tmp_path]))
    figure = drawn(monkeypatch, lambda: figures.curves(groups, "steps", "loss", Output(tmp_path)))
    boxes = names_in(figure)
    assert sorted(boxes) == sorted(names)  # not taken for formulas
    for one, other in combinations(boxes.values(), 2):
        assert not one.overlaps(other)
    width, height = figure.canvas.get_width_height()
    assert all(box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes.values())


def test_a_figure_shows_the_numbers_of_its_runs(tmp_path, monkeypatch):
    curves = [lambda step, seed=seed: 8 - 0.1 * step + 0.02 * seed for seed in range(3)]
    for seed, curve in enumerate(curves):
        synthetic_run(tmp_path / f"r-seed{seed}", 30, curve, seed=seed)
    groups = group_by_seed(read_runs([tmp_path]))
    figure = drawn(monkeypatch, lambda: figures.curves(groups, "tokens", "loss", Output(tmp_path)))
    training, before, held_out = (line.get_xydata() for line in figure.axes[0].lines)
    steps = np.arange(1, 31)
    assert training == pytest.approx(np.stack([steps * 256, 8.02 - 0.1 * steps], 1), rel=1e-12)
    # what was scored before training is a point of its own, joined to nothing
    assert before == pytest.approx(np.array([[0, 8.02]]), rel=1e-12)
    assert held_out == pytest.approx(
        np.stack([np.arange(10, 31, 10) * 256, 7.02 - np.arange(3.0)], 1), rel=1e-12
    )
    (band,) = figure.axes[0].collections
    assert np.ptp(band.get_paths()[0].vertices[1:4, 0]) < 30 * 256
    # one standard deviation up
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(7.02 + 0.02, rel=1e-9)
    assert names_in(figure).keys() == {"r (3 seeds)"}


def test_an_unfinished_seed_takes_no_end_from_the_finished_ones(tmp_path, monkeypatch, capsys):
    for seed in range(3):
        folder = synthetic_run(
            tmp_path / f"runs/r-seed{seed}",
            20,
            lambda step, seed=seed: 8 - 0.1 * step + 0.02 * seed,
            seed=seed,
            tokens_per_second=64.0,
        )
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:14]))
    saved = {}

    def kept(figure, path, formats):
        saved[path.name] = figure
        return [path.with_suffix(".png")]

    monkeypatch.setattr(drawing, "save", kept)
    in_process(monkeypatch, tmp_path, "runs", "--out", "out")
    notices = [line for line in capsys.readouterr().out.splitlines() if line.startswith("notice")]
    assert notices == ["notice: r-seed2 is left out: at step 12 of 20"]
    ends = {
        "steps": 20,
        "tokens": 20 * 256,
        "hours": 1.2,  # min
        "reference_hours": 80 / 60,  # min
        "flops": 20 * 256 * read_runs(["runs"])[0].flops_per_token,
    }
    for axis, end in ends.items():
        *_, held_out = saved[f"loss_{axis}"].axes[0].lines
        # the mean of the finished seeds, 6.00 and 6.02
        assert held_out.get_xydata()[-1] == pytest.approx([end, 6.01], rel=1e-9), axis
        assert names_in(saved[f"normalised_ppl_{axis}"]).keys() == {"r (2 seeds)"}


def test_what_a_run_told_of_its_inside_is_drawn(tmp_path, monkeypatch):
    synthetic_run(tmp_path / "run", 3)
    told = [
        {
            "event": "norms",
            "step": step,
            "weight": {"a": 3.0 * step, "b": 4.0 * step},
            "gradient": {"a": 1.0, "b": 1.0},
            "update": {"a": 0.0, "b": 0.5},
        }
        for step in (1, 2, 3)
    ]
    told += [
        {
            "event": "activations",
            "step": step,
            "rms": {"blocks.0.mlp": 9.0, "ln_f.stream": 2.0 + step},
            "max_abs": {"blocks.0.mlp": 70.0 if step < 3 else None, "ln_f.stream": 10.0},
        }
        for step in (1, 2, 3)
    ]
    write_lines(tmp_path / "run", [train(step, 3.0) for step in (1, 2, 3)] + told)
    groups = group_by_seed(read_runs([tmp_path]))
    figure = drawn(monkeypatch, lambda: figures.inside(groups, Output(tmp_path)))
    lines = [axes.lines[0].get_xydata().tolist() for axes in figure.axes]
    assert lines == [
        [[1, 5], [2, 10], [3, 15]],
        [[1, 1e5], [2, 5e4], [3, pytest.approx(5e5 / 15)]],
        [[1, 3], [2, 4], [3, 5]],
        [[1, 70], [2, 70]],
    ]  # a largest one that is not finite is not drawn
    mute = group_by_seed(read_runs([synthetic_run(tmp_path / "mute", 3)]))
    assert figures.inside(mute, Output(tmp_path)) == []


def test_lines_can_be_told_apart_without_colour():
    styles = [drawing.style(place) for place in places(range(40))]
    assert len({(str(style["linestyle"]), style["marker"]) for style in styles}) == 40
    one_method = [drawing.style(place) for place in places(["gpt"] * 8)]
    assert len({style["marker"] for style in one_method}) == 8


def test_a_method_keeps_its_look(tmp_path):
    """Variants of one shape never share a look; the classes of one are shades of its hue."""
    for variant in (None, "rope", "sparse"):
        for steps in (10, 20, 40):
            for seed in (0, 1):
                folder = tmp_path / f"{variant}-{steps}-seed{seed}"
                synthetic_run(folder, steps, seed=seed, variant=variant)
    groups = group_by_seed(read_runs([tmp_path]))
    assert len(groups) == 9
    looks = dict(zip([group.name for group in groups], figures.looks(groups)))
    for variant in (None, "rope", "sparse"):
        mine = [look for name, look in looks.items() if name.startswith(f"{variant}-")]
        assert len({str(look["linestyle"]) for look in mine}) == 1
        assert len({look["marker"] for look in mine}) == 3
        assert mine[-1]["color"] in COLORS
    assert len({look["color"] for look in looks.values()}) == 9
    assert len({str(look["linestyle"]) for look in looks.values()}) == 3
    (alone,) = figures.looks(groups[:1])
    assert alone == drawing.style(Place(0, 0, 1))


def lightness_and_chroma(color):
    """CIE L*a*b* of #rrggbb (D65), IEC 61966-2-1 and ISO 11664-4."""
    srgb = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(np.maximum(matrix @ linear / [0.9505, 1, 1.089], 1e-9))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_no_two_hues_are_alike():
    """A difference of 2.3 can just be seen in large fields; thin lines need ten times as much."""
    assert len(COLORS) == 9
    for one, other in combinations(COLORS, 2):
        distance = np.linalg.norm(lightness_and_chroma(one) - lightness_and_chroma(other))
        assert distance > 30, (one, other)


def texts_of(figure):
    """All that is written in a figure."""
    figure.canvas.draw()
    return {text.get_text() for text in figure.findobj(Text) if text.get_text()}


def test_axes_say_their_scale_and_suit_the_time(tmp_path, monkeypatch):
    synthetic_run(tmp_path / "run", 20, tokens_per_second=20 * 256 / 90)  # a class of 90 s
    groups = group_by_seed(read_runs([tmp_path]))
    draw = lambda axis: drawn(  # noqa: E731
        monkeypatch, lambda: figures.curves(groups, axis, "loss", Output(tmp_path))
    )
    over_hours = draw("reference_hours")
    assert over_hours.axes[0].get_xlabel() == "reference accelerator-minutes (log scale)"
    assert over_hours.axes[0].get_ylabel() == "loss (nats per token, log scale)"
    assert over_hours.axes[0].lines[-1].get_xydata()[-1, 0] == pytest.approx(1.5)
    assert draw("steps").axes[0].get_xlabel() == "optimiser steps"


@pytest.mark.parametrize(
    "ticks, log, words",
    [
        ([0, 8000, 10_000], False, ["0", "8k", "10k"]),
        ([5000, 20_000], False, ["5k", "20k"]),
        ([0, 500, 2500], False, ["0", "500", "2500"]),
        ([5e8, 2e9], False, ["0.5B", "2B"]),
        ([500, 5000, 50_000, 5e6], True, ["500", "5k", "50k", "5M"]),
        ([0.01, 1, 100], True, ["0.01", "1", "100"]),
    ],
)
def test_ticks_of_an_axis_have_one_style(ticks, log, words):
    write = drawing.number_on_log if log else drawing.number
    assert [write(tick, ticks[-1]) for tick in ticks] == words


def test_a_law_is_told_with_its_interval_its_points_and_their_classes(tmp_path, monkeypatch):
    groups = group_by_seed(read_runs([ladder(tmp_path / "runs", seeds=2, scales=(10, 20, 40))]))
    points = final_losses(groups, "reference_hours", [])
    laws = {
        method: power_law.fit(*np.array([point[:2] for point in of_it]).T)
        for method, of_it in points.items()
    }
    laws["cost $5"] = laws.pop("3x32-mlp64-attn16")
    points["cost $5"] = points.pop("3x32-mlp64-attn16")
    classes = figures.class_names(groups, "reference_hours")
    figure = drawn(
        monkeypatch,
        lambda: figures.law_figure(
            laws, points, classes, "test", "reference_hours", Output(tmp_path, title="$Two$ laws")
        ),
    )
    texts = texts_of(figure)
    assert {"10 h", "20 h", "40 h", "$Two$ laws"} <= texts
    assert any("\\pm" in text and "95% interval, 3 points" in text for text in texts)
    assert any(text.startswith("cost \\$5\n$1.") for text in texts)  # no formula begins there
    assert any("bars: 1 s.d. over seeds" in text for text in texts)
    assert "final normalised loss on test (nats per byte, log scale)" in texts


def test_figures_can_be_named_and_made_for_print(tmp_path, monkeypatch):
    for name, variant in (("0.008h-seed0", None), ("b", "rope")):
        synthetic_run(tmp_path / name, 10, variant=variant)
    labels = ["0.008h-seed0=AdamW, lr=1e-3", "rope=RoPE"]
    options = ["--format", "pdf", "--label", *labels, "--title", "Two runs", "--out"]
    in_process(monkeypatch, tmp_path, "0.008h-seed0", "b", *options, "one")
    in_process(monkeypatch, tmp_path, "0.008h-seed0", "b", *options, "two")
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {Path(name).suffix for name in files} == {".pdf"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    groups = group_by_seed(read_runs([tmp_path / "0.008h-seed0", tmp_path / "b"]))
    plot.relabel(groups, labels)
    assert [group.title for group in groups] == ["AdamW, lr=1e-3", "RoPE: b"]
    assert groups[1].method == "RoPE"
    for wrong, sentence in (
        (["c=d"], "--label c=d names no run, group of seeds or method: give NAME=TEXT with one of"),
        ([f"{groups[0].method}=x", "RoPE=x"], "--label gives two methods one name"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            plot.relabel(groups, wrong)


def test_a_batch_that_was_changed_on_resuming_counts_as_it_was(tmp_path, monkeypatch):
    """Over tokens a curve has neither a jump nor a hole where the batch doubles."""
    run = synthetic_run(tmp_path / "run", 20, measured=False)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["batch"]["global_size"] = config["run"]["train_batch_size"] = 16
    config["changes"] = [{"step": 10, "setting": "train_batch_size", "was": 8, "is": 16}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    groups = group_by_seed(read_runs([tmp_path]))
    figure = drawn(monkeypatch, lambda: figures.curves(groups, "tokens", "loss", Output(tmp_path)))
    tokens = figure.axes[0].lines[0].get_xdata()
    per_step = [8 * 32] * 10 + [16 * 32] * 10
    assert tokens == pytest.approx(np.cumsum(per_step))


def test_names_move_as_little_as_they_can():
    rng = np.random.default_rng(0)
    for _ in range(30):
        wanted = np.sort(rng.uniform(0, 10, 7))
        gap = rng.uniform(0.1, 2)
        found = np.array(drawing.spread(wanted.tolist(), gap))
        assert np.diff(found).min() > gap - 1e-9
        best = optimize.minimize(
            lambda x: ((x - wanted) ** 2).sum(),
            np.arange(7.0) * gap,
            constraints={"type": "ineq", "fun": lambda x: np.diff(x) - gap},
        )
        assert ((found - wanted) ** 2).sum() == pytest.approx(best.fun, rel=1e-4, abs=1e-6)


def test_thinning_keeps_means():
    x = np.arange(1, 100_001.0)
    y = np.random.default_rng(0).normal(3, 1, 100_000)
    found_x, found_y = drawing.thin(x, y, log=False, points=200)
    assert len(found_x) == 200
    assert found_y == pytest.approx(y.reshape(200, 500).mean(axis=1), rel=0.05)
    assert drawing.thin(x, y, log=True)[0].min() < 3
    assert [
        len(part)
        for part in drawing.thin(np.array([0.0, 1, 2]), np.array([5.0, np.nan, 3]), log=True)
    ] == [1, 1]


@pytest.mark.parametrize(
    "low, high", [(1, 1e9), (3e-5, 4e-3), (4.1, 7.3), (3.14, 3.19), (1e11, 4e12), (0.9, 1.1)]
)
def test_log_axes_have_ticks_to_read_off(low, high):
    ticks = drawing._log_ticks(low, high)
    assert (
        3 <= len(ticks) <= 10
        and all(low <= tick <= high for tick in ticks)
        and len(set(ticks)) == len(ticks)
    )


def test_figures_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    synthetic_run(tmp_path / "run", 5)
    (tmp_path / "file").write_text("x")
    for out, reason in (("file", "File exists"), ("file/figures", "Not a directory")):
        with pytest.raises(UserError) as error:
            in_process(monkeypatch, tmp_path, "run", "--out", out)
        assert str(error.value) == (
            f"--out {out} cannot be written to ({reason}): name another folder"
        )

    def full(aside, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as told:
        in_process(monkeypatch, tmp_path, "run", "--out", "out", "--format", "svg")
    # which names the file, as the command says it
    assert in_words(told.value).what.startswith("out/training.svg: No space left on device")
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_beyond_an_axis_are_left_out(tmp_path):
    losses = [4.0, 1e300, 3.0, 5e-324, 2.5, -1e300]
    run = synthetic_run(tmp_path / "run", 6, loss=lambda step: 3.0)
    lines = [train(step, loss) for step, loss in enumerate(losses, 1)]
    lines = [{**line, "normalised_ppl": line["loss"]} for line in lines]
    write_lines(run, [*lines, evaluation(6, 3.0)])
    groups = group_by_seed(read_runs([run]))
    curve = figures._curve(groups[0], "steps", "train", "loss")
    assert curve.mean.tolist() == [4.0, 3.0, 2.5]
    for quantity in figures.QUANTITIES:
        figures.curves(groups, "steps", quantity, Output(tmp_path, ["svg"]))


def test_what_a_notebook_has_set_is_no_concern_of_figures(tmp_path, run_command):
    synthetic_run(tmp_path / "run", 10, final=2.0)
    command = [sys.executable, ROOT / "tools/plot.py", "run", "--out", "out", "--format", "svg"]
    done = run_command(command, tmp_path, MPLBACKEND="module://no_such.package")
    assert done.returncode == 0 and (tmp_path / "out/loss_steps.svg").exists(), done.stderr


def test_names_of_any_length_are_cut(tmp_path):
    split = "x" * 100_000
    run = synthetic_run(tmp_path / "run", 10, eval_data_split="test")
    write_lines(run, [train(10, 3.0), evaluation(10, 3.0, split=split)])
    output = Output(tmp_path, ["svg"], title="y" * 100_000)
    (path,) = figures.curves(group_by_seed(read_runs([run])), "steps", "loss", output)
    figure = path.read_text()
    assert 18 * "x" + "…" + 17 * "x" in figure and 40 * "x" not in figure
    assert 500 * "y" in figure and 501 * "y" not in figure


def test_too_many_lines_have_a_law_and_no_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot, "MOST_LINES", 2)
    for steps in (10, 20, 40):
        synthetic_run(tmp_path / f"runs/{steps}", steps, final=2 / steps)
    options = ("--out", "out", "--scaling", "flops", "--format", "svg")
    in_process(monkeypatch, tmp_path, "runs", *options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scaling.svg"]
    told = capsys.readouterr().out
    assert "notice: no curves: 3 lines cannot be told apart in a figure" in told

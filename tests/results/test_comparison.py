"""Runs side by side: seeds as one group, and final losses by method."""

import numpy as np
import pytest
from synthetic_runs import evaluation, synthetic_run, train, write_lines

from gpt.metrics.runs import read_runs
from gpt.results.comparison import final_losses, group_by_seed


def test_seeds_become_one_group_with_mean_and_spread(tmp_path):
    curves = {seed: lambda step, seed=seed: 8 - 0.1 * step + 0.01 * seed**2 for seed in range(3)}
    for seed, curve in curves.items():
        synthetic_run(tmp_path / f"a-seed{seed}", 30, curve, seed=seed)
    # the same seed once more is no other seed
    synthetic_run(tmp_path / "a-again", 30, curves[0], seed=0)
    synthetic_run(tmp_path / "other", 20, curves[0], seed=7)
    groups = group_by_seed(read_runs([tmp_path]))  # a folder of runs stands for all in it
    assert [(group.title, group.seeds) for group in groups] == [
        ("a (3 seeds)", [0, 1, 2]),
        ("a-seed0", [0]),
        ("other", [7]),
    ]
    groups = group_by_seed(read_runs([tmp_path / f"a-seed{seed}" for seed in range(3)]))
    assert [group.title for group in groups] == ["a (3 seeds)"]
    x, mean, spread = groups[0].mean("steps", "train", "loss")
    table = np.array([[curve(step) for step in range(1, 31)] for curve in curves.values()])
    assert x.tolist() == list(range(1, 31))
    assert mean == pytest.approx(table.mean(axis=0), rel=1e-14)
    assert spread == pytest.approx(
        np.sqrt(((table - table.mean(axis=0)) ** 2).sum(axis=0) / 2), rel=1e-9
    )


def test_no_two_groups_have_one_name(tmp_path):
    for seed in range(4):
        variant = "rope" if seed > 1 else None
        synthetic_run(tmp_path / f"a-seed{seed}", 10, seed=seed, variant=variant)
    groups = group_by_seed(read_runs([tmp_path]))
    assert [group.title for group in groups] == ["a-seed0 … (2 seeds)", "rope: a-seed2 … (2 seeds)"]


def test_a_mean_is_over_the_steps_that_all_have(tmp_path):
    for seed, steps in enumerate((30, 30)):
        synthetic_run(tmp_path / f"seed{seed}", steps, seed=seed)
    write_lines(tmp_path / "seed1", [train(step, 5.0) for step in range(1, 13)])
    (group,) = group_by_seed(read_runs([tmp_path]))
    assert group.mean("steps", "train", "loss")[0].tolist() == list(range(1, 13))
    assert not group.runs[1].finished and group.runs[1].state == "at step 12 of 30"


def test_final_losses_by_family_and_scale(tmp_path):
    finals = {("a", 20): [1.5, 1.3], ("a", 40): [1.2, 1.0], ("b", 20): [1.4, 1.4]}
    for (name, steps), losses in finals.items():
        for seed, final in enumerate(losses):
            synthetic_run(
                tmp_path / f"{name}{steps}-seed{seed}",
                steps,
                final=final,
                tokens_per_second=256 / 3600,
                seed=seed,
                n_layers={"a": 2, "b": 3}[name],
            )
    synthetic_run(tmp_path / "unfinished", 60, tokens_per_second=256 / 3600)
    write_lines(tmp_path / "unfinished", [train(59, 3.0), evaluation(50, 3.0)])
    synthetic_run(
        tmp_path / "diverged", 60, final=float("nan"), tokens_per_second=256 / 3600, n_layers=4
    )
    synthetic_run(tmp_path / "given", 0, tokens_per_second=256 / 3600, n_layers=5)
    notices = []
    losses_of = final_losses(group_by_seed(read_runs([tmp_path])), "reference_hours", notices)
    assert notices == [
        "unfinished is left out: at step 59 of 60",
        "diverged is left out: its final normalised loss is not finite",
        "given is left out: it took no step of training",
    ]
    flat = [(name, *point) for name, points in losses_of.items() for point in points]
    expected = [
        (name, steps, np.mean(losses), np.std(losses, ddof=1))
        for (name, steps), losses in finals.items()
    ]
    shapes = {"a": "2x32-mlp64-attn16", "b": "3x32-mlp64-attn16"}
    for (name, *point), (expected_name, *numbers) in zip(flat, expected, strict=True):
        assert name == shapes[expected_name] and point == pytest.approx(numbers, rel=1e-12)

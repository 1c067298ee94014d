"""What makes runs seeds of each other, what makes methods, and what tells them apart."""

import pytest
from synthetic_runs import CODE, amend, give_own_code, identified_run

from gpt.errors import UserError
from gpt.metrics.runs import read_runs
from gpt.results.comparison import final_losses, group_by_seed
from gpt.results.methods import (
    arguments_in_words,
    labels,
    method_names,
    same_code,
    table_settings,
    telling,
)

HOUR = 256 / 3600  # tokens per second of a reference that takes an hour for a step
ROPE = {"hash": "bbbbbbbbbbbb", "parts": {**CODE["parts"], "model": "222222222222"}}
ADAMW = {"type": "AdamW", "params": {"betas": [0.9, 0.95], "weight_decay": 3}}


def groups_of(folder, *beginnings):
    runs = read_runs([folder])
    return group_by_seed(runs, same_code(runs, beginnings, []))


def test_changed_code_is_no_seed_of_the_baseline(tmp_path):
    for seed in range(2):
        identified_run(tmp_path / f"base-seed{seed}", seed=seed)
    amend(identified_run(tmp_path / "rope-seed2", seed=2), {"code": ROPE})
    groups = groups_of(tmp_path)
    assert [(group.seeds, group.method) for group in groups] == [
        ([0, 1], "2x32-mlp64-attn16, code aaaaaaa"),
        ([2], "2x32-mlp64-attn16, code bbbbbbb"),
    ]
    (group,) = groups_of(tmp_path, "aaaa", "bbbb")  # on purpose
    assert group.seeds == [0, 1, 2] and group.method == "2x32-mlp64-attn16"


@pytest.mark.parametrize(
    "beginnings, sentence",
    [
        (
            ["aaaa", "cc"],
            "--same_code cc names no version of the code of these runs: give some of aaaaaaaaaaaa,"
            " bbbbbbbbbbbb",
        ),
        (["aaaa"], "--same_code names one version: give two at least"),
        (
            ["", "aa"],
            "--same_code  names 2 versions of the code of these runs: give some of aaaaaaaaaaaa,"
            " bbbbbbbbbbbb",
        ),
    ],
)
def test_mistakes_about_the_same_code(beginnings, sentence, tmp_path):
    identified_run(tmp_path / "base")
    amend(identified_run(tmp_path / "rope"), {"code": ROPE})
    with pytest.raises(UserError) as error:
        groups_of(tmp_path, *beginnings)
    assert str(error.value) == sentence


def test_a_name_that_was_given_is_the_methods_name(tmp_path):
    identified_run(tmp_path / "base")
    amend(identified_run(tmp_path / "rope"), {"code": ROPE, "run/gpt/variant": "rope"})
    assert [group.method for group in groups_of(tmp_path)] == ["2x32-mlp64-attn16", "rope"]


CHANGES = {
    "batch": {"step": 5, "setting": "train_batch_size", "was": 4, "is": 8},
    "schedule": {"step": 5, "setting": "scheduler.params.decay_steps", "was": 10, "is": 12},
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_was_changed_on_resuming_is_no_seed_of_an_undisturbed_run(case, tmp_path):
    identified_run(tmp_path / "a-seed0")
    amend(identified_run(tmp_path / "a-seed1", seed=1), {"changes": [CHANGES[case]]})
    undisturbed, changed = groups_of(tmp_path)
    assert (undisturbed.seeds, changed.seeds) == ([0], [1])
    assert changed.method.startswith("2x32-mlp64-attn16, changed ")
    assert changed.method.endswith(" at step 5")


DIFFERENT = {
    "other kernels": {"kernels": "triton"},
    "other precision": {"precision": "bf16"},
    "other text": {"dataset/train/documents": "3" * 64},
    "other weight decay": {"run/optimizer/params/weight_decay": 0.1},
    "other rate": {"run/scheduler/params/max_lr": 0.5},
    "compiled": {"run/gpt/compile": "default"},
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_whatever_makes_another_curve_makes_another_method(case, tmp_path):
    identified_run(tmp_path / "a-seed0")
    amend(identified_run(tmp_path / "a-seed1", seed=1), DIFFERENT[case])
    first, second = groups_of(tmp_path)
    assert first.method != second.method


def ladder(folder, name, changes):
    for steps in (10, 20, 40):
        run = identified_run(
            folder / f"{name}{steps}", steps, final=1.4 - steps / 100, tokens_per_second=HOUR
        )
        amend(run, changes)


def test_three_methods_have_three_laws(tmp_path):
    ladder(tmp_path, "adam", {})
    ladder(tmp_path, "adamw", {"run/optimizer": ADAMW})
    ladder(tmp_path, "rope", {"code": ROPE, "run/gpt/variant": "rope"})
    notices = []
    points = final_losses(groups_of(tmp_path), "reference_hours", notices)
    assert {method: len(of_it) for method, of_it in points.items()} == {
        "2x32-mlp64-attn16, optimizer Adam": 3,
        "2x32-mlp64-attn16, optimizer AdamW": 3,
        "rope": 3,
    }
    assert [point[0] for point in points["rope"]] == pytest.approx([10, 20, 40])
    assert notices == []


def test_a_batch_that_grows_along_a_ladder_makes_no_other_method(tmp_path):
    for steps, batch in ((10, 8), (20, 8), (20, 16)):
        run = identified_run(tmp_path / f"{steps}x{batch}", steps)
        amend(run, {"run/train_batch_size": batch, "batch/global_size": batch})
    groups = groups_of(tmp_path)
    assert {group.method for group in groups} == {"2x32-mlp64-attn16"}
    notices = []
    final_losses(groups, "flops", notices)
    assert notices == ["along the law of 2x32-mlp64-attn16, train_batch_size is 8, 16"]
    # twice 2,560 tokens, in two batches
    amend(identified_run(tmp_path / "5x16", 5), {"run/train_batch_size": 16})
    amend(tmp_path / "5x16", {"batch/global_size": 16})
    assert {group.name: group.method for group in groups_of(tmp_path)} == {
        "5x16": "2x32-mlp64-attn16, train_batch_size 16",
        "10x8": "2x32-mlp64-attn16, train_batch_size 8",
        "20x8": "2x32-mlp64-attn16, train_batch_size 8",
        "20x16": "2x32-mlp64-attn16, train_batch_size 16",
    }


def test_a_rung_whose_schedule_does_not_end_with_it_is_on_no_ladder(tmp_path):
    ladder(tmp_path, "adam", {})
    run = identified_run(tmp_path / "long", 80, tokens_per_second=HOUR)
    amend(run, {"run/scheduler/params/decay_steps": 1000})
    methods = {group.name: group.method for group in groups_of(tmp_path)}
    assert "decay_steps 1000" in methods.pop("long")
    assert len(set(methods.values())) == 1


def test_a_schedule_that_ends_elsewhere_is_another_method(tmp_path):
    for name, decay_steps in (("to-the-end", 10), ("further", 50)):
        run = identified_run(tmp_path / name, 10)
        amend(run, {"run/scheduler/params/decay_steps": decay_steps})
    assert len({group.method for group in groups_of(tmp_path)}) == 2


def test_names_of_methods_are_short_and_no_two_alike():
    words = [
        {"model": "nano", "compile": compiled, "precision": precision, "a": number, "b": number}
        for compiled in (True, False)
        for precision in ("fp32", "bf16")
        for number in (1, 2)
    ]
    paths = telling(words)
    assert len(paths) == 3 and {"compile", "precision"} < set(paths)
    names = method_names(["nano"] * 8, words)
    assert len(set(names)) == 8 and names[0] == "nano, compile True, precision fp32, a 1"
    assert method_names(["a", "a"], [{}, {}]) == ["a", "a (2)"]
    assert labels(["optimizer.params.lr", "scheduler.params.lr", "optimizer.type"]) == {
        "optimizer.params.lr": "optimizer.params.lr",
        "scheduler.params.lr": "scheduler.params.lr",
        "optimizer.type": "optimizer",
    }


def methods_of(folder):
    """{run's name: its method}"""
    return {run.name: group.method for group in groups_of(folder) for run in group.runs}


def test_a_model_file_is_told_from_the_gpt_and_from_itself_with_other_arguments(tmp_path):
    identified_run(tmp_path / "gpt")
    give_own_code(identified_run(tmp_path / "plain"), "a")
    give_own_code(identified_run(tmp_path / "short"), "a", base=500, qk_norm=True)
    give_own_code(identified_run(tmp_path / "long"), "a", base=1e6, activation="relu2")
    give_own_code(identified_run(tmp_path / "tied"), "b", name="tied.py")
    shape = "2x32-mlp64-attn16"
    assert methods_of(tmp_path) == {
        "gpt": shape,
        "plain": f"rope {shape}",
        "short": f"rope {shape}, base=500 qk_norm",
        "long": f"rope {shape}, activation=relu2 base=1000000",
        "tied": f"tied {shape}",
    }


def test_two_files_of_one_name_are_told_apart_by_their_hashes(tmp_path):
    for text in ("a", "b"):
        give_own_code(identified_run(tmp_path / text), text)
    first, second = methods_of(tmp_path).values()
    assert first != second and first.startswith("rope 2x32-mlp64-attn16, model_file ")


def test_a_file_that_was_renamed_makes_seeds_of_one_group(tmp_path):
    give_own_code(identified_run(tmp_path / "a", seed=0), "a", base=500)
    give_own_code(identified_run(tmp_path / "b", seed=1), "a", name="rotary.py", base=500.0)
    (group,) = groups_of(tmp_path)
    assert group.seeds == [0, 1]


def test_optimizers_of_a_file_are_told_by_its_name(tmp_path):
    identified_run(tmp_path / "adam")
    for name, arguments in (("sign", {}), ("slow", {"beta": 0.99})):
        run = give_own_code(
            identified_run(tmp_path / name), "a", "optimizer_file", "sign.py", **arguments
        )
        amend(run, {"run/optimizer": None})
    assert methods_of(tmp_path) == {
        "adam": "2x32-mlp64-attn16, optimizer Adam",
        "sign": "2x32-mlp64-attn16, optimizer sign.py",
        "slow": "2x32-mlp64-attn16, optimizer sign.py, optimizer_options beta=0.99",
    }


def test_arguments_that_read_alike_are_told_apart():
    values = {"o.a": "1", "o.b": 1, "o.c": "true", "o.d": True, "o.e": "x y", "o.f": [1, 2]}
    assert arguments_in_words(values) == 'a="1" b=1 c="true" d e="x y" f=[1, 2]'


def test_every_method_of_ones_own_has_a_law(tmp_path):
    ladder(tmp_path, "gpt", {})
    ladder(tmp_path, "rope", {})
    for steps in (10, 20, 40):
        give_own_code(tmp_path / f"rope{steps}", "a")
    points = final_losses(groups_of(tmp_path), "reference_hours", [])
    assert {method: len(of_it) for method, of_it in points.items()} == {
        "2x32-mlp64-attn16": 3,
        "rope 2x32-mlp64-attn16": 3,
    }


def test_a_table_leaves_out_the_parameters_that_go_with_an_optimizers_type():
    adam = {"optimizer.type": "Adam", "optimizer.params.eps": 1e-8, "optimizer.params.decay": 0.0}
    muon = {"optimizer.type": "Muon", "optimizer.params.momentum": 0.95}
    own = {"optimizer.type": "sign.py", "optimizer_options": "beta=0.9", "optimizer_file": "ab"}
    assert table_settings([adam, muon, own]) == ["optimizer.type", "optimizer_options"]
    # but not those in which rows of one type differ, or types that both have them
    slow = {**muon, "optimizer.params.momentum": 0.5}
    assert "optimizer.params.momentum" in table_settings([adam, muon, slow])
    decayed = {**muon, "optimizer.params.decay": 0.1}
    assert "optimizer.params.decay" in table_settings([adam, decayed, own])

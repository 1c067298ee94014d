"""What a reader of the board sees: who is ranked where, and why."""

import pytest
from submissions import submission

from gpt.errors import UserError
from gpt.packs import board
from gpt.packs.board import of_packs, of_submissions

BASE = {0: 1.2800, 1: 1.2810, 2: 1.2790}


def shifted(losses, by):
    return {seed: loss + by for seed, loss in losses.items()}


def ranks(table):
    return [(row.name, row.rank) for row in table.rows]


def only_table(*submissions):
    (table,) = of_submissions(submissions).tables
    return table


def test_best_first_and_what_is_not_told_apart_shares_a_rank():
    noise = {0: 1.2803, 1: 1.2791, 2: 1.2809}
    table = only_table(
        submission("worse", shifted(BASE, 0.05), BASE),
        submission("same", noise, BASE),
        submission("better", shifted(BASE, -0.03), BASE),
    )
    assert [name for name, _ in ranks(table)][0] == "better"
    assert dict(ranks(table)) == {"better": 1, "6h": 2, "same": 2, "worse": 4}


def test_a_baseline_of_several_packs_is_one_row_with_all_its_seeds():
    more = {2: BASE[2], 3: 1.2805, 4: 1.2795}
    table = only_table(
        submission("first", shifted(BASE, -0.03), BASE),
        submission("second", shifted(more, -0.02), more),
    )
    (baseline,) = [row for row in table.rows if row.is_baseline]
    assert sorted(baseline.scores) == [0, 1, 2, 3, 4]
    assert [pack.entry.name for pack in baseline.submissions] == ["first", "second"]


def test_another_baseline_of_the_class_is_a_row_of_its_own():
    table = only_table(
        submission("first", shifted(BASE, -0.03), BASE),
        submission("second", shifted(BASE, -0.02), BASE, identities=("other", None)),
    )
    assert [row.is_baseline for row in table.rows].count(True) == 2


def test_a_seed_that_scores_otherwise_in_another_pack_is_told_and_the_better_counts():
    result = of_submissions(
        [
            submission("first", shifted(BASE, -0.03), BASE),
            submission("second", shifted(BASE, -0.02), {**BASE, 1: 1.2700}),
        ]
    )
    (baseline,) = [row for row in result.tables[0].rows if row.is_baseline]
    assert baseline.scores[1].normalised_loss == 1.27
    (notice,) = result.notices
    assert notice == (
        "the baseline 6h with seed 1 scores 50800 nats in second and 51240 in first: another"
        " device, or one of them is not what it says"
    )


def test_packs_without_weights_have_no_rank_and_no_say_on_a_baseline_that_others_have():
    worse = {seed: loss + 0.1 for seed, loss in BASE.items()}
    result = of_submissions(
        [
            submission("aaa", shifted(BASE, -0.5), worse, has_weights=False),
            submission("whole", shifted(BASE, -0.03), BASE),
        ]
    )
    ranks = {row.name: row.rank for row in result.tables[0].rows}
    assert ranks == {"whole": 1, "6h": 2, "aaa": None}
    (baseline,) = [row for row in result.tables[0].rows if row.is_baseline]
    assert {seed: score.normalised_loss for seed, score in baseline.scores.items()} == BASE
    assert len(baseline.submissions) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"documents": "e" * 64},
        {"last_n": 128},
        {"compute": 409_600 * 1.03},
        {"class_name": "12h"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_only_what_was_scored_alike_at_equal_compute_stands_in_one_table(other):
    first = submission("first", shifted(BASE, -0.03), BASE)
    second = submission("second", shifted(BASE, -0.02), BASE, **other)
    tables = of_submissions([first, second]).tables
    assert sorted(len(table.rows) for table in tables) == [2, 2]


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_a_row_and_no_rank(seeds):
    few = {seed: 1.2 + seed / 1000 for seed in range(seeds)}
    table = only_table(
        submission("few", few, shifted(few, 0.08)),
        submission("many", shifted(BASE, -0.01), BASE),
    )
    assert ranks(table)[-1] == ("few", None)


def test_a_seed_that_was_declared_and_has_no_score_takes_the_rank():
    table = only_table(
        submission("picked", {0: 1.1, 1: 1.11, 2: 1.12}, BASE, missing=[3]),
        submission("whole", shifted(BASE, -0.01), BASE),
    )
    assert dict(ranks(table))["picked"] is None
    assert dict(ranks(table))["whole"] == 1


def test_pairs_are_corrected_for_their_number():
    """One pair at p 0.03 is told apart alone, and is not among ten."""
    first = submission("first", {0: 1.2760, 1: 1.2781, 2: 1.2772}, BASE)
    alone = only_table(first)
    assert dict(ranks(alone)) == {"first": 1, "6h": 2}
    (p,) = alone.p_values.values()
    assert 0.01 < p < 0.05
    many = only_table(first, *(submission(f"same{count}", {**BASE}, BASE) for count in range(8)))
    assert dict(ranks(many))["6h"] == 1
    pair = next(
        p
        for pair, p in many.p_values.items()
        if {many.rows[place].name for place in pair} == {"first", "6h"}
    )
    assert pair > p


def test_published_baselines_stand_in_the_table_of_their_class_alone():
    table = only_table(submission("first", shifted(BASE, -0.03), BASE))
    assert [baseline.class_name for baseline in table.published] == ["6h"]
    others = {"of no class": None, "off its class": ("scheduler.params.max_lr",)}
    for off_class in others.values():
        table = only_table(submission("first", shifted(BASE, -0.03), BASE, off_class=off_class))
        assert not table.published


def test_packs_that_cannot_be_used_are_named_and_left_out(monkeypatch, tmp_path):
    def read(path):
        if path.name == "forged":
            raise UserError(f"{path} contradicts itself")
        return submission(path.name, shifted(BASE, -0.03), BASE, path=path, weights={"r": "w"})

    def read_off_class(path):
        return submission("weak", BASE, BASE, path=path, off_class=("scheduler.params.max_lr",))

    monkeypatch.setattr(board, "read", read)
    result = of_packs([tmp_path / "good", tmp_path / "forged", tmp_path / "x" / ".." / "good"])
    assert len(result.tables[0].rows) == 2
    assert result.notices == (f"left out: {tmp_path / 'forged'} contradicts itself",)
    with pytest.raises(UserError, match="no pack can be used; left out: .* contradicts itself"):
        of_packs([tmp_path / "forged"])
    result = of_packs([tmp_path / "good", tmp_path / "again"])
    assert result.notices == (
        f"{tmp_path / 'again'}: r has the very weights of {tmp_path / 'good'}",
    )
    monkeypatch.setattr(board, "read", read_off_class)
    assert of_packs([tmp_path / "weak"]).notices == (
        f"{tmp_path / 'weak'}: its baseline is not ds_configs/6h.json, but another run in"
        " scheduler.params.max_lr",
    )

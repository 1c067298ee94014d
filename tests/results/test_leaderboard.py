"""The leaderboard."""

import json
import sys

import numpy as np
import pytest
from conftest import load_command
from synthetic_runs import evaluation, identified_run, synthetic_run, train, write_lines

from gpt.errors import UserError
from gpt.results.comparison import Group
from gpt.results.leaderboard import Place, by_class

compare = load_command("compare")
HOUR = 256 / 3600  # tokens per second of a reference that takes an hour for a step


def table(monkeypatch, capsys, folder, *options):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare.py", *options])
    compare.main()
    return capsys.readouterr().out.splitlines()


def test_tables_by_class_best_first_with_seeds_merged(tmp_path, monkeypatch, capsys):
    finals = {"wide": (3, [1.30, 1.34, 1.28]), "deep": (4, [1.25, 1.26, 1.27]), "one": (5, [1.27])}
    for name, (layers, losses) in finals.items():
        for seed, final in enumerate(losses):
            synthetic_run(
                tmp_path / f"{name}-seed{seed}",
                12,
                final=final,
                n_layers=layers,
                seed=seed,
                tokens_per_second=HOUR,
            )
    synthetic_run(tmp_path / "longer", 24, final=1.1, tokens_per_second=HOUR)
    synthetic_run(tmp_path / "half|done", 24, n_layers=3, tokens_per_second=HOUR)
    write_lines(tmp_path / "half|done", [train(9, 3.0), evaluation(9, 3.0)])
    lines = table(monkeypatch, capsys, tmp_path, ".", "--json", "out.json")
    assert lines[0] == "Final evaluation on 'test': 1,000 bytes; dataset ffffffffffff."
    assert [line for line in lines if line.startswith("###")] == [
        "### Class 12 h of the reference accelerator",
        "### Class 24 h of the reference accelerator",
    ]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")
    ]
    ppl = {name: np.exp(losses) for name, (_, losses) in finals.items()}
    bits = {name: np.array(losses) / np.log(2) for name, (_, losses) in finals.items()}
    told = {row[1]: row for row in rows[1:4]}
    assert [row[:2] for row in rows[1:4]] == [["1", "deep"], ["2", "one-seed0"], ["3", "wide"]]
    for name in ("deep", "wide"):
        assert told[name][5] == "3"
        assert told[name][6] == f"{ppl[name].mean():.4f} ± {ppl[name].std(ddof=1):.4f}"
        assert told[name][7] == f"{bits[name].mean():.4f} ± {bits[name].std(ddof=1):.4f}"
        assert told[name][9] == "43.2"
    assert told["one-seed0"][4:7] == ["12 x 256", "1", f"{np.exp(1.27):.4f}"]
    assert rows[5][1:3] == ["longer", "2x32-mlp64-attn16"]
    assert (
        "measured seconds" in lines[4] and "notice: half|done is left out: at step 9 of 24" in lines
    )
    assert lines[-1] == (
        "notice: deep-seed0, deep-seed1, deep-seed2 and 3 more do not tell their code (an earlier"
        " version trained them): they are taken for seeds of each other by their settings alone"
    )
    written = json.loads((tmp_path / "out.json").read_text())
    deep = written["classes"][0]["rows"][0]
    assert deep["seeds"] == [0, 1, 2] and deep["normalised_ppl"]["values"] == pytest.approx(
        ppl["deep"], rel=1e-12
    )
    assert deep["normalised_ppl"]["std"] == pytest.approx(ppl["deep"].std(ddof=1), rel=1e-9)
    assert deep["run_dirs"] == ["deep-seed0", "deep-seed1", "deep-seed2"] and deep[
        "reference_hours"
    ] == pytest.approx(12)
    assert (written["dataset"], written["split"], written["bytes"]) == ("f" * 64, "test", 1000)


@pytest.mark.parametrize(
    "hours, classes",
    [
        (
            {"a": (18265, 65536, 55416), "b": (18266, 65536, 55416), "c": (36529, 65536, 55416)},
            [["a", "b"], ["c"]],
        ),
        # half a step is 2.8%
        (
            {"a": (18, 1024, 10000), "b": (70, 1024, 40000), "c": (141, 1024, 40000)},
            [["b", "a"], ["c"]],
        ),
        ({"a": (1800, 1024, 10000), "b": (7000, 1024, 40000)}, [["b"], ["a"]]),
    ],
)
def test_classes_allow_for_steps_being_whole(hours, classes):
    places = [
        Place(Group(name, []), steps * tokens / speed / 3600, tokens / speed / 3600 / 2)
        for name, (steps, tokens, speed) in hours.items()
    ]
    names = [[place.group.name for place in of_class] for of_class in by_class(places)]
    assert names == classes


def test_a_loss_that_is_not_finite_comes_last(tmp_path, monkeypatch, capsys):
    for name, layers, final in (("good", 2, 1.3), ("diverged", 3, 1.2)):
        synthetic_run(tmp_path / name, 12, final=final, n_layers=layers, tokens_per_second=HOUR)
    diverged = dict.fromkeys(
        ("text_nats", "total_loss", "loss", "ppl")
        + ("normalised_loss", "normalised_ppl", "bits_per_byte")
    )
    write_lines(tmp_path / "diverged", [train(12, None), {**evaluation(12, 1.0), **diverged}])
    lines = table(monkeypatch, capsys, tmp_path, "diverged", "good", "--json", "out.json")
    assert [line.split(" | ")[1] for line in lines[-2:]] == [
        "good",
        "diverged",
    ] and " | - | " in lines[-1]
    assert (
        json.loads((tmp_path / "out.json").read_text())["classes"][0]["rows"][1]["normalised_ppl"]
        is None
    )


def test_hours_of_what_may_be_two_accelerators_are_pointed_out(tmp_path, monkeypatch, capsys):
    for name, steps, speed, layers in (
        ("a", 12, HOUR, 2),
        ("b", 24, 2 * HOUR, 2),
        ("c", 24, 2 * HOUR, 3),
    ):
        synthetic_run(tmp_path / name, steps, tokens_per_second=speed, n_layers=layers)
    lines = table(monkeypatch, capsys, tmp_path, "a", "b", "c")
    assert [line for line in lines if line.startswith("notice")] == [
        f"notice: 2x32-mlp64-attn16 is said to train at {HOUR:,} (2x32-mlp64-attn16) and at"
        f" {2 * HOUR:,} (2x32-mlp64-attn16) reference tokens/s: that is equal compute only if one"
        " accelerator does both, and nothing else ran on it"
    ]
    assert not any(
        line.startswith("notice") for line in table(monkeypatch, capsys, tmp_path, "b", "c")
    )


def test_a_run_that_scored_a_part_alone_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    for name, layers in (("a", 2), ("b", 3), ("part", 4)):
        identified_run(tmp_path / name, n_layers=layers)
        if name != "part":
            whole = evaluation(12, 3.0, scored=20000, of_tokens=5000)
            write_lines(tmp_path / name, [train(12, 3.0), whole])
    lines = table(monkeypatch, capsys, tmp_path, ".", "--over", "tokens")
    rows = [line.split("|")[2].strip() for line in lines if line.startswith("| ")]
    assert sorted(rows[1:]) == ["a", "b"]
    assert (
        "notice: part left out: scored on a part of the split alone; `python gpt/eval.py --join"
        " RUN` scores all of it"
    ) in lines


REFUSED = {
    "other data": (
        ["a", "data"],
        "these runs cannot be compared: a and data were trained on different datasets",
    ),
    "other bytes": (
        ["a", "bytes"],
        (
            "these runs cannot be compared: a and bytes scored different parts of the split 'test'"
            " (1,000 and 900 bytes)"
        ),
    ),
    "unfinished": (
        ["begun"],
        "none of the runs is finished and evaluated; begun is left out: at step 3 of 12",
    ),
    "never evaluated": (
        ["blind"],
        (
            "none of the runs is finished and evaluated; blind is left out: finished, and never"
            " evaluated"
        ),
    ),
    "nowhere": (
        ["a", "--json", "none/out.json"],
        "--json none/out.json: give the name of a file in a folder that exists",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes(case, tmp_path, monkeypatch, capsys):
    for name, options in {
        "a": {},
        "data": {"fingerprint": "e" * 64},
        "bytes": {},
        "begun": {},
    }.items():
        synthetic_run(tmp_path / name, 12, tokens_per_second=HOUR, **options)
    synthetic_run(tmp_path / "blind", 12, eval_every=0, tokens_per_second=HOUR)
    write_lines(tmp_path / "bytes", [train(12, 3.0), evaluation(12, 3.0, scored=900)])
    write_lines(tmp_path / "begun", [train(3, 3.0), evaluation(3, 3.0)])
    write_lines(tmp_path / "blind", [train(12, 3.0)])
    options, sentence = REFUSED[case]
    with pytest.raises(UserError) as error:
        table(monkeypatch, capsys, tmp_path, *options)
    assert str(error.value).startswith(sentence)

"""What a reader of the leaderboard sees."""

import json
import sys

import numpy as np
import pytest
from conftest import load_command
from synthetic_runs import (
    CODE,
    amend,
    chain_anew,
    evaluation,
    identified_run,
    synthetic_run,
    train,
    write_lines,
)

from gpt.errors import UserError
from gpt.metrics.runs import read_runs
from gpt.results.comparison import final_losses, group_by_seed
from gpt.results.leaderboard_text import heading

compare = load_command("compare")
HOUR = 256 / 3600  # tokens per second of a reference that takes an hour for a step
ROPE = {"hash": "bbbbbbbbbbbb", "parts": {**CODE["parts"], "model": "222222222222"}}
UNTOLD = {"run/gpt/reference_flops_per_token": None}


def tables(monkeypatch, capsys, folder, *options):
    """([{column: cell} of every row], headings, notices, first line)."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare.py", *(options or ["."])])
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    rows = []
    columns = []
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("|  |"):
            columns = cells
        elif line.startswith("| "):
            rows.append(dict(zip(columns, cells, strict=True)))
    headings = [line.removeprefix("### ") for line in lines if line.startswith("###")]
    notices = [line.removeprefix("notice: ") for line in lines if line.startswith("notice")]
    return rows, headings, notices, lines[0]


@pytest.mark.parametrize(
    "over, compute, text",
    [
        ("reference_hours", 24.0004, "Class 24 h of the reference accelerator"),
        (
            "reference_hours",
            0.00394,
            "Class 0.004 h of the reference accelerator (0.00394 h, 14.2 s)",
        ),
        ("reference_hours", 0.25, "Class 0.25 h of the reference accelerator (15 min)"),
        ("reference_hours", 10.0, "Class 10 h of the reference accelerator"),
        ("reference_hours", 11.47, "Class 11.5 h of the reference accelerator"),
        ("tokens", 1_234_567, "1,234,567 training tokens"),
        ("flops", 1.23456e18, "1.235e+18 training FLOPs"),
    ],
)
def test_classes_are_called_by_what_a_reader_knows(over, compute, text):
    assert heading(over, compute) == text


def test_of_two_seeds_both_values_and_of_three_mean_and_deviation(tmp_path, monkeypatch, capsys):
    finals = {"two": [1.30, 1.31], "three": [1.20, 1.22, 1.24]}
    for name, losses in finals.items():
        for seed, final in enumerate(losses):
            run = identified_run(
                tmp_path / f"{name}-seed{seed}", final=final, seed=seed, tokens_per_second=HOUR
            )
            amend(run, {"run/gpt/variant": name})
    rows, headings, notices, first_line = tables(monkeypatch, capsys, tmp_path)
    assert [row["run"] for row in rows] == ["three", "two"]
    assert rows[1]["normalised perplexity"] == f"{np.exp(1.30):.4f}, {np.exp(1.31):.4f}"
    three = np.exp(finals["three"])
    expected = f"{three.mean():.4f} ± {three.std(ddof=1):.4f}"
    assert rows[0]["normalised perplexity"] == expected
    assert rows[0]["model"] == "three (2x32-mlp64-attn16)"
    assert headings == ["Class 12 h of the reference accelerator"] and notices == []
    assert first_line == (
        "Final evaluation on 'test': the first 251 of 5,000 tokens (5.0%), 1,000 bytes; dataset"
        " ffffffffffff."
    )


def test_what_differs_is_a_column(tmp_path, monkeypatch, capsys):
    changes = {
        "base": {},
        "rope": {"code": ROPE, "parameters": 144_000},
        "decay": {"run/optimizer/params/weight_decay": 0.1},
    }
    for name, values in changes.items():
        amend(identified_run(tmp_path / name, tokens_per_second=HOUR), values)
    rows = {row["run"]: row for row in tables(monkeypatch, capsys, tmp_path)[0]}
    assert [rows[name]["code: model.py"] for name in changes] == ["aaaaaaa", "bbbbbbb", "aaaaaaa"]
    assert [rows[name]["weight_decay"] for name in changes] == ["0", "0", "0.1"]
    assert rows["rope"]["parameters"] == "0.144 M"
    assert "kernels" not in rows["base"]


def test_a_run_that_was_changed_says_so_even_alone(tmp_path, monkeypatch, capsys):
    change = {"step": 6, "setting": "train_batch_size", "was": 4, "is": 8}
    amend(identified_run(tmp_path / "a", tokens_per_second=HOUR), {"changes": [change]})
    rows, headings, _, _ = tables(monkeypatch, capsys, tmp_path)
    assert rows[0]["changed"] == "train_batch_size 4 -> 8 at step 6"
    assert headings == ["Class 9 h of the reference accelerator"]  # half of it at half the batch


def test_beyond_a_few_columns_differences_are_named(tmp_path, monkeypatch, capsys):
    other = {
        "run/scheduler/params/max_lr": 0.5,
        "run/scheduler/params/min_lr": 0.1,
        "run/scheduler/params/warmup_steps": 1,
        "run/optimizer/params/eps": 0.1,
        "run/gpt/compile": "default",
    }
    identified_run(tmp_path / "a", tokens_per_second=HOUR)
    amend(identified_run(tmp_path / "b", tokens_per_second=HOUR), other)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare.py", "."])
    compare.main()
    assert "They differ in compile, too (--json)." in capsys.readouterr().out


def test_repeated_passes_over_the_text_are_told(tmp_path, monkeypatch, capsys):
    for name, tokens in (("once", 4000), ("often", 1000)):
        run = identified_run(tmp_path / name, tokens_per_second=HOUR)
        amend(run, {"dataset/train/tokens": tokens, "run/gpt/variant": name})
    rows, *_ = tables(monkeypatch, capsys, tmp_path)
    passes = {row["run"]: row["passes over the text"] for row in rows}
    assert passes == {"once": "0.77", "often": "3.07"}


def test_one_throughput_of_two_models_makes_no_class(tmp_path, monkeypatch, capsys):
    for name, options in {"base": {}, "wide": {"h_dim": 64, "mlp_dim": 128}}.items():
        amend(identified_run(tmp_path / name, tokens_per_second=HOUR, **options), UNTOLD)
    identified_run(tmp_path / "measured", n_layers=3, tokens_per_second=HOUR / 2)
    rows, headings, notices, _ = tables(monkeypatch, capsys, tmp_path)
    assert [row["run"] for row in rows] == ["measured"]
    assert notices[0] == (
        "base has no reference hours: its 0.0711111 tokens/s are also those of wide, whose model"
        " takes 1,038,336 FLOPs per token and not 473,088; measure each with tools/throughput.py"
    )
    assert notices[2] == "runs without a class are shown by --over tokens, or --over flops"
    rows, headings, notices, _ = tables(monkeypatch, capsys, tmp_path, ".", "--over", "flops")
    assert sorted(row["run"] for row in rows) == ["base", "measured", "wide"]
    # of few steps, half of one is much: base and measured are of one class
    assert len(headings) == 2 and notices == []
    rows, headings, _, _ = tables(monkeypatch, capsys, tmp_path, ".", "--over", "tokens")
    assert len(rows) == 3 and headings == ["3,072 training tokens"]


def test_two_throughputs_of_one_method_make_no_class(tmp_path, monkeypatch, capsys):
    for seed, speed in enumerate((HOUR, 2 * HOUR)):
        run = identified_run(tmp_path / f"a-seed{seed}", seed=seed, tokens_per_second=speed)
        amend(run, UNTOLD)
    rows, headings, notices, _ = tables(monkeypatch, capsys, tmp_path)
    assert headings == ["3,072 training tokens"] and len(rows) == 2
    assert notices[0] == (
        "a-seed0 has no reference hours: it is said to train at 0.0711111 reference tokens/s, and"
        " a-seed1 at 0.142222, which is the same model; measure it with tools/throughput.py"
    )


@pytest.mark.parametrize("key", ["flops_per_token", "precision"])
def test_a_throughput_of_another_model_is_no_class(key, tmp_path, monkeypatch, capsys):
    strange = {"flops_per_token": 5, "precision": "bf16"}[key]
    identified_run(tmp_path / "own", tokens_per_second=HOUR)
    run = identified_run(tmp_path / "strange", tokens_per_second=HOUR)
    amend(run, {f"run/gpt/reference_{key}": strange, "run/gpt/variant": "strange"})
    rows, _, notices, _ = tables(monkeypatch, capsys, tmp_path)
    assert [row["run"] for row in rows] == ["own"]
    assert notices[0].startswith("no reference accelerator-hours for strange: ")


def test_one_unusable_folder_costs_a_notice(tmp_path, monkeypatch, capsys):
    identified_run(tmp_path / "good", tokens_per_second=HOUR)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    synthetic_run(tmp_path / "quickstart", 12)
    (identified_run(tmp_path / "broken") / "config.yaml").write_text("a: [1")
    forged = identified_run(tmp_path / "forged", tokens_per_second=HOUR)
    write_lines(forged, [train(12, 3.0), evaluation(12, 3.0, normalised_ppl=1.5)])
    merged = identified_run(tmp_path / "merged", tokens_per_second=HOUR)
    chain_anew(merged / "metrics.jsonl")
    with open(merged / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(evaluation(12, 1.0)) + "\n")
    names = ["good", "empty", "notes.txt", "quickstart", "broken", "forged", "merged"]
    rows, _, notices, _ = tables(monkeypatch, capsys, tmp_path, *names)
    assert [row["run"] for row in rows] == ["good"]
    beginnings = [
        "left out: empty holds no run (no metrics.jsonl)",
        "left out: notes.txt holds no run (no metrics.jsonl)",
        "left out: broken/config.yaml is not YAML",
        "left out: forged/metrics.jsonl:2 contradicts itself: normalised_ppl is 1.5, and its sums",
        "left out: merged/metrics.jsonl:16 does not follow from the line before it: a line was",
        "no reference accelerator-hours for quickstart: ",
        "runs without a class are shown by --over tokens, or --over flops",
    ]
    for notice, beginning in zip(notices, beginnings, strict=True):
        assert notice.startswith(beginning)


def test_without_any_class_tokens_stand_for_compute(tmp_path, monkeypatch, capsys):
    synthetic_run(tmp_path / "quickstart", 12)
    rows, headings, notices, _ = tables(monkeypatch, capsys, tmp_path)
    assert headings == ["3,072 training tokens"] and rows[0]["run"] == "quickstart"
    assert notices[1] == (
        "no run has hours of a reference accelerator, so training tokens stand for compute; a class"
        " is made with `python tools/throughput.py --ds_config FILE --sweep --write_config FOLDER`"
    )


def test_two_tokenizers_are_compared_by_bytes(tmp_path, monkeypatch, capsys):
    identified_run(tmp_path / "a", final=1.3, tokens_per_second=HOUR)
    other = {
        "dataset/tokenizer": "u" * 64,
        "dataset/fingerprint": "e" * 64,
        "run/gpt/last_n": 8,
    }
    amend(identified_run(tmp_path / "b", final=1.2, tokens_per_second=HOUR), other)
    rows, _, notices, first_line = tables(monkeypatch, capsys, tmp_path)
    assert [row["run"] for row in rows] == ["b", "a"]
    assert [row["tokenizer"] for row in rows] == ["uuuuuuu", "ttttttt"]
    assert [row["last_n"] for row in rows] == ["8", "16"]
    assert [row["loss (nats per token)"] for row in rows] == ["-", "-"]
    assert rows[0]["bits per byte"] == f"{1.2 / np.log(2):.4f}"
    assert first_line == (
        "Final evaluation on 'test': 1,000 bytes; several datasets with one held-out text,"
        " 222222222222."
    )
    assert notices == [
        "the runs have different tokenizers: figures per token (the loss) say nothing of which is"
        " better, and a token of context is not as much text for all"
    ]


def diverge(run, step):
    """Have a run's losses be no numbers from a step on, as the trainer writes it."""
    lines = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["step"] >= step:
            names = ("total_loss", "text_nats", "loss", "ppl", "normalised_loss", "normalised_ppl")
            line.update({name: None for name in (*names, "bits_per_byte") if name in line})
        lines.append(line)
    write_lines(run, lines)


def test_a_run_that_diverged_has_a_row_and_no_rank(tmp_path, monkeypatch, capsys):
    for name, final in (("a", 1.4), ("b", 1.2), ("c", 1.3)):
        run = identified_run(tmp_path / name, final=final, tokens_per_second=HOUR)
        amend(run, {"run/gpt/variant": name})
    diverge(tmp_path / "c", 7)
    for seed, final in enumerate((1.5, 1.5, 1.5)):
        identified_run(tmp_path / f"d-{seed}", final=final, seed=seed, tokens_per_second=HOUR)
    diverge(tmp_path / "d-1", 12)
    rows, _, notices, _ = tables(monkeypatch, capsys, tmp_path)
    assert [(row[""], row["run"], row["normalised perplexity"]) for row in rows] == [
        ("1", "b", f"{np.exp(1.2):.4f}"),
        ("2", "a", f"{np.exp(1.4):.4f}"),
        ("3", "d", f"{np.exp(1.5):.4f}, {np.exp(1.5):.4f}"),
        ("-", "c", "diverged at step 7"),
        ("-", "d-1", "diverged at step 12"),
    ]
    assert rows[3]["bits per byte"] == "-" and notices == []
    law_notices = []
    points = final_losses(group_by_seed(read_runs([tmp_path])), "flops", law_notices)
    assert sorted(points) == ["2x32-mlp64-attn16", "a", "b"]
    assert law_notices == [
        "c is left out: diverged at step 7",
        "d-1 is left out: diverged at step 12",
    ]


def test_runs_that_all_diverged_are_told(tmp_path, monkeypatch):
    diverge(identified_run(tmp_path / "a", tokens_per_second=HOUR), 1)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path)])
    with pytest.raises(UserError) as error:
        compare.main()
    assert str(error.value) == ("none of the runs is finished and evaluated; a diverged at step 1")


def test_one_batch_without_a_loss_is_no_divergence(tmp_path):
    run = identified_run(tmp_path / "a")
    lines = [train(11, 3.0), train(12, None), evaluation(12, 3.0)]
    write_lines(run, lines)
    (finished,) = read_runs([run])
    assert finished.diverged_at is None and finished.state == "finished"
    write_lines(run, [train(5, 3.0), train(6, None)])
    (at_work,) = read_runs([run])
    assert at_work.diverged_at is None
    write_lines(run, [train(11, 3.0), train(12, None)])
    (ended,) = read_runs([run])
    assert ended.diverged_at == 12


def test_a_run_whose_training_found_no_numbers_at_its_end_has_diverged(tmp_path):
    """The last loss is that of the weights before."""
    run = identified_run(tmp_path / "a")
    failed = {"event": "failed", "step": 12, "reason": "the run has diverged", "diverged": True}
    lines = [train(11, 3.0), train(12, 3.0)]
    states = {}
    for name, ending in {
        "diverged": [failed],
        "went on": [failed, {"event": "resume", "step": 11}, train(12, 3.0), evaluation(12, 3.0)],
        "not saved": [evaluation(12, 3.0), {**failed, "diverged": False}],
        "forged": [evaluation(12, 3.0), {**failed, "diverged": "no"}],
    }.items():
        write_lines(run, [*lines, *ending])
        (read,) = read_runs([run])
        states[name] = read.state
    assert states == {
        "diverged": "diverged at step 12",
        **dict.fromkeys(("went on", "not saved", "forged"), "finished"),
    }

"""From the seed project's books and checkpoints to its own figures."""

import json
import sys

import pytest
import seed_project
from conftest import ROOT
from seed_project import VOCAB

from gpt.checkpoint.weights import load_model
from gpt.config.saved import read_config
from gpt.convert.languini_books import import_dataset
from gpt.convert.languini_weights import import_weights
from gpt.data.datasets import Dataset
from gpt.evaluation import Evaluator, summary

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def books(tmp_path, pieces):
    return seed_project.write_sample_books(tmp_path / "books", pieces)


def printed(figures):
    """The figures as the seed project's eval.py prints them."""
    return {
        name: f"{value:,}" if name in ("tokens", "bytes") else f"{value:.6f}"
        for name, value in figures.items()
    }


@pytest.mark.parametrize("last_n", [8, 32])
@pytest.mark.parametrize("split", ["test", "stats", "wood"])
def test_evaluation_is_that_of_the_seed_project_to_its_printed_digits(
    split, last_n, books, vocab, pieces, tmp_path
):
    state = seed_project.random_state(2048)
    import_weights(
        seed_project.save(tmp_path / "model.pt", state), vocab, tmp_path / "model", head_dim=8
    )
    import_dataset(books, VOCAB, vocab, tmp_path / "data", say=lambda text: None)
    dataset = Dataset(tmp_path / "data")
    model = load_model(
        tmp_path / "model/model.safetensors",
        read_config(tmp_path / "model/config.yaml"),
        "model",
    )
    ours = summary(Evaluator(dataset.split(split), vocab, 32, last_n, 5).run(model.double()))[
        "languini"
    ]
    seed = seed_project.SeedGPT({name: value.double() for name, value in state.items()}, 8)
    assert printed(ours) == printed(
        seed_project.evaluation(seed, books, split, VOCAB, pieces, 32, last_n)
    )


def test_the_commands(books, vocab, pieces, tmp_path, run_command):
    """From the seed project's files to its own figures, as a user goes."""
    state = seed_project.random_state(2048)
    seed_project.save(tmp_path / "model.pt", state)
    (tmp_path / "spm.model").write_bytes(vocab.model)
    tool = [sys.executable, ROOT / "tools/import_languini.py"]
    tokenizer = ["--tokenizer", "spm.model"]
    data = ["data", "--root", books, "--vocab", VOCAB, "--out", "data"]
    done = run_command([*tool, *data, *tokenizer], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote data; use it with --data_root data --vocab_size 2048" in done.stdout
    weights = ["checkpoint", "--file", "model.pt", "--head_dim", 8, "--out", "model"]
    done = run_command([*tool, *weights, *tokenizer], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "fp32 parameters after step 100: 2 layers, h_dim 24, mlp_dim 40, 4 x 8 heads, vocabulary"
        " 2,048, seq_len 32" in done.stdout
    )
    options = {
        "checkpoint_file": "model/model.safetensors",
        "data_root": "data",
        "last_n": 8,
        "eval_data_split": "all",
        "json": "o.json",
        "markdown": "o.md",
    }
    evaluate = [sys.executable, ROOT / "gpt/eval.py"]
    for name, value in options.items():
        evaluate += [f"--{name}", value]
    done = run_command(evaluate, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "o.json").read_text())
    assert [result["split"] for result in results] == ["test", "stats", "wood"]  # all but train
    _, _, head, rule, *rows = (tmp_path / "o.md").read_text().splitlines()
    assert head.startswith("| split | normalised ppl |") and rule.count("---:") == 9
    seed = seed_project.SeedGPT(state, 8)
    for result, row in zip(results, rows, strict=True):
        split = result["split"]
        expected = seed_project.evaluation(seed, books, split, VOCAB, pieces, 32, 8)
        # in fp32, where the last printed digit may differ
        assert result["languini"] == pytest.approx(expected, rel=1e-6)
        ours = f"{result['normalised_ppl']:.4f}"
        theirs = f"{result['languini']['normalised_ppl']:.4f}"
        assert row.startswith(f"| {split} | {ours} | ") and row.endswith(f" | {theirs} |")
        assert f"{split:5s}  {ours:>14s}" in done.stdout

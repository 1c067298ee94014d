"""What a run of a model file writes of its cost, and what readers make of it."""

import pytest
import yaml
from conftest import read_metrics
from plain_run import train
from synthetic_runs import amend

from gpt.errors import UserError
from gpt.metrics.runs import read_run

MODEL_FILE = """
import torch
from torch import nn

class Model(nn.Module):
    output_layer = "head"

    def __init__(self, shape, declared):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.mix = nn.Linear(shape.h_dim, shape.h_dim)
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        self.flops_per_token = declared

    def forward(self, tokens):
        return self.mix(self.embed(tokens))

def build(shape, declared=None):
    return Model(shape, declared)
"""
COUNTED = 6 * (2048 * 32 + 32 * 32)
TOKENS_PER_STEP = 8 * 32


def trained(tmp_path, sample, **options):
    """The folder of a run of two steps."""
    (tmp_path / "own.py").write_text(MODEL_FILE)
    gpt = {
        "model_file": str(tmp_path / "own.py"),
        "model_options": options,
        "max_train_steps": 2,
        "tokens_per_second": 64.0,
        "final_eval": False,
        "max_eval_steps": 1,
    }
    train(tmp_path / "run", sample, gpt=gpt)
    return tmp_path / "run"


def test_a_run_of_a_model_file_costs_what_its_module_takes(sample, tmp_path):
    run_dir = trained(tmp_path, sample, declared=2 * COUNTED)
    told = yaml.safe_load((run_dir / "config.yaml").read_text())["model_file"]
    assert (told["flops_per_token"], told["flops_counted"]) == (2 * COUNTED, COUNTED)
    flops = [event["flops"] for event in read_metrics(run_dir, "train")]
    assert flops == [step * TOKENS_PER_STEP * 2 * COUNTED for step in (1, 2)]
    run = read_run(run_dir)
    assert run.parameters == 2 * 2048 * 32 + 32 * 33
    assert run.flops_per_token == 2 * COUNTED
    assert run.planned("flops") == 2 * TOKENS_PER_STEP * 2 * COUNTED
    assert run.planned("reference_hours") == pytest.approx(2 * TOKENS_PER_STEP / 64 / 3600)
    # of a config.yaml that does not tell them
    amend(run_dir, {"model_file/flops_per_token": None})
    untold = read_run(run_dir)
    assert untold.planned("flops") is None and untold.planned("tokens") == 2 * TOKENS_PER_STEP


@pytest.mark.parametrize("value", [0, "many"])
def test_flops_that_are_none_are_refused(value, sample, tmp_path):
    run_dir = trained(tmp_path, sample)
    amend(run_dir, {"model_file/flops_per_token": value})
    with pytest.raises(UserError, match=r"config.yaml: model_file.flops_per_token is "):
        read_run(run_dir)


def test_a_model_that_declares_too_little_leaves_no_run(sample, tmp_path):
    with pytest.raises(UserError, match="`flops_per_token` is 1,000, and its matrix products"):
        trained(tmp_path, sample, declared=1000)
    assert not (tmp_path / "run").exists()

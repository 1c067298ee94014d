"""Runs that begin with given weights: `--init_from`."""

import json
import shutil
import sys

import pytest
import seed_project
import torch
from conftest import ROOT, read_metrics, tiny_run, write_run
from safetensors.torch import load_file
from seed_project import random_documents

from gpt.checkpoint.manifest import Manifest
from gpt.checkpoint.weights import consolidate, load_model, write_folder
from gpt.config.resolve import resolve
from gpt.config.saved import foreign_config, read_config
from gpt.config.shape import ModelConfig
from gpt.convert.languini_books import import_dataset
from gpt.convert.languini_weights import import_weights
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.model import GPT
from gpt.training.trainer import Trainer

TRAIN = ROOT / "gpt/train.py"
SHAPE = ModelConfig(
    n_layers=2, h_dim=32, mlp_dim=64, n_heads=2, head_dim=8, vocab_size=2048, seq_len=32
)


@pytest.fixture(scope="module")
def given(sample, tmp_path_factory, run_command):
    """A folder with imported books (data), imported weights (given) and what eval.py finds of them
    (given.json)."""
    folder = tmp_path_factory.mktemp("given")
    vocab = Vocab.load(sample / "tokenizer.model")
    splits = {"train": random_documents("a", 12, 90, 1), "test": random_documents("t", 3, 200, 2)}
    import_dataset(
        seed_project.write_books(folder / "books", splits),
        "books_2048",
        vocab,
        folder / "data",
        say=lambda text: None,
    )
    file = seed_project.save(
        folder / "model.pt", seed_project.random_state(2048, h_dim=32, mlp_dim=64, width=16)
    )
    assert import_weights(file, vocab, folder / "given", head_dim=8)[0] == SHAPE
    evaluate = [
        sys.executable,
        ROOT / "gpt/eval.py",
        "--checkpoint_file",
        "given/model.safetensors",
        "--data_root",
        "data",
        "--last_n",
        16,
        "--json",
        "given.json",
    ]
    done = run_command(evaluate, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(given, tmp_path):
    shutil.copytree(given, tmp_path / "here")
    return tmp_path / "here"


def launch(run_command, folder, ranks, *options, **keys):
    gpt = {"data_root": "data", "eval_every": 4, "max_eval_steps": -1, "log_ckpt_every": 1}
    config = write_run(folder, gpt=gpt, **keys)
    start = (
        ["torchrun", "--master_port", 29751, "--nproc_per_node", ranks]
        if ranks > 1
        else [sys.executable]
    )
    return run_command(
        [*start, TRAIN, "--ds_config", config, *options], folder, OMP_NUM_THREADS="1"
    )


def check(here, run_command, stage, ranks, **keys):
    """The run's weights at step 0 are the given ones to the bit, and so is what it finds
    of them."""
    done = launch(
        run_command,
        here,
        ranks,
        "--init_from",
        "given",
        "--max_train_steps",
        0,
        zero_optimization={"stage": stage},
        **keys,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "notice: the first weights are those of given" in done.stdout
        and "eval after step 0 (as given) on test" in done.stdout
    )
    evaluation = read_metrics(here / "runs/tiny", "eval")[0]
    expected = json.loads((here / "given.json").read_text())
    assert (
        evaluation["step"] == 0
        and evaluation["tokens"] == expected["tokens"]
        and evaluation["bytes"] == expected["bytes"]
    )
    for name in ("loss", "normalised_ppl", "bits_per_byte"):
        assert evaluation[name] == pytest.approx(expected[name], rel=1e-2 if keys else 1e-6)
    consolidate(here / "runs/tiny/checkpoints", here / "out")
    ours = load_file(here / "out/model.safetensors")
    theirs = load_file(here / "given/model.safetensors")
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_a_run_begins_with_the_given_weights_and_goes_on_with_its_own(here, run_command):
    check(here, run_command, 3, 2)
    origin = read_config(here / "runs/tiny/config.yaml")["began_from"]
    manifest = Manifest.read(here / "given")
    assert origin == {
        "folder": "given",
        "step": 100,
        "sha256": manifest.files["model.safetensors"]["sha256"],
    }
    model = load_model(
        here / "given/model.safetensors",
        read_config(here / "given/config.yaml"),
        "given",
    )
    batch = torch.from_numpy(Streams(Dataset(here / "data").split("train"), 8, 32).batch(0))
    shutil.rmtree(here / "given")
    done = launch(run_command, here, 1, "--init_from", "given", "--max_train_steps", 2)
    assert done.returncode == 0 and "resuming runs/tiny after step 0" in done.stdout, done.stderr
    assert (
        read_config(here / "runs/tiny/checkpoints/global_step2/config.yaml")["began_from"] == origin
    )
    losses = [event["loss"] for event in read_metrics(here / "runs/tiny", "train")]
    assert (
        losses[0] == pytest.approx(model(batch[:, :-1], batch[:, 1:]).item(), rel=1e-5)
        and losses[1] < losses[0]
    )
    done = launch(run_command, here, 1, "--max_train_steps", 3)
    assert (
        done.returncode == 2
        and "holds a run with other settings (init_from was given, is not set)" in done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage, ranks", [(0, 1), (0, 2), (1, 2), (2, 2), (3, 1)])
def test_a_run_begins_with_the_given_weights_at_every_stage(stage, ranks, here, run_command):
    check(here, run_command, stage, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("stage, ranks", [(1, 2), (2, 1), (3, 2)])
def test_the_optimizers_copy_is_not_rounded_in_16_bits(stage, ranks, here, run_command):
    check(here, run_command, stage, ranks, bf16={"enabled": True})


def with_other_tokenizer(here):
    config = read_config(here / "given/config.yaml")
    config["dataset"]["tokenizer"] = "0" * 64
    model = GPT(SHAPE)
    shutil.rmtree(here / "given")
    write_folder(here / "given", model.state_dict(), config, b"", {})


def with_another_shape(here):
    shape = ModelConfig(**{**vars(SHAPE), "n_layers": 1, "vocab_size": 2047})
    shutil.rmtree(here / "given")
    vocab = Dataset(here / "data").vocab
    write_folder(
        here / "given",
        GPT(shape).state_dict(),
        foreign_config("x", 1, shape, vocab.fingerprint),
        b"",
        {},
    )


def flip(here):
    content = (here / "given/model.safetensors").read_bytes()
    (here / "given/model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


BAD = {
    "absent": (
        lambda here: shutil.rmtree(here / "given"),
        "{given} holds no model.safetensors: give a folder of consolidated weights",
    ),
    "no manifest": (
        lambda here: (here / "given/checkpoint.json").unlink(),
        "{given}/checkpoint.json is missing or damaged",
    ),
    "damaged": (
        flip,
        "{given}/model.safetensors is not as it was written (its size or sha256 differs)",
    ),
    "another shape": (
        with_another_shape,
        (
            "--init_from {given}: its model has another shape than the run's (n_layers is 1 there"
            " and 2 here, vocab_size is 2047 there and 2048 here): set the run's alike, or give"
            " other weights"
        ),
    ),
    "another tokenizer": (
        with_other_tokenizer,
        (
            "--init_from {given}: its model was trained with another tokenizer than that of the"
            " run's dataset: prepare the text with `--tokenizer {given}/tokenizer.model`, or give"
            " other weights"
        ),
    ),
}


@pytest.mark.parametrize("damage, sentence", BAD.values(), ids=BAD)
def test_weights_that_do_not_fit_are_refused_before_a_device_is_taken(damage, sentence, here):
    damage(here)
    gpt = {
        "init_from": str(here / "given"),
        "run_dir": str(here / "run"),
        "data_root": str(here / "data"),
    }
    config = resolve(tiny_run(gpt=gpt), "tiny")
    with pytest.raises(UserError) as error:
        Trainer(config, Dataset(here / "data"), 0, 1, ("torch", ""))
    assert sentence.format(given=here / "given") in str(error.value) and "\n" not in str(
        error.value
    )
    assert not (here / "run").exists()


def test_the_dry_run_looks_at_the_weights_too(here, run_command):
    done = launch(run_command, here, 1, "--init_from", "given", "--dry_run", "--n_heads", 3)
    assert (
        done.returncode == 2
        and "--init_from given: its model has another shape than the run's (n_heads is 2 there"
        " and 3"
        in done.stderr
    )

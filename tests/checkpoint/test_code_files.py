"""Code that lies with weights: kept with them, checked, and run by nothing but a user's word."""

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
from conftest import write_run
from own_code_run import MIXING, KeepingEngine, train_own, write_model
from plain_run import train
from safetensors.numpy import load_file

from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import read_content, write_content
from gpt.checkpoint.weights import consolidate
from gpt.config import own_code
from gpt.data.datasets import Dataset
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.results import document_sums

pytestmark = pytest.mark.usefixtures("one_thread")
TRUST = "--trust_model_file"
CODE = {"own.py", "mixing.py"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sample):
    """A finished run and its export; the file that it was trained from is gone."""
    folder = tmp_path_factory.mktemp("own")
    model_file = write_model(folder / "mine")
    run_dir = folder / "run"
    train_own(run_dir, sample, model_file, eval_every=2)
    consolidate(run_dir / "checkpoints", run_dir / "export", trusted=True)
    model_file.unlink()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run at a place that no code was run from yet, as one from elsewhere is."""
    (trained / "mine" / "mark").unlink(missing_ok=True)
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def mark(trained):
    """There once the model file was run."""
    return trained / "mine" / "mark"


@pytest.fixture
def output_of(load_tool, monkeypatch, capsys):
    """output_of("sample", *argv): what the command prints."""

    def output(name, *argv, folder="tools"):
        tool = load_tool(name, folder)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
        capsys.readouterr()
        tool.main()
        return capsys.readouterr().out

    return output


def test_the_run_its_checkpoints_and_exports_keep_the_code(run):
    texts = {path.name: path.read_bytes() for path in (run / "code").iterdir()}
    assert texts.keys() == CODE and texts["mixing.py"] == MIXING.encode()
    for folder in (
        run / "checkpoints/global_step1",
        run / "checkpoints/global_step2",
        run / "export",
    ):
        files = Checkpoint.open(folder).verify().manifest.files
        for name, text in texts.items():
            assert (folder / name).read_bytes() == text
            assert files[name] == hash_file(folder / name)


def commands(run, tmp_path, sample):
    """[(command, its arguments, what of its sentence tells that it needs the code; None: it does
    not)] of all that take weights or a run."""
    weights, checkpoints = run / "export/model.safetensors", run / "checkpoints"
    asks = f"read {run / 'export/own.py'}, and give --trust_model_file to have it run"
    asks_2 = asks.replace("export", "checkpoints/global_step2")
    first = asks.replace("export", "checkpoints/global_step1")
    gpt = write_run(tmp_path, gpt={"data_root": str(sample), "run_dir": str(tmp_path / "new")})
    config = run / "config.yaml"
    names_it = "and a config.yaml runs no code by itself: give --model_file "
    other = "model.safetensors does not fit the run's model (the GPT): "
    train = ("train", "--ds_config")
    return [
        (("eval", "--checkpoint_file", weights), asks),
        (("eval", "--checkpoints", run), first),
        (("eval", "--checkpoint_file", weights, "--join", run), asks),
        (("sample", "--checkpoint_file", weights), asks),
        (("zero_to_fp32", checkpoints, tmp_path / "out"), asks_2),
        (("zero_to_fp32", checkpoints, tmp_path / "out", "--average", 2), asks_2),
        (("export_hf", run / "export", tmp_path / "hf"), "own.py"),
        ((*train, gpt, "--init_from", run / "export", "--dry_run"), other),
        ((*train, config), names_it),
        ((*train, config, "--dry_run"), names_it),
        (("throughput", "--ds_config", config), names_it),
        (("sweep", "--classes", config, "--out", tmp_path / "s", "--seeds", 0), names_it),
        (("verify_checkpoint", checkpoints), None),
        (("verify_checkpoint", run / "export"), None),
        (("compare", run), None),
        (("report", "--out", tmp_path / "report.html", run), None),
    ]


def test_weights_from_elsewhere_run_no_code_by_themselves(
    run, mark, tmp_path, sample, load_tool, output_of
):
    for (name, *argv), sentence in commands(run, tmp_path, sample):
        folder = "gpt" if name in ("eval", "train") else "tools"
        if sentence is None:
            output_of(name, *argv, folder=folder)
        else:
            assert sentence in load_tool(name, folder).mistake(*argv)
        assert not mark.exists(), name
    assert not (tmp_path / "out").exists() and not (tmp_path / "hf").exists()
    with pytest.raises(UserError, match="holds a run with other settings .*model_file was own.py"):
        train(run, sample)
    assert not mark.exists()


def test_what_looks_ahead_in_evaluations_alone_is_refused(sample, tmp_path, load_tool):
    """Training, and its own evaluations, have no batches of so many rows."""
    ahead = MIXING.replace("return x", "x = x + (len(x) == 5) * 100 * x.roll(-1, 1)\n    return x")
    model_file = write_model(tmp_path / "mine", mixing=ahead)
    train_own(tmp_path / "run", sample, model_file, eval_every=2)
    export = tmp_path / "run/export"
    consolidate(tmp_path / "run/checkpoints", export, trusted=True)
    (tmp_path / "a.txt").write_text("Seven breads later, nobody asks what the oven was for.\n" * 20)
    command = ["--checkpoint_file", export / "model.safetensors", TRUST, "--batch_size", 5]
    files = ["--text", tmp_path / "a.txt", "--per_document", tmp_path / "a.jsonl"]
    sentence = load_tool("eval", "gpt").mistake(*command, *files)
    assert sentence.startswith(
        f"{export}/own.py: the model sees what it has to predict: in a batch of 5 rows of 32"
        " tokens it scores the token behind position "
    )
    assert not (tmp_path / "a.jsonl").exists()


def test_an_evaluation_and_its_documents_by_code_that_is_trusted(run, sample, output_of):
    weights = run / "export/model.safetensors"
    file = run / "evaluations/test-step2.documents.jsonl"
    command = ["--checkpoint_file", weights, TRUST, "--join", run, "--per_document", file]
    output_of("eval", *command, "--last_n", 32, folder="gpt")
    result = json.loads((run / "evaluations/test-step2.json").read_text())
    documents = document_sums.read(file)
    sums = documents.totals()
    assert sums["nats"] == pytest.approx(result["total_loss"], rel=1e-9)
    assert sums["text_nats"] == pytest.approx(result["text_nats"], rel=1e-9)
    for name in ("tokens", "text_tokens", "bytes"):
        assert sums[name] == result[name]
    split = Dataset(sample).split("test")
    assert documents.bytes.tolist() == split.doc_bytes.tolist()
    assert documents.tokens.tolist() == (split.doc_tokens + 1).tolist()
    # by the text itself, which the tokens stand for
    text = Dataset(sample).vocab.text_bytes(split.tokens[: split.doc_tokens[0]])
    assert documents.hashes[0] == hashlib.sha256(text).hexdigest()[:32]


def nats(weights, ids):
    """-log p of each id but the first, given those before: the model in NumPy, in float64."""
    own = {name.removeprefix("body."): w.astype(np.float64) for name, w in weights.items()}
    matrix = own["out.logits.weight"]  # under its first name
    x = matrix[ids[:-1]]
    mean = np.cumsum(x, 0) / np.arange(1, len(x) + 1)[:, None]
    inner = np.maximum(mean @ own["up.weight"].T + own["up.bias"], 0)
    x = x + inner @ own["down.weight"].T + own["down.bias"]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = x * own["out.norm.weight"] + own["out.norm.bias"]
    logits = 15 * np.tanh(x @ matrix.T / 15)
    log_sums = np.log(np.exp(logits).sum(1))
    return log_sums - logits[np.arange(len(x)), ids[1:]]


def test_trusted_weights_are_evaluated(run, mark, tmp_path, output_of):
    """The loss of a text is the model's, with its weights tied and its logits capped."""
    text = tmp_path / "text"
    text.write_text("It was a dark and stormy night.")
    vocab = Vocab.load(run / "export/tokenizer.model")
    ids = [*vocab.encode(text.read_text()).tolist(), vocab.eod_id]
    output_of("zero_to_fp32", run / "checkpoints", tmp_path / "out", TRUST)
    assert mark.exists()
    weights = load_file(tmp_path / "out/model.safetensors")
    # the first token's context is the end of another document
    expected = [*nats(weights, ids), *nats(weights, [vocab.eod_id, ids[0]])]
    for source in (
        ("--checkpoint_file", tmp_path / "out/model.safetensors"),
        ("--checkpoints", run),
    ):
        file = tmp_path / "scores.json"
        output_of("eval", *source, TRUST, "--text", text, "--json", file, folder="gpt")
        scores = json.loads(file.read_text())
        scores = scores[-1] if isinstance(scores, list) else scores
        assert scores["tokens"] == len(expected)
        assert scores["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_mean_of_checkpoints_brings_the_code(run, tmp_path, output_of):
    told = output_of("zero_to_fp32", run / "checkpoints", tmp_path / "mean", "--average", 2, TRUST)
    assert "that are the mean of those after the steps 1, 2" in told
    assert (tmp_path / "mean/mixing.py").read_bytes() == MIXING.encode()


def test_text_is_drawn(run, output_of):
    text = output_of(
        "sample",
        "--checkpoint_file",
        run / "export/model.safetensors",
        "--prompt",
        "It was",
        "--tokens",
        40,
        TRUST,
    )
    assert text.startswith("It was") and len(text) > 40


def reseal(folder):
    """Have checkpoint.json vouch for the files as they are, as whoever alters them would."""
    content = read_content(folder)
    content["files"] = {name: hash_file(folder / name) for name in content["files"]}
    write_content(folder, content)


def altered(folder):
    with open(folder / "mixing.py", "a") as file:
        file.write("print('altered')\n")
    reseal(folder)
    return "mixing.py is not the file that config.yaml tells (its sha256 differs)"


def missing(folder):
    (folder / "mixing.py").unlink()
    content = read_content(folder)
    del content["files"]["mixing.py"]
    write_content(folder, content)
    return "mixing.py, of the model's code, is missing"


def extra(folder):
    (folder / "torch.py").write_text("")
    return "torch.py is no part of the code that config.yaml tells"


def linked(folder):
    (folder / "mixing.py").unlink()
    (folder / "mixing.py").mkdir()
    content = read_content(folder)
    del content["files"]["mixing.py"]
    write_content(folder, content)
    return "mixing.py"


@pytest.mark.parametrize("spoil", [altered, missing, extra, linked])
def test_code_that_is_not_what_config_yaml_tells(spoil, run, mark, load_tool):
    sentence = spoil(run / "export")
    told = load_tool("eval", "gpt").mistake(
        "--checkpoint_file", run / "export/model.safetensors", TRUST
    )
    assert sentence in told and not mark.exists()


def test_a_file_that_is_not_as_it_was_written_is_damage(run, load_tool, output_of):
    file = run / "checkpoints/global_step2/own.py"
    file.write_text(file.read_text() + "#")
    told = output_of("verify_checkpoint", run / "checkpoints")
    assert f"NOT WHOLE: {file} is not as it was written" in told


def test_a_variant_that_is_here_needs_no_word(trained, tmp_path, sample, monkeypatch, output_of):
    variants = tmp_path / "variants"
    write_model(variants, "cell.py")
    monkeypatch.setattr(own_code, "VARIANTS", variants)
    run_dir = tmp_path / "run"
    train_own(run_dir, sample, "cell")
    output_of("zero_to_fp32", run_dir / "checkpoints", tmp_path / "out")
    sample_it = ("sample", "--checkpoint_file", tmp_path / "out/model.safetensors", "--tokens", 2)
    output_of(*sample_it)
    (variants / "cell.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match="cell.py .*, which is no variant of this trainer's: read"):
        output_of(*sample_it)
    output_of(*sample_it, TRUST)  # the copy that lies there


def test_a_mean_is_of_one_model(run, tmp_path, sample, output_of, load_tool):
    other = write_model(tmp_path / "other", cap=10.0)
    train_own(run, sample, other, allowed=["model_file"], eval_every=2, max_train_steps=3)
    told = load_tool("zero_to_fp32").mistake(
        run / "checkpoints", tmp_path / "out", "--average", 2, TRUST
    )
    assert told == (
        f"{run}/checkpoints/global_step2 is of a model by another model_file or other"
        f" model_options than {run}/checkpoints/global_step3: average fewer of them"
    )
    # each of them has the code that it was trained by
    text = ("--text", tmp_path / "other/own.py")
    told = output_of("eval", "--checkpoints", run, TRUST, *text, folder="gpt")
    assert told.count("\ntext ") == 3


def test_names_that_a_checkpoint_cannot_keep(tmp_path):
    for name in ("my model.py", ".own.py", "-own.py", "modèle.py"):
        write_model(tmp_path / "mine", name)
        with pytest.raises(UserError, match="has a name that no checkpoint can keep: let it be of"):
            own_code.read_own_code(str(tmp_path / "mine" / name), "gpt.model_file")


def test_a_name_like_a_rank_s_file_is_no_rank_s(tmp_path, sample):
    name = "zero_pp_rank_3_own.py"
    train_own(tmp_path / "run", sample, write_model(tmp_path / "mine", name))
    manifest = Checkpoint.open(tmp_path / "run/checkpoints/global_step2").verify().manifest
    assert name in manifest.files


OPTIMIZER = """
import torch
from rates import RATE


def build(named_parameters, **options):
    return torch.optim.SGD([parameter for _, parameter in named_parameters], lr=RATE)
"""


def test_an_optimizer_s_code_is_kept_with_what_it_trained(tmp_path, sample, output_of):
    mine = write_model(tmp_path / "mine", rates="RATE = 0.1\n", steps=OPTIMIZER).parent
    run_dir = tmp_path / "run"
    with_it = {"optimizer_file": str(mine / "steps.py"), "final_eval": False}
    train(run_dir, sample, gpt={"max_train_steps": 1, **with_it}, engine=KeepingEngine)
    checkpoint = Checkpoint.open(run_dir / "checkpoints/global_step1").verify()
    own_files = {"steps.py", "rates.py"}
    assert {path.name for path in (run_dir / "code").iterdir()} == own_files
    assert own_files <= checkpoint.manifest.files.keys()
    # the weights of a GPT need none of it
    output_of("zero_to_fp32", run_dir / "checkpoints", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    both = tmp_path / "both"
    train_own(both, sample, mine / "own.py", **with_it)
    output_of("zero_to_fp32", both / "checkpoints", tmp_path / "out of both", TRUST)
    assert {path.name for path in (tmp_path / "out of both").glob("*.py")} == CODE

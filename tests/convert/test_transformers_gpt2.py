"""Weights and tokenizer in transformers' layout, and back."""

import contextlib
import io
import json
import math
import os
import shutil
import sys

import pytest
import seed_project
import sentencepiece
import torch
from conftest import ROOT, load_command
from safetensors.torch import load_file, save_file
from seed_project import TEXTS

from gpt.checkpoint.weights import open_folder, write_folder
from gpt.config.saved import foreign_config
from gpt.config.shape import ModelConfig, load_presets
from gpt.convert import transformers_gpt2
from gpt.convert.languini_weights import import_weights
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.model import GPT

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def consolidated(folder, vocab, h_dim=24, n_heads=4):
    """Random weights, biases and norms included, by way of the seed project's layout: (folder, its
    state dict)."""
    state = seed_project.random_state(vocab.size, h_dim=h_dim, width=h_dim)
    import_weights(
        seed_project.save(folder / "model.pt", state),
        vocab,
        folder / "export",
        head_dim=h_dim // n_heads,
    )
    return folder / "export", state


@pytest.fixture(scope="module")
def exported(vocab, tmp_path_factory):
    """(consolidated folder, the seed project's state dict, GPT2LMHeadModel's folder, what was
    printed)"""
    folder = tmp_path_factory.mktemp("hf")
    source, state = consolidated(folder, vocab)
    tool = load_command("export_hf")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        tool.export(source, folder / "gpt2")
    return source, state, folder / "gpt2", output.getvalue()


def test_transformers_computes_the_same_logits(exported):
    _, state, folder, output = exported
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    assert (
        model.config.tie_word_embeddings is False and model.config.activation_function == "gelu_new"
    )
    assert (
        model.config.eos_token_id == 2
        and model.lm_head.weight.data_ptr() != model.transformer.wte.weight.data_ptr()
    )
    tokens = torch.randint(2048, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(tokens).logits
    expected = seed_project.SeedGPT({name: value.double() for name, value in state.items()}, 6)(
        tokens
    )
    assert expected.std() > 0.5
    torch.testing.assert_close(
        logits.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert (
        "parameters after step 100; logits within " in output
        and "ids equal to SentencePiece's on every piece" in output
    )


def test_its_tokenizer_gives_sentencepieces_ids(exported, vocab):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported[2])
    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    for text in [
        *TEXTS,
        "",
        " ",
        "\n",
        "  lead",
        "trail  ",
        "a<D>b",
        "\U0001f950",
        "x" * 300,
        (ROOT / "README.md").read_text(),
    ]:
        ids = tokenizer(text)["input_ids"]
        assert ids == pieces.encode(text)
        assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.eos_token_id, len(tokenizer)) == ("<D>", 2, vocab.size)


def test_it_generates(exported):
    model, tokenizer = (
        kind.from_pretrained(exported[2])
        for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    ids = model.generate(
        **tokenizer("The whale", return_tensors="pt"), max_new_tokens=5, do_sample=False
    )
    assert tokenizer.decode(ids[0]).startswith("The whale")


@pytest.mark.parametrize("h_dim", [16, 24])
def test_the_way_back(h_dim, vocab, tmp_path, load_tool, capsys):
    source, _ = consolidated(tmp_path, vocab, h_dim)
    tool = load_tool("export_hf")
    tool.export(source, tmp_path / "gpt2")
    tool.back(tmp_path / "gpt2", tmp_path / "back")
    ours = load_file(source / "model.safetensors")
    again = load_file(tmp_path / "back/model.safetensors")
    name = "token_embedding.weight"
    rounded = [key for key in ours if not torch.equal(ours[key], again[key])]
    # sqrt(16) is a power of two
    assert ours.keys() == again.keys() and rounded == ([] if h_dim == 16 else [name])
    factor = math.sqrt(h_dim)
    # what the model computes with is the same, to the bit
    assert torch.equal(ours[name] * factor, again[name] * factor)
    torch.testing.assert_close(ours[name], again[name], rtol=2**-23, atol=0)
    assert json.loads((tmp_path / "back/checkpoint.json").read_text())["step"] == 100
    assert "after step 100" in capsys.readouterr().out


def test_an_export_that_computes_otherwise_is_noticed(vocab, tmp_path, load_tool, monkeypatch):
    source, _ = consolidated(tmp_path, vocab)
    real = transformers_gpt2.to_gpt2
    monkeypatch.setattr(
        transformers_gpt2,
        "to_gpt2",
        lambda weights, model: {
            **real(weights, model),
            "transformer.wte.weight": weights["token_embedding.weight"],
        },
    )
    assert (
        load_tool("export_hf")
        .mistake(source, tmp_path / "gpt2")
        .startswith("nothing was written: the exported model's logits are off by")
    )
    assert not (tmp_path / "gpt2").exists()


def test_weights_that_amplify_rounding_are_told_from_wrong_ones(
    vocab, tmp_path, load_tool, capsys, monkeypatch
):
    shape = ModelConfig(
        n_layers=10, h_dim=48, mlp_dim=64, n_heads=4, head_dim=12, vocab_size=vocab.size, seq_len=64
    )
    weights = {
        name: value * (40 if value.dim() == 2 else 1)
        for name, value in GPT(shape).state_dict().items()
    }
    write_folder(
        tmp_path / "export",
        weights,
        foreign_config("x", 1, shape, vocab.fingerprint),
        vocab.model,
        {},
    )
    tool = load_tool("export_hf")
    tool.export(tmp_path / "export", tmp_path / "gpt2")
    assert "NOTE: with these weights fp32 itself is off by " in capsys.readouterr().out
    real = transformers_gpt2.to_gpt2
    monkeypatch.setattr(
        transformers_gpt2,
        "to_gpt2",
        lambda *args: {name: value * 1.01 for name, value in real(*args).items()},
    )
    assert tool.mistake(tmp_path / "export", tmp_path / "again").startswith("nothing was written")


def test_a_vocabulary_of_another_kind_gets_no_tokenizer(tmp_path, load_tool, capsys):
    model = io.BytesIO()
    text = [
        f"the {word} of a {word[::-1]}"
        for word in ("whale", "captain", "harpoon", "kitchen", "nobody", "seven")
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=60,
        model_type="unigram",
        user_defined_symbols="<D>",
        minloglevel=2,
        hard_vocab_limit=False,
    )
    vocab = Vocab(model.getvalue())
    shape = ModelConfig(
        n_layers=1, h_dim=8, mlp_dim=8, n_heads=2, head_dim=4, vocab_size=vocab.size, seq_len=8
    )
    write_folder(
        tmp_path / "export",
        GPT(shape).state_dict(),
        foreign_config("x", 1, shape, vocab.fingerprint),
        vocab.model,
        {},
    )
    load_tool("export_hf").export(tmp_path / "export", tmp_path / "gpt2")
    assert (
        "NOTE: no tokenizer for transformers: its byte-pair encoding gives other ids than"
        " SentencePiece" in capsys.readouterr().out
    )
    assert sorted(os.listdir(tmp_path / "gpt2")) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "run.yaml",
        "sentencepiece.model",
        "tokenizer_config.json",
    ]
    # neither one that gives other ids nor one without ids
    with pytest.raises((ValueError, OSError)):
        transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    load_tool("export_hf").back(tmp_path / "gpt2", tmp_path / "back")
    assert (tmp_path / "back/tokenizer.model").read_bytes() == vocab.model


def run_of(folder, vocab):
    """Weights as zero_to_fp32.py makes them of a run: their config.yaml."""
    shape = ModelConfig(
        n_layers=1, h_dim=8, mlp_dim=8, n_heads=2, head_dim=4, vocab_size=vocab.size, seq_len=16
    )
    config = foreign_config("6h", 30, shape, vocab.fingerprint)
    config["run"]["gpt"] |= {"last_n": 5, "seed": 3}
    config |= {"code": {"hash": "ab12"}, "kernels": "torch", "changes": []}
    config["dataset"]["train"] = {"documents": "x"}
    write_folder(folder, GPT(shape).state_dict(), config, vocab.model, {})
    return config


def test_unchanged_weights_come_back_as_their_runs(vocab, tmp_path, load_tool):
    config = run_of(tmp_path / "export", vocab)
    tool = load_tool("export_hf")
    tool.export(tmp_path / "export", tmp_path / "gpt2")
    tool.back(tmp_path / "gpt2", tmp_path / "back")
    assert open_folder(tmp_path / "back").config == config


def test_a_gpt2_that_says_it_needs_code_of_its_own_is_not_believed(vocab, tmp_path, load_tool):
    run_of(tmp_path / "export", vocab)
    tool = load_tool("export_hf")
    tool.export(tmp_path / "export", tmp_path / "gpt2")
    run_file = tmp_path / "gpt2/run.yaml"
    told = run_file.read_text()
    run_file.write_text(told.replace("\nconfig:\n", "\nconfig:\n  model_file: {name: evil.py}\n"))
    assert run_file.read_text() != told
    tool.back(tmp_path / "gpt2", tmp_path / "back")
    assert "model_file" not in open_folder(tmp_path / "back").config


def test_weights_that_were_trained_elsewhere_keep_what_scores_them(
    vocab, tmp_path, load_tool, monkeypatch
):
    run_of(tmp_path / "export", vocab)
    tool = load_tool("export_hf")
    tool.export(tmp_path / "export", tmp_path / "gpt2")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")
    with torch.no_grad():
        model.lm_head.weight *= 1.5
    model.save_pretrained(tmp_path / "tuned")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt2").save_pretrained(
        tmp_path / "tuned"
    )
    shutil.copy(tmp_path / "gpt2/run.yaml", tmp_path / "tuned")  # of the weights of before
    assert tool.mistake("--back", tmp_path / "tuned", tmp_path / "back") == (
        f"{tmp_path / 'tuned'} holds no tokenizer.model, which transformers does not take along:"
        " copy it from the folder that export_hf.py made, or give it by --tokenizer"
    )
    arguments = ["--back", tmp_path / "tuned", tmp_path / "back"]
    arguments += ["--tokenizer", tmp_path / "gpt2/tokenizer.model"]
    monkeypatch.setattr(sys, "argv", ["export_hf.py", *map(str, arguments)])
    tool.main()
    config = open_folder(tmp_path / "back").config
    assert (config["name"], config["step"]) == ("tuned", 30) and "code" not in config
    assert config["run"]["gpt"]["last_n"] == 5 and config["model"]["seq_len"] == 16
    config_file = tmp_path / "tuned/config.json"
    told = config_file.read_text()
    config_file.write_text(told.replace(vocab.fingerprint, "0" * 64))
    arguments[2] = tmp_path / "again"
    assert tool.mistake(*arguments) == (
        f"{arguments[-1]} is not the tokenizer that the model was exported with: give the tokenizer"
        " that it was trained with (--tokenizer)"
    )
    model.resize_token_embeddings(vocab.size + 1)
    model.save_pretrained(tmp_path / "tuned")
    assert tool.mistake(*arguments) == (
        f"{arguments[-1]} has {vocab.size} ids, and the model {vocab.size + 1}: where tokens were"
        f" added, such as one for padding, call model.resize_token_embeddings({vocab.size}) and"
        " save it again; else give the tokenizer that it was trained with (--tokenizer)"
    )


class Positionless(GPT):
    """A model whose code was changed."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        del self.position_embedding


def test_a_model_of_changed_code_has_no_counterpart(vocab, tmp_path, load_tool, monkeypatch):
    shape = ModelConfig(
        n_layers=1, h_dim=8, mlp_dim=8, n_heads=2, head_dim=4, vocab_size=vocab.size, seq_len=16
    )
    config = foreign_config("rope", 30, shape, vocab.fingerprint)
    weights = Positionless(shape, seed=0).state_dict()
    write_folder(tmp_path / "export", weights, config, vocab.model, {})
    monkeypatch.setattr("gpt.architecture.architecture.GPT", Positionless)
    assert load_tool("export_hf").mistake(tmp_path / "export", tmp_path / "gpt2") == (
        "the model of gpt/model.py lacks position_embedding.weight, unlike transformers' GPT-2,"
        " which is the baseline's model: a model whose code was changed cannot be exported; take"
        " the code of the baseline"
    )


@pytest.mark.parametrize(
    "preset, fits",
    [
        ("nano", True),
        ("mini", False),
        ("tiny", True),
        ("small", True),
        ("medium", True),
        ("large", True),
        ("XL", False),
    ],
)
def test_shapes_that_gpt2_cannot_have_are_refused(preset, fits):
    shape = ModelConfig(**load_presets()[preset], vocab_size=9, seq_len=9)
    if fits:
        transformers_gpt2.require_gpt2_shape(shape)
        return
    with pytest.raises(
        UserError,
        match=(
            "cannot be this model, whose (8 heads of 32 are 256|24 heads of 128 are 3072) wide"
            " together and h_dim is"
        ),
    ):
        transformers_gpt2.require_gpt2_shape(shape)


def edit(**values):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return damage


def link_to(target, name):
    """Puts what never ends in a file's place."""

    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name) if target is None else (folder / name).symlink_to(target)

    return damage


def to_bool(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] > 0
    save_file(weights, folder / "model.safetensors")


def drop(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.ln_2.bias"]
    save_file(weights, folder / "model.safetensors")


BAD_FOLDERS = {
    "no folder": (
        lambda folder: (folder / "config.json").unlink(),
        "config.json is missing or not JSON: give the folder of a GPT2LMHeadModel",
    ),
    "not JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json is missing or not JSON",
    ),
    "another model": (
        edit(model_type="llama"),
        "config.json is not that of a GPT-2 like ours (model_type is 'llama', not 'gpt2')",
    ),
    "tied": (edit(tie_word_embeddings=True), "(tie_word_embeddings is True, not False)"),
    "tied by default": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
        "(tie_word_embeddings is None, not False; n_layer is",
    ),
    "steps": (edit(trained_steps="many"), "(trained_steps is 'many')"),
    "last_n": (edit(last_n=0), "(last_n is 0)"),
    "mlp": (edit(n_inner="wide"), "(n_inner is 'wide')"),
    "another activation": (
        edit(activation_function="gelu"),
        "(activation_function is 'gelu', not 'gelu_new')",
    ),
    "no layers": (edit(n_layer=0), "(n_layer is 0)"),
    "heads": (edit(n_head=7), "(n_embd 24 is no multiple of n_head 7)"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "holds no model.safetensors: save the model with save_pretrained",
    ),
    "text": (
        lambda folder: (folder / "model.safetensors").write_text("x"),
        "model.safetensors is not a safetensors file",
    ),
    "a weight less": (
        drop,
        "model.safetensors lacks transformer.h.1.ln_2.bias, which its config.json calls for",
    ),
    "another width": (
        edit(n_embd=32),
        (
            "transformer.wte.weight has the shape (2048, 24), which should be (2048, 32) by its"
            " config.json"
        ),
    ),
    "ten thousand layers": (
        edit(n_layer=10_000),
        "model.safetensors holds 29 tensors, and its config.json calls for 10000 layers",
    ),
    "more layers than can be": (edit(n_layer=10**9), "(n_layer is 1000000000)"),
    "a number of 400 digits": (edit(n_embd=10**399), "(n_embd is 1000"),
    "whole numbers": (to_bool, "lm_head.weight is torch.bool, which holds no weights"),
    "a pipe": (link_to(None, "config.json"), "config.json is missing or not JSON"),
    "a device": (link_to("/dev/zero", "config.json"), "config.json is missing or not JSON"),
    "weights from a pipe": (
        link_to(None, "model.safetensors"),
        "model.safetensors is not a safetensors file",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.model").unlink(),
        "holds no tokenizer.model, which transformers does not take along: copy it from the folder",
    ),
}


def test_bad_folders(exported, tmp_path, load_tool):
    for number, (damage, sentence) in enumerate(BAD_FOLDERS.values()):
        folder = shutil.copytree(exported[2], tmp_path / f"gpt2-{number}")
        damage(folder)
        mistake = load_tool("export_hf").mistake("--back", folder, tmp_path / "out")
        assert sentence in mistake and "\n" not in mistake
        assert not (tmp_path / "out").exists()


def test_private_weights_stay_private(vocab, tmp_path, load_tool):
    source, _ = consolidated(tmp_path, vocab)
    before = os.umask(0o077)
    try:
        load_tool("export_hf").export(source, tmp_path / "gpt2")
    finally:
        os.umask(before)
    paths = [tmp_path / "gpt2", *(tmp_path / "gpt2").iterdir()]
    assert {path.name: path.stat().st_mode & 0o077 for path in paths} == {
        path.name: 0 for path in paths
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk(exported, tmp_path, load_tool, run_command):
    """Wherever it fills: at the weights, at the tokenizer."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = (exported[2] / "model.safetensors").stat().st_size // 1024
    for room in (size // 2, size + 24, size + 90):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", disk]
        if run_command(mount, tmp_path).returncode:
            pytest.skip("this machine mounts no tmpfs")
        try:
            mistake = load_tool("export_hf").mistake(exported[0], disk / "out")
            assert mistake == (
                f"{disk}/out does not fit on its disk: make room, or name a folder on another one"
            )
            assert os.listdir(disk) == []
        finally:
            run_command(["umount", disk], tmp_path)


NOT_UTF8 = os.fsdecode(b"caf\xe9")


def test_names_that_are_not_utf8(exported, vocab, tmp_path, load_tool):
    source = shutil.copytree(exported[0], tmp_path / NOT_UTF8)
    tool = load_tool("export_hf")
    tool.export(source, tmp_path / "gpt2")
    tool.back(shutil.copytree(exported[2], tmp_path / f"{NOT_UTF8} 2"), tmp_path / f"{NOT_UTF8} 3")
    assert open_folder(tmp_path / f"{NOT_UTF8} 3").step == 100
    assert tool.mistake(exported[0], tmp_path / f"{NOT_UTF8} 4") == (
        f"{tmp_path}/{NOT_UTF8} 4 has a name that is not UTF-8, and transformers opens no such"
        " folder: name another one"
    )


def test_bad_exports(exported, vocab, tmp_path, load_tool, monkeypatch):
    tool = load_tool("export_hf")
    assert tool.mistake(tmp_path, tmp_path / "out").startswith(
        f"{tmp_path} holds no model.safetensors: give a folder of consolidated"
    )
    file = exported[0] / "model.safetensors"
    assert (
        tool.mistake(file, tmp_path / "out") == f"{file} is a file: give the folder {file.parent}"
    )
    assert tool.mistake(exported[2], tmp_path / "out").startswith(
        f"{exported[2]} is a model in the layout of transformers (config.json): bring it into ours"
    )
    assert tool.mistake(*exported[:1], tmp_path / "out", "--tokenizer", "x").startswith(
        "--tokenizer goes with --back: leave it out"
    )
    assert "exists already: remove it first" in tool.mistake(exported[0], exported[2])
    shape = ModelConfig(
        n_layers=1, h_dim=8, mlp_dim=8, n_heads=1, head_dim=4, vocab_size=vocab.size, seq_len=8
    )
    write_folder(
        tmp_path / "narrow",
        GPT(shape).state_dict(),
        foreign_config("x", 1, shape, vocab.fingerprint),
        vocab.model,
        {},
    )
    assert "whose 1 heads of 4 are 4 wide together and h_dim is 8" in tool.mistake(
        tmp_path / "narrow", tmp_path / "out"
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert tool.mistake(exported[0], tmp_path / "out").startswith(
        "the package transformers is not installed: run `pip install -e '.[hf]'`"
    )
    assert not (tmp_path / "out").exists()

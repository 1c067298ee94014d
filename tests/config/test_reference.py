"""A throughput belongs to the model that it was measured for."""

from pathlib import Path

import pytest
from conftest import ROOT, tiny_run

from gpt.config.resolve import load, resolve

CLASS = ROOT / "ds_configs" / "24h.json"


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"gpt.preset": "XL"}, "613,416,960 FLOPs per token, and this one takes 8,883,535,872"),
        ({"gpt.seq_len": 1024}, "613,416,960 FLOPs per token, and this one takes 641,728,512"),
        ({"gpt.vocab_size": 4096}, "613,416,960 FLOPs per token, and this one takes 556,793,856"),
        ({"fp16.enabled": False}, "was measured in fp16, and this run is in fp32"),
    ],
)
def test_another_model_than_the_classs_has_no_reference_hours(overrides, words):
    config = load(CLASS, overrides=overrides)
    assert config.options.tokens_per_second is None
    assert [words in notice for notice in config.notices].count(True) == 1
    notice = next(notice for notice in config.notices if words in notice)
    assert notice.startswith("no reference hours: tokens_per_second 55,416")
    assert "tools/throughput.py" in notice


def test_the_classs_own_model_keeps_them():
    config = load(CLASS, overrides={"gpt.seed": 3, "gpt.preset": "small", "gpt.h_dim": 768})
    assert config.options.tokens_per_second == 55416 and not config.notices


def test_a_throughput_on_the_command_line_belongs_to_the_run_as_it_is():
    overrides = {"gpt.preset": "XL", "gpt.tokens_per_second": 900.0}
    config = load(CLASS, overrides=overrides)
    assert config.options.tokens_per_second == 900
    assert config.options.reference_flops_per_token == config.model.matmul_flops_per_token()


def test_a_file_that_does_not_say_is_taken_at_its_word_until_the_command_line_changes_it():
    tree = tiny_run(gpt={"tokens_per_second": 1000.0})
    config = resolve(tree, "tiny")
    assert config.options.tokens_per_second == 1000
    # and it is not made to say more than it did
    assert config.options.reference_flops_per_token is None
    same = {"gpt.n_layers": config.model.n_layers, "fp16.enabled": False}
    assert resolve(tree, "tiny", overrides=same).options.tokens_per_second == 1000
    for path, value, name in (
        ("gpt.h_dim", 256, "h_dim"),
        ("bf16.enabled", True, "precision"),
    ):
        for file in (tree, config.tree()):
            changed = resolve(file, "tiny", overrides={path: value})
            assert changed.options.tokens_per_second is None
            words = "is that of the file's model, and the command line changes"
            assert any(words in notice and name in notice for notice in changed.notices)


def test_as_many_flops_in_another_shape_are_another_model():
    tree = load(CLASS).tree()
    heads = {"gpt.n_heads": 6, "gpt.head_dim": 128}
    changed = resolve(tree, "24h", overrides=heads)
    assert changed.model.matmul_flops_per_token() == load(CLASS).model.matmul_flops_per_token()
    assert changed.options.tokens_per_second is None


@pytest.mark.parametrize(
    "path, value, name",
    [
        ("gpt.seq_len", 1024, "seq_len"),  # 512 by default
        ("gpt.vocab_size", 64, "vocab_size"),
    ],
)
def test_what_the_file_leaves_open_is_the_files_too(path, value, name):
    tree = tiny_run(gpt={"tokens_per_second": 1000.0, "seq_len": None, "vocab_size": None})
    changed = resolve(tree, "tiny", overrides={"gpt.vocab_size": 128, path: value})
    assert changed.options.tokens_per_second is None
    assert any(name in notice for notice in changed.notices if "no reference hours" in notice)


def test_a_file_that_does_not_say_its_precision_means_its_own():
    tree = tiny_run(fp16={"enabled": True}, gpt={"tokens_per_second": 1000.0})
    fallback = resolve(tree, "tiny").without_fp16("no GPU here")
    assert fallback.options.tokens_per_second is None
    # of the run as it is here
    given = resolve(tree, "tiny", overrides={"gpt.tokens_per_second": 500.0})
    options = given.without_fp16("no GPU here").options
    assert (options.tokens_per_second, options.reference_precision) == (500, "fp32")


def test_without_fp16_its_throughput_is_not_the_runs():
    config = load(CLASS).without_fp16("no GPU here")
    assert config.options.tokens_per_second is None
    assert "no reference hours: tokens_per_second was measured in fp16" in config.notices


MODEL_FILE = "def build(shape, base=1): ...\n"


@pytest.fixture
def own(tmp_path):
    """A run of a model file, whose throughput a class states as tools/throughput.py writes it."""
    (tmp_path / "own.py").write_text(MODEL_FILE)
    code = {"model_file": str(tmp_path / "own.py"), "model_options": {"base": 3}}
    gpt = {**code, "n_heads": 4}
    tree = tiny_run(gpt=gpt)
    digest = resolve(tree, "tiny").model_digest
    stated = {
        "tokens_per_second": 1000.0,
        "reference_flops_per_token": 12345,
        "reference_model": digest,
        "reference_precision": "fp32",
    }
    return tiny_run(gpt={**gpt, **stated})


def test_a_throughput_belongs_to_its_model_file(own, tmp_path):
    config = resolve(own, "tiny")
    # the FLOPs follow from the file, and are not known yet
    assert config.options.tokens_per_second == 1000 and not config.notices
    assert resolve(config.tree(), "tiny").options == config.options
    # the same file elsewhere, and what makes no other model
    (tmp_path / "copy.py").write_text(MODEL_FILE)
    same = {"gpt.model_file": str(tmp_path / "copy.py"), "gpt.model_options.base": 3, "gpt.seed": 5}
    assert resolve(own, "tiny", overrides=same).options.tokens_per_second == 1000


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"gpt.model_options.base": 4}, "measured for another model: its file, its options or its"),
        ({"gpt.n_layers": 3}, "measured for another model: its file, its options or its shape"),
        ({"gpt.model_file": None, "gpt.model_options": None}, "measured for another model"),
        ({"bf16.enabled": True}, "measured in fp32, and this run is in bf16"),
    ],
    ids=str,
)
def test_another_model_than_the_files_has_no_reference_hours(own, overrides, words):
    config = resolve(own, "tiny", overrides=overrides)
    assert config.options.tokens_per_second is config.options.reference_model is None
    assert [words in notice for notice in config.notices] == [True]


def test_a_model_file_that_was_edited_has_no_reference_hours(own):
    Path(own["gpt"]["model_file"]).write_text(f"{MODEL_FILE}# faster\n")
    config = resolve(own, "tiny")
    assert config.options.tokens_per_second is None
    assert "its file, its options or its shape was another" in config.notices[0]


def test_the_gpts_throughput_is_none_of_a_model_file(own):
    gpts = resolve(tiny_run(gpt={"tokens_per_second": 1000.0}), "tiny")
    flops = gpts.model.matmul_flops_per_token()
    overrides = {"gpt.model_file": own["gpt"]["model_file"]}
    for stated in ({}, {"reference_flops_per_token": flops}):
        tree = tiny_run(gpt={"tokens_per_second": 1000.0, **stated})
        assert resolve(tree, "tiny").options.tokens_per_second == 1000
        assert resolve(tree, "tiny", overrides=overrides).options.tokens_per_second is None
    # one of the command line is that of the run as it is, whatever the file states of the GPT
    given = {**overrides, "gpt.tokens_per_second": 500.0}
    config = resolve(tree, "tiny", overrides=given)
    assert config.options.tokens_per_second == 500
    assert config.options.reference_model == config.model_digest
    assert config.options.reference_flops_per_token is None


def test_a_file_that_does_not_say_is_taken_at_its_word_of_a_model_file_too(own):
    gpt = {**own["gpt"], "reference_flops_per_token": None, "reference_model": None}
    tree = tiny_run(gpt=gpt)
    assert resolve(tree, "tiny").options.tokens_per_second == 1000
    changed = resolve(tree, "tiny", overrides={"gpt.model_options.base": 4})
    assert changed.options.tokens_per_second is None
    assert "the command line changes model_options" in changed.notices[0]

"""Which splits eval.py takes, its tables, and the mistakes that it names."""

import pytest
from conftest import load_command

from gpt.checkpoint.weights import write_folder
from gpt.config.saved import foreign_config, read_config, write_config
from gpt.config.shape import ModelConfig
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.model import GPT


@pytest.fixture(scope="module")
def evaluator():
    return load_command("eval", "gpt")


@pytest.mark.parametrize(
    "asked, names",
    [
        ("test", ["test"]),
        ("all", ["test", "python"]),
        ("python,test", ["python", "test"]),
        ("test, train,test", ["test", "train"]),
    ],
)
def test_splits_by_name(asked, names, sample, evaluator):
    assert evaluator.splits_named(asked, Dataset(sample)) == names


@pytest.mark.parametrize(
    "asked, wrong",
    [
        ("java", "'java'"),
        ("test,java", "'java'"),
        ("test,", "''"),
        ("", "''"),
        ("all,test", "'all'"),
    ],
)
def test_splits_that_are_not_there(asked, wrong, sample, evaluator):
    with pytest.raises(UserError, match=f"has no split {wrong}: it has train, test, python"):
        evaluator.splits_named(asked, Dataset(sample))


def result(split, value):
    names = ("normalised_ppl", "bits_per_byte", "loss", "ppl", "top1", "top10")
    return {
        "split": split,
        "checkpoint": "w",
        "dataset": "d",
        "seq_len": 8,
        "last_n": 4,
        **dict.fromkeys(names, value),
        "tokens": 1234,
        "bytes": 5678,
        "languini": {"normalised_ppl": value + 1},
    }


def test_tables(evaluator, capsys):
    results = [result("test", 2.0), result("java", float("nan"))]
    assert evaluator.markdown(results).splitlines()[4:] == [
        "| test | 2.0000 | 2.0000 | 2.0000 | 2.00 | 2.0000 | 2.0000 | 1,234 | 5,678 | 3.0000 |",
        "| java | nan | nan | nan | nan | nan | nan | 1,234 | 5,678 | nan |",
    ]
    evaluator.show_table(results)
    head, first, second = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[:3] == ["split", "normalised", "ppl"] and first.split() == [
        "test",
        *["2.0000"] * 3,
        "2.00",
        "2.0000",
        "2.0000",
        "1,234",
        "5,678",
        "3.0000",
    ]
    assert len(head) == len(first) == len(second)


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_files_that_cannot_be_written_are_told_first(option, tmp_path, load_tool):
    (tmp_path / "weights").touch()
    for file in (tmp_path, tmp_path / "no" / "file"):
        told = load_tool("eval", "gpt").mistake(
            "--checkpoint_file", tmp_path / "weights", option, file
        )
        assert f"{option} {file}: give the name of a file in a folder that exists" in told


@pytest.fixture(scope="module")
def weights(sample, tmp_path_factory):
    shape = ModelConfig(
        n_layers=1, h_dim=8, mlp_dim=8, n_heads=1, head_dim=8, vocab_size=2048, seq_len=16
    )
    folder = tmp_path_factory.mktemp("weights") / "w"
    write_folder(
        folder,
        GPT(shape).state_dict(),
        foreign_config("w", 0, shape, Dataset(sample).vocab.fingerprint),
        b"",
        {},
    )
    return folder / "model.safetensors"


MISTAKES = [
    (["--batch_size", "0"], "--batch_size 0: give a positive number"),
    (
        ["--seq_len", "17"],
        (
            "--seq_len 17 is longer than the 16 positions that the model was trained with: give at"
            " most 16"
        ),
    ),
    (["--last_n", "17"], "--last_n 17 is more than the 16 targets of a window: give at most 16"),
    (
        ["--last_n", "9", "--seq_len", "8"],
        "--last_n 9 is more than the 8 targets of a window: give at most 8",
    ),
    (["--device", "gpu"], "--device gpu is not to be had here: "),
    (
        ["--data_root", ""],
        (
            "{folder}/config.yaml does not tell which dataset the model was trained on: give"
            " --data_root"
        ),
    ),
    (["--data_root", "nowhere"], "nowhere holds no dataset (no manifest.json)"),
    (
        ["--config_file", "no.yaml"],
        "cannot read no.yaml: No such file or directory; the config.yaml that was written beside",
    ),
    (
        ["--checkpoint_file", "{folder}"],
        "{folder} is a folder: give the file {folder}/model.safetensors",
    ),
    (
        ["--checkpoint_file", "."],
        (
            ". is a folder without model.safetensors: consolidate a checkpoint with `python"
            " tools/zero_to_fp32.py"
        ),
    ),
    (
        ["--checkpoint_file", "no.safetensors"],
        "no.safetensors does not exist: consolidate a checkpoint with `python tools/",
    ),
]


@pytest.mark.parametrize(
    "options, sentence", [pytest.param(*case, id=" ".join(case[0])) for case in MISTAKES]
)
def test_mistakes(options, sentence, weights, sample, load_tool):
    given = [
        "--checkpoint_file",
        weights,
        "--data_root",
        sample,
        *(word.format(folder=weights.parent) for word in options),
    ]
    assert (
        load_tool("eval", "gpt").mistake(*given).startswith(sentence.format(folder=weights.parent))
    )


def test_another_tokenizer_is_a_mistake(weights, sample, evaluator, tmp_path, monkeypatch):
    config = read_config(weights.with_name("config.yaml"))
    write_config(tmp_path / "config.yaml", {**config, "dataset": {"tokenizer": "0" * 64}})
    monkeypatch.setattr(
        "sys.argv",
        [
            "eval.py",
            "--checkpoint_file",
            str(weights),
            "--data_root",
            str(sample),
            "--config_file",
            str(tmp_path / "config.yaml"),
        ],
    )
    with pytest.raises(
        UserError,
        match=(
            "was made with another tokenizer than the model was trained with: prepare the text with"
        ),
    ):
        evaluator.main()

"""Which splits and texts eval.py takes, its tables, and the mistakes that it names."""

import hashlib
import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load_command
from safetensors.torch import save_file

from gpt.checkpoint.weights import load_model, write_folder
from gpt.config.saved import foreign_config, read_config, write_config
from gpt.config.shape import ModelConfig
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.evaluation import Evaluator, summary
from gpt.model import GPT
from gpt.results import document_sums, score_tables


@pytest.fixture(scope="module")
def evaluator():
    return load_command("eval", "gpt")


@pytest.mark.parametrize(
    "selection, names",
    [
        ("test", ["test"]),
        ("all", ["test", "python"]),
        ("python,test", ["python", "test"]),
        ("test, train,test", ["test", "train"]),
    ],
)
def test_splits_by_name(selection, names, sample, evaluator):
    assert evaluator.splits_named(selection, Dataset(sample)) == names


@pytest.mark.parametrize(
    "selection, wrong",
    [
        ("java", "'java'"),
        ("test,java", "'java'"),
        ("test,", "''"),
        ("", "''"),
        ("all,test", "'all'"),
    ],
)
def test_splits_that_are_not_there(selection, wrong, sample, evaluator):
    with pytest.raises(UserError, match=f"has no split {wrong}: it has train, test, python"):
        evaluator.splits_named(selection, Dataset(sample))


def result(split, value):
    names = ("normalised_ppl", "bits_per_byte", "loss", "ppl", "top1", "top10")
    return {
        "split": split,
        "checkpoint": "w",
        "step": 7,
        "dataset": "d",
        "seq_len": 8,
        "last_n": 4,
        **dict.fromkeys(names, value),
        "tokens": 1234,
        "bytes": 5678,
        "languini": {"normalised_ppl": value + 1, "tokens": 1000},
    }


def test_tables():
    results = [result("test", 2.0), result("java", float("nan"))]
    assert score_tables.as_markdown(results).splitlines()[4:] == [
        "| test | 2.0000 | 2.0000 | 2.0000 | 2.00 | 2.0000 | 2.0000 | 1,234 | 5,678 | 3.0000 |",
        "| java | nan | nan | nan | nan | nan | nan | 1,234 | 5,678 | nan |",
    ]
    head, first, second = score_tables.as_table(results).splitlines()[1:]
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


def test_what_the_seed_project_does_not_score_is_no_number():
    nan = float("nan")
    short = result("text", 2.0) | {"languini": {"normalised_ppl": nan, "ppl": nan, "tokens": 0}}
    lines = [line.split() for line in score_tables.in_full(short).splitlines()]
    assert ["normalised", "perplexity", "2.0000", "-"] in lines
    assert ["tokens", "scored", "1,234", "0"] in lines
    assert score_tables.as_markdown([short]).splitlines()[-1].endswith("| 5,678 | - |")
    # of a model that has diverged it is one
    diverged = result("text", nan) | {"languini": {"normalised_ppl": nan, "tokens": 7}}
    assert ["normalised", "perplexity", "nan", "nan"] in [
        line.split() for line in score_tables.in_full(diverged).splitlines()
    ]


def test_a_table_of_checkpoints_has_their_steps():
    results = [result("test", 2.0), result("test", 1.5) | {"checkpoint": "v", "step": 1234}]
    caption, head, first, second = score_tables.as_table(results).splitlines()
    assert caption.startswith("w … v on d (seq_len 8, last_n 4;")
    assert head.split()[:2] == ["split", "step"]
    assert (first.split()[1], second.split()[1]) == ("7", "1,234")


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_files_that_cannot_be_written_are_told_first(option, tmp_path, load_tool):
    (tmp_path / "weights").touch()
    for file in (tmp_path, tmp_path / "no" / "file"):
        sentence = load_tool("eval", "gpt").mistake(
            "--checkpoint_file", tmp_path / "weights", option, file
        )
        assert f"{option} {file}: give the name of a file in a folder that exists" in sentence


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk that is read only is made by root")
def test_a_folder_that_cannot_be_written_to_is_told_first(tmp_path, load_tool, run_command):
    disk = tmp_path / "disk"
    disk.mkdir()
    if run_command(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], tmp_path).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        (tmp_path / "weights").touch()
        sentence = load_tool("eval", "gpt").mistake(
            "--checkpoint_file", tmp_path / "weights", "--json", disk / "out.json"
        )
    finally:
        run_command(["umount", disk], tmp_path)
    assert sentence == (
        f"--json {disk}/out.json: nothing can be written into {disk}: give the name of a file in"
        " another folder"
    )


@pytest.fixture(scope="module")
def weights(sample, vocab, tmp_path_factory):
    shape = ModelConfig(
        n_layers=1, h_dim=8, mlp_dim=8, n_heads=1, head_dim=8, vocab_size=2048, seq_len=16
    )
    folder = tmp_path_factory.mktemp("weights") / "w"
    write_folder(
        folder,
        GPT(shape).state_dict(),
        foreign_config("w", 0, shape, Dataset(sample).vocab.fingerprint),
        vocab.model,
        {},
    )
    return folder / "model.safetensors"


def evaluated(monkeypatch, evaluator, out, *options):
    """The content of --json."""
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, options), "--json", str(out)])
    evaluator.main()
    return json.loads(out.read_text())


def test_plain_text_needs_no_dataset(weights, vocab, evaluator, tmp_path, monkeypatch):
    """Files are documents of one stream, a byte order mark and CRLF apart; what is scored is what
    prepare_data.py would make of them."""
    texts = ["厨房七点开门。\n The bread\n", "Seven breads later, nobody asks.\n" * 4]
    files = [tmp_path / "a.txt", tmp_path / "b.log", tmp_path / "empty.txt"]
    files[0].write_bytes(b"\xef\xbb\xbf" + texts[0].replace("\n", "\r\n").encode())
    files[1].write_text(texts[1])
    files[2].touch()
    figures = evaluated(
        monkeypatch, evaluator, tmp_path / "o.json", "--checkpoint_file", weights, "--text", *files
    )
    stream = [id for text in texts for id in (*vocab.encode(text), vocab.eod_id)]
    model = load_model(weights, read_config(weights.with_name("config.yaml")), "w")
    split = SimpleNamespace(tokens=np.array(stream), check_ids=lambda ids: None)
    expected = summary(Evaluator(split, vocab, 16, 16, 4).run(model))
    assert figures["bytes"] == len("".join(texts).encode())
    assert figures["tokens"] == figures["of_tokens"] == len(stream)
    for name in ("bits_per_byte", "normalised_ppl", "loss"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-6)


def summed(path):
    """{sum: of all documents} of a file of --per_document, by other means than its reader."""
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    names = ("nats", "tokens", "text_nats", "text_tokens", "bytes")
    return len(documents), {name: sum(one[name] for one in documents) for name in names}


def require_same_sums(sums, figures):
    assert sums["nats"] == pytest.approx(figures["total_loss"], rel=1e-9)
    assert sums["text_nats"] == pytest.approx(figures["text_nats"], rel=1e-9)
    for name in ("tokens", "text_tokens", "bytes"):
        assert sums[name] == figures[name]


def test_each_text_has_its_own_line(weights, vocab, evaluator, tmp_path, monkeypatch):
    texts = ["The bread\n", "Seven breads later, nobody asks.\n" * 4, "厨房七点开门。"]
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for file, text in zip(files, texts):
        file.write_text(text)
    figures = evaluated(
        monkeypatch,
        evaluator,
        tmp_path / "o.json",
        *("--checkpoint_file", weights, "--text", *files),
        *("--per_document", tmp_path / "a.jsonl"),
    )
    count, sums = summed(tmp_path / "a.jsonl")
    require_same_sums(sums, figures)
    documents = document_sums.read(tmp_path / "a.jsonl")
    assert count == 3 and documents.bytes.tolist() == [len(text.encode()) for text in texts]
    assert documents.tokens.tolist() == [len(vocab.encode(text)) + 1 for text in texts]
    assert documents.hashes == tuple(
        hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts
    )


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"abc\xffdef", "{file} is not UTF-8 at byte 3: convert it, for example with `iconv"),
        (b"", "no text is in {file}: give other files"),
        (None, "{file} is not a file: give text files, each a document"),
    ],
)
def test_texts_that_cannot_be_scored(content, sentence, weights, tmp_path, load_tool):
    file = tmp_path / "a.txt"
    if content is not None:
        file.write_bytes(content)
    mistake = load_tool("eval", "gpt").mistake("--checkpoint_file", weights, "--text", file)
    assert mistake.startswith(sentence.format(file=file)) and "\n" not in mistake


def test_weights_in_another_layout(weights, tmp_path, load_tool):
    """transformers' folder; other weights under ours' name; those of another model."""
    tool = load_tool("eval", "gpt")
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    file.write_bytes(weights.read_bytes())
    assert tool.mistake("--checkpoint_file", file).startswith(
        f"{tmp_path} is a model in the layout of transformers (config.json): bring it into ours"
        f" with `python tools/export_hf.py --back {tmp_path} OUT`, and give OUT"
    )
    folder = shutil.copytree(weights.parent, tmp_path / "w")
    save_file({"lm_head.weight": torch.zeros(2)}, folder / "model.safetensors")
    options = ["--checkpoint_file", folder / "model.safetensors", "--text", weights]
    assert "is not as it was written (its size or sha256 differs): make the folder again, or" in (
        tool.mistake(*options)
    )
    (folder / "checkpoint.json").unlink()
    options[-1] = tmp_path / "config.json"
    assert "does not fit its config.yaml: blocks.0.attn.c_proj.bias is missing: weights of" in (
        tool.mistake(*options)
    )


MISTAKES = [
    (["--text", "a.txt"], "--text and --data_root exclude each other: leave one out"),
    (
        ["--checkpoints", "runs"],
        "command line: argument --checkpoints: not allowed with argument --checkpoint_file",
    ),
    (["--join", "nowhere"], "nowhere holds no run (no metrics.jsonl): give --join the folder that"),
    (
        ["--per_document", "a.csv"],
        "a.csv is neither a .jsonl nor a .parquet file: let its name end in one of them",
    ),
    (
        ["--per_document", "no/a.jsonl"],
        "--per_document no/a.jsonl: give the name of a file in a folder that exists",
    ),
    (
        ["--per_document", "a.jsonl", "--eval_data_split", "all"],
        "--per_document holds the documents of one split, and --eval_data_split names 2: name one",
    ),
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


def test_documents_are_of_one_result(tmp_path, load_tool):
    assert (
        load_tool("eval", "gpt").mistake(
            "--checkpoints", tmp_path, "--per_document", tmp_path / "a.jsonl"
        )
        == "--checkpoints and --per_document exclude each other: leave one out"
    )


@pytest.mark.parametrize(
    "options, sentence", [pytest.param(*case, id=" ".join(case[0])) for case in MISTAKES]
)
def test_mistakes(options, sentence, weights, sample, load_tool):
    arguments = [
        "--checkpoint_file",
        weights,
        "--data_root",
        sample,
        *(word.format(folder=weights.parent) for word in options),
    ]
    assert (
        load_tool("eval", "gpt")
        .mistake(*arguments)
        .startswith(sentence.format(folder=weights.parent))
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
            "has another tokenizer than the one that the model was trained with: prepare the text"
        ),
    ):
        evaluator.main()


def test_no_number_is_measured_on_tokens_that_are_not_as_they_were_written(
    weights, sample, tmp_path, load_tool
):
    shutil.copytree(sample, tmp_path / "data")
    path = tmp_path / "data" / "test" / "tokens.bin"
    path.write_bytes(bytes(path.stat().st_size))
    options = ["--checkpoint_file", weights, "--data_root", tmp_path / "data"]
    mistake = load_tool("eval", "gpt").mistake(*options)
    assert mistake.startswith(f"{path} is not as it was written (its sha256 is another than in")
    assert "is not as it was written" in load_tool("eval", "gpt").mistake(
        *options, "--eval_data_split", "all"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_a_full_disk_under_a_result(option, weights, tmp_path, load_tool):
    (tmp_path / "a.txt").write_text("Some words to score.")
    sentence = load_tool("eval", "gpt").mistake(
        "--checkpoint_file", weights, "--text", tmp_path / "a.txt", option, "/dev/full"
    )
    assert sentence == (
        f"{option} /dev/full cannot be written (No space left on device): make room, or give the"
        " name of a file in another folder"
    )


def config_with(place, value):
    """Sets a value of config.yaml, None to leave it out."""

    def edit(config):
        *blocks, name = place.split(".")
        for block in blocks:
            config = config.setdefault(block, {})
        config[name] = value

    return edit


BAD_CONFIGS = {
    "no target": (config_with("run.gpt.last_n", -1), "last_n is -1"),
    "text for a number": (config_with("run.gpt.last_n", "x"), "last_n is 'x'"),
    "no block": (config_with("run.gpt", "x"), "run.gpt is"),
    "no path": (config_with("dataset.root", 5), "dataset.root is 5"),
    "a list for a split": (config_with("run.gpt.eval_data_split", ["a"]), "eval_data_split is"),
    "ten thousand layers": (
        config_with("model.n_layers", 10_000),
        "holds 17 tensors, and the model has 10000 layers: use the config.yaml that was written",
    ),
}


@pytest.mark.parametrize("edit, words", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_that_was_edited_by_hand(edit, words, weights, tmp_path, load_tool):
    config = read_config(weights.with_name("config.yaml"))
    if edit is BAD_CONFIGS["ten thousand layers"][0]:
        del config["run"]["gpt"]["n_layers"]
    edit(config)
    write_config(tmp_path / "config.yaml", config)
    (tmp_path / "a.txt").write_text("Some words to score.")
    sentence = load_tool("eval", "gpt").mistake(
        "--checkpoint_file",
        weights,
        "--config_file",
        tmp_path / "config.yaml",
        "--text",
        tmp_path / "a.txt",
    )
    assert words in sentence and "\n" not in sentence


def test_a_model_without_its_dataset_is_told_both_ways(weights, tmp_path, monkeypatch, load_tool):
    config = read_config(weights.with_name("config.yaml"))
    config_with("dataset.root", "data/books")(config)
    write_config(tmp_path / "config.yaml", config)
    monkeypatch.chdir(tmp_path)
    sentence = load_tool("eval", "gpt").mistake(
        *("--checkpoint_file", weights, "--config_file", "config.yaml")
    )
    assert sentence == (
        "config.yaml tells of a model that was trained on data/books, which is not there as seen"
        f" from {tmp_path}: name the dataset by --data_root, or text files by --text"
    )

"""The seed project's books and checkpoints, imported, against its loader, model and evaluation
written again."""

import io
import json
import os
import pickle
import sys

import numpy as np
import pytest
import seed_project
import sentencepiece
import torch
from conftest import ROOT
from seed_project import TEXTS, random_documents

from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.weights import load_model
from gpt.config.saved import read_config
from gpt.convert import languini_books
from gpt.convert.languini_books import import_dataset
from gpt.convert.languini_weights import import_weights
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.evaluation import Evaluator, summary

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB = "books_2048"


@pytest.fixture(scope="module")
def vocab(sample):
    return Vocab.load(sample / "tokenizer.model")


@pytest.fixture(scope="module")
def pieces(vocab):
    return sentencepiece.SentencePieceProcessor(model_proto=vocab.model)


@pytest.fixture
def books(tmp_path, pieces):
    texts = {f"text {i}": pieces.encode(text) for i, text in enumerate(TEXTS)}
    splits = {
        "train": random_documents("a", 30, 90, 1),
        "test": texts,
        "stats": random_documents("s", 3, 300, 2),
        "wood": {"w": [*range(300, 341)]},
    }
    return seed_project.write_books(tmp_path / "books", splits)


def imported(books, vocab, out):
    said = []
    import_dataset(books, VOCAB, vocab, out, say=said.append)
    return Dataset(out), said


@pytest.mark.parametrize("count, seq_len", [(1, 16), (3, 33), (8, 7), (30, 64)])
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_batches_are_those_of_the_seed_projects_loader(
    count, seq_len, chunk, books, vocab, tmp_path, monkeypatch
):
    monkeypatch.setattr(languini_books, "CHUNK", chunk)
    dataset, _ = imported(books, vocab, tmp_path / "out")
    streams = Streams(dataset.split("train"), count, seq_len)
    theirs = seed_project.batches(books, "train", VOCAB, count, seq_len)
    # beyond the end, where each stream begins again
    for step in range(3000 // seq_len // count + 3):
        assert streams.batch(step).tolist() == next(theirs)


def test_a_dataset_holds_all_splits_that_exist(books, vocab, tmp_path):
    np.save(books / "file_list_mine.npy", np.array([("files/x.npy", "1")]))
    dataset, said = imported(books, vocab, tmp_path / "out")
    assert dataset.split_names == ["train", "test", "stats", "wood"]
    assert (
        said[0]
        == "notice: not imported, being none of the seed project's lists: file_list_mine.npy"
    )
    assert said[2].startswith(
        f"test: 3 documents, {sum(len(text.encode()) for text in TEXTS):,} bytes, "
    )
    assert (tmp_path / "out/tokenizer.model").read_bytes() == vocab.model
    for name in dataset.split_names:
        split = dataset.split(name)
        assert split.tokens.tolist() == list(
            seed_project.tokens_of(seed_project.queues(books, name, VOCAB, 1)[0])
        )
        assert (
            split.names()
            == np.load(books / f"file_list_{seed_project.LISTS[name]}.npy")[:, 0].tolist()
        )
    assert dataset.split("test").doc_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    facts = json.loads((tmp_path / "out/manifest.json").read_text())
    assert facts["provenance"]["file_lists"].keys() == {
        f"file_list_{seed_project.LISTS[name]}.npy" for name in facts["splits"]
    }


def test_ends_of_documents_inside_documents_stay_and_are_told(books, vocab, tmp_path):
    seed_project.write_books(tmp_path / "b", {"test": {"a": [5, 2, 6], "b": [2, 7]}})
    dataset, said = imported(tmp_path / "b", vocab, tmp_path / "out")
    assert dataset.split("test").tokens.tolist() == [5, 2, 6, 2, 2, 7, 2]
    assert said[0].endswith("; 2 end-of-document ids stand inside documents, of 0 bytes each")


def test_ids_in_four_bytes(vocab, tmp_path):
    seed_project.write_books(tmp_path / "b", {"test": {"a": [5, 6]}}, dtype=np.uint32)
    dataset, _ = imported(tmp_path / "b", vocab, tmp_path / "out")
    assert (
        dataset.split("test").tokens.tolist() == [5, 6, 2]
        and dataset.split("test").tokens.dtype == "<u2"
    )


def replace(name, value):
    """Puts an array, or bytes, in the place of a file."""

    def damage(books):
        if isinstance(value, bytes):
            (books / name).write_bytes(value)
        else:
            np.save(books / name, value, allow_pickle=True)

    return damage


def first_rows(*rows):
    return replace("file_list_test_iid.npy", np.array(rows))


TEXT0 = f"{VOCAB}/files/text 0.npy"
ENTRY = "files/text 0.npy"
BAD_BOOKS = {
    "no lists": (
        lambda books: [path.unlink() for path in books.glob("*.npy")],
        "holds none of the file lists file_list_{{train,",
    ),
    "no vocabulary": (
        lambda books: os.rename(books / VOCAB, books / "x"),
        "{books}/books_2048 is not a folder: --root takes",
    ),
    "no file": (
        lambda books: (books / TEXT0).unlink(),
        "{books}/" + TEXT0 + " is missing, and {books}/file_list_test_iid.npy names it",
    ),
    "fewer tokens": (
        replace(TEXT0, np.array([5, 6], np.uint16)),
        TEXT0 + " holds 2 tokens, and {books}/file_list_test_iid.npy says",
    ),
    "signed ids": (
        replace(TEXT0, np.array([5, 6])),
        "holds int64 of the shape (2,), not a row of uint16 or uint32 ids",
    ),
    "a table": (
        replace(TEXT0, np.zeros((2, 2), np.uint16)),
        "holds uint16 of the shape (2, 2), not a row",
    ),
    "objects": (
        replace(TEXT0, np.array([{}], object)),
        TEXT0 + " is not a plain .npy file (damaged, or pickled objects, which",
    ),
    "a pickle": (replace(TEXT0, pickle.dumps([1, 2])), TEXT0 + " is not a plain .npy file"),
    "no content": (replace(TEXT0, b""), TEXT0 + " is not a plain .npy file"),
    "half a file": (
        lambda books: os.truncate(books / TEXT0, 130),
        TEXT0 + " is not a plain .npy file",
    ),
    "a zip": (replace(TEXT0, b"PK\x03\x04zip"), TEXT0 + " is not a plain .npy file"),
    "ids too large": (
        first_rows(("files/big.npy", "2")),
        "files/big.npy holds the id 2048, and {tokenizer} has 2048: give the tokenizer",
    ),
    "no text": (
        first_rows(("files/ends.npy", "2")),
        "files/ends.npy holds no text, only special ids: tokenise that book again",
    ),
    "no count": (
        first_rows((ENTRY, "many")),
        "file_list_test_iid.npy, row 1: 'many' is no number of tokens: get the file anew",
    ),
    "none counted": (first_rows((ENTRY, "0")), "row 1: '0' is no number of tokens"),
    "a path out": (
        first_rows(("../x.npy", "1")),
        "row 1: '../x.npy' lies outside of {books}/books_2048: get the file anew",
    ),
    "a path from the root": (
        first_rows(("/etc/x.npy", "1")),
        "row 1: '/etc/x.npy' lies outside of",
    ),
    "one column": (
        first_rows(ENTRY),
        "file_list_test_iid.npy is not a file list, two columns of text in a plain .npy file",
    ),
    "a list of objects": (
        replace("file_list_test_iid.npy", np.array([(ENTRY, 9)], object)),
        "is not a file list",
    ),
    "an empty list": (
        replace("file_list_test_iid.npy", np.zeros((0, 2), "U9")),
        "file_list_test_iid.npy names no document: get",
    ),
    "another end": (
        lambda books: None,
        "ends documents with the id 3, the seed project's loader with 2",
    ),
}


@pytest.mark.parametrize("damage, sentence", BAD_BOOKS.values(), ids=BAD_BOOKS)
def test_bad_books(damage, sentence, request, books, vocab, tmp_path):
    np.save(books / VOCAB / "files/big.npy", np.array([5, 2048], np.uint16))
    np.save(books / VOCAB / "files/ends.npy", np.array([2, 0], np.uint16))
    damage(books)
    if "another end" in request.node.callspec.id:
        model = io.BytesIO()
        options = dict(
            vocab_size=270,
            byte_fallback=True,
            user_defined_symbols="x,<D>",
            pad_id=-1,
            bos_id=1,
            eos_id=-1,
            unk_id=0,
            model_type="bpe",
            minloglevel=2,
        )
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b"]), model_writer=model, hard_vocab_limit=False, **options
        )
        vocab = Vocab(model.getvalue())
    with pytest.raises(UserError) as error:
        imported(books, vocab, tmp_path / "out")
    assert sentence.format(books=books, tokenizer=vocab.name) in str(
        error.value
    ) and "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"books"}  # nothing half made


def test_an_existing_folder_is_left_alone(books, vocab, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(
        UserError, match="out exists already: remove it first, or name another folder"
    ):
        imported(books, vocab, tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "x"


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_logits_are_those_of_the_seed_projects_model(prefix, vocab, tmp_path):
    state = seed_project.random_state(2048)
    file = seed_project.save(tmp_path / "model.pt", state, prefix)
    (tmp_path / "config.pickle").write_bytes(b"never opened")
    shape, step = import_weights(file, vocab, tmp_path / "out", head_dim=8)
    assert (shape.n_heads, shape.head_dim, shape.h_dim, shape.mlp_dim, shape.seq_len, step) == (
        4,
        8,
        24,
        40,
        32,
        100,
    )
    assert Checkpoint.open(tmp_path / "out").verify().step == 100
    assert sorted(os.listdir(tmp_path / "out")) == [
        "checkpoint.json",
        "config.yaml",
        "model.safetensors",
        "tokenizer.model",
    ]
    model = load_model(
        tmp_path / "out/model.safetensors",
        read_config(tmp_path / "out/config.yaml"),
        "out",
    ).double()
    tokens = torch.randint(2048, (3, 32), generator=torch.Generator().manual_seed(1))
    expected = seed_project.SeedGPT({name: value.double() for name, value in state.items()}, 8)(
        tokens
    )
    assert expected.std() > 0.5  # not all alike
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-10)


def printed(found):
    """The figures as the seed project's eval.py prints them."""
    return {
        name: f"{value:,}" if name in ("tokens", "bytes") else f"{value:.6f}"
        for name, value in found.items()
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
    dataset, _ = imported(books, vocab, tmp_path / "data")
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
    done = run_command(
        [
            *tool,
            "data",
            "--root",
            books,
            "--vocab",
            VOCAB,
            "--tokenizer",
            "spm.model",
            "--out",
            "data",
        ],
        tmp_path,
    )
    assert (
        done.returncode == 0
        and "wrote data; use it with --data_root data --vocab_size 2048" in done.stdout
    ), done.stderr
    command = [
        *tool,
        "checkpoint",
        "--file",
        "model.pt",
        "--head_dim",
        8,
        "--tokenizer",
        "spm.model",
        "--out",
        "model",
    ]
    done = run_command(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "fp32 parameters after step 100: 2 layers, h_dim 24, mlp_dim 40, 4 x 8 heads, vocabulary"
        " 2,048, seq_len 32" in done.stdout
    )
    evaluate = [
        sys.executable,
        ROOT / "gpt/eval.py",
        "--checkpoint_file",
        "model/model.safetensors",
        "--data_root",
        "data",
        "--last_n",
        8,
        "--eval_data_split",
        "all",
        "--json",
        "o.json",
        "--markdown",
        "o.md",
    ]
    done = run_command(evaluate, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "o.json").read_text())
    assert [result["split"] for result in results] == ["test", "stats", "wood"]  # all but train
    lines = (tmp_path / "o.md").read_text().splitlines()
    assert (
        len(lines) == 4 + 3
        and lines[2].startswith("| split | normalised ppl |")
        and lines[3].count("---:") == 9
    )
    seed = seed_project.SeedGPT(state, 8)
    for result, row in zip(results, lines[4:]):
        expected = seed_project.evaluation(seed, books, result["split"], VOCAB, pieces, 32, 8)
        # in fp32, where the last printed digit may differ
        assert result["languini"] == pytest.approx(expected, rel=1e-6)
        figures = [f"{result['normalised_ppl']:.4f}", f"{result['languini']['normalised_ppl']:.4f}"]
        assert row.startswith(f"| {result['split']} | {figures[0]} | ") and row.endswith(
            f" | {figures[1]} |"
        )
        assert f"{result['split']:5s}  {figures[0]:>14s}" in done.stdout


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def changed(name, value):
    """A damage of the state dict: a tensor is set, or taken out."""

    def damage(state):
        state = dict(state)
        if value is None:
            del state[name]
        else:
            state[name] = value(state[name]) if callable(value) else value
        return state

    return damage


LN = "layers.1.ln1.weight"
Q = "layers.1.attn.linear_Q.weight"
BAD_STATES = {
    "no embedding": (
        changed("input_embedding.weight", None),
        {},
        "lacks the matrix input_embedding.weight: it is not a checkpoint of",
    ),
    "no norm": (
        changed(LN, None),
        {},
        f"lacks {LN}: it is not a whole checkpoint of the seed project's GPT",
    ),
    "one more": (
        changed("layers.1.attn.gate", torch.ones(2)),
        {},
        "holds layers.1.attn.gate, which the seed project's GPT does not have",
    ),
    "another shape": (
        changed(Q, torch.ones(16, 24)),
        {},
        f"{Q} has the shape (16, 24), which should be (32, 24) by the other weights",
    ),
    "half precision": (
        changed(LN, torch.Tensor.half),
        {},
        f"{LN} is torch.float16, and the seed project keeps its weights in float32",
    ),
    "not finite": (
        changed(LN, lambda value: value / 0),
        {},
        f"{LN} holds values that are not finite: take an earlier checkpoint",
    ),
    "head_dim": (
        lambda state: state,
        {"head_dim": 5},
        "its heads are 32 wide together, which is no multiple of head_dim 5: give the head_dim",
    ),
    "head_dim 0": (
        lambda state: state,
        {"head_dim": 0},
        "--head_dim 0: give a positive number, such as 64",
    ),
    "preset": (
        lambda state: state,
        {"head_dim": None, "preset": "nano"},
        "is not the preset nano: it has n_layers 2 instead of 3, h_dim 24 instead",
    ),
    "no preset": (
        lambda state: state,
        {"head_dim": None, "preset": "smal"},
        "--preset smal (did you mean 'small'?): the presets are nano, mini,",
    ),
    "tokenizer": (
        lambda state: seed_project.random_state(2047),
        {},
        "has 2048 ids, and {file} was trained with 2047: give the tokenizer",
    ),
    "empty": (
        lambda state: {},
        {},
        "holds no model_state_dict with tensors, so it is not a model.pt of the seed project",
    ),
}


@pytest.mark.parametrize("damage, options, sentence", BAD_STATES.values(), ids=BAD_STATES)
def test_bad_weights(damage, options, sentence, vocab, tmp_path):
    file = seed_project.save(tmp_path / "model.pt", damage(seed_project.random_state(2048)))
    with pytest.raises(UserError) as error:
        import_weights(file, vocab, tmp_path / "out", **{"head_dim": 8, **options})
    assert sentence.format(file=file) in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["model.pt"]


BAD_FILES = {
    "missing": (
        None,
        "model.pt is not a file: --file takes the model.pt in the folder checkpoints of a run",
    ),
    "code": (
        lambda path: torch.save(
            {"model_state_dict": {}, "step": Trap(path.with_name("sprung"))}, path
        ),
        "holds code or types that a checkpoint does not need, and was not loaded",
    ),
    "a list": (lambda path: torch.save([1], path), "holds no model_state_dict with tensors"),
    "no step": (
        lambda path: torch.save({"model_state_dict": seed_project.random_state(2048)}, path),
        "does not tell its step",
    ),
    "text": (lambda path: path.write_text("hello"), "cannot be read as a checkpoint"),
    "half": (
        lambda path: os.truncate(seed_project.save(path, seed_project.random_state(2048)), 9000),
        "cannot be read as a checkpoint",
    ),
}


@pytest.mark.parametrize("write, sentence", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(write, sentence, vocab, tmp_path):
    file = tmp_path / "model.pt"
    if write:
        write(file)
    with pytest.raises(UserError, match=sentence):
        import_weights(file, vocab, tmp_path / "out", head_dim=8)
    # no code was run, nothing half made
    assert os.listdir(tmp_path) == (["model.pt"] if write else [])


BAD_COMMANDS = [
    ([], "command line: the following arguments are required: data|checkpoint"),
    (
        ["checkpoint", "--file", "m", "--tokenizer", "t", "--out", "o"],
        "one of the arguments --head_dim --preset is required",
    ),
    (
        ["checkpoint", "--file", "m", "--tokenizer", "t", "--out", "o", "--head_dim", "x"],
        "argument --head_dim: invalid int value: 'x'",
    ),
    (
        ["data", "--root", ".", "--vocab", "v", "--tokenizer", "t", "--out", "o"],
        "cannot read the tokenizer t: No such file",
    ),
]


def test_bad_commands(tmp_path, load_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, sentence in BAD_COMMANDS:
        assert sentence in load_tool("import_languini").mistake(*arguments)

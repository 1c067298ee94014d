"""From texts to a dataset: what it holds, that it is the same each time, and what a bad command is
told."""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from small_corpora import (
    BOOKS,
    book,
    build,
    check_split,
    every,
    files_of,
    in_order,
    names_of,
    write_texts,
)

from gpt.data.datasets import Dataset
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare import pipeline
from gpt.prepare.vocab_training import TOKENIZER_OPTIONS

COMMAND = [sys.executable, Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"]


@pytest.fixture
def books(tmp_path):
    return write_texts(tmp_path / "books", BOOKS)


def test_folder_with_a_rule(books, tmp_path):
    (books / "readme.md").write_text("not a document")
    out = build(books, tmp_path / "out", test_every=4)
    expected = every(BOOKS, 4)
    for split, texts in expected.items():
        check_split(out, split, texts)
    train = np.fromfile(out / "train" / "tokens.bin", "<u2").tolist()
    trained_on = sentencepiece.SentencePieceProcessor(
        model_file=str(out / "tokenizer.model")
    ).decode(train)
    assert all(text in trained_on for text in expected["train"].values())
    assert not any(text in trained_on for text in expected["test"].values())
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dtype"] == "<u2" and manifest["vocab_size"] == 300
    assert (
        manifest["tokenizer"]["sha256"]
        == hashlib.sha256((out / "tokenizer.model").read_bytes()).hexdigest()
    )
    assert Dataset(out).split_names == ["train", "test"]


def test_a_folder_per_split(tmp_path, vocab):
    texts = {
        "train": {"a.txt": "one", "deep/er/a.txt": "two"},
        "wood": {"a.txt": "three"},
        "test_iid": {"x.txt": "4"},
    }
    for split, documents in texts.items():
        write_texts(tmp_path / "in" / split, documents)
    out = build(tmp_path / "in", tmp_path / "out", vocab)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "tokenizer.model", *texts}
    for split, documents in texts.items():
        check_split(out, split, in_order(documents))


def test_the_same_texts_make_the_same_bytes(books, tmp_path):
    other = write_texts(tmp_path / "other", dict(reversed(BOOKS.items())))
    first, again, moved = (
        files_of(build(folder, tmp_path / out, test_every=4))
        for folder, out in [(books, "first"), (books, "again"), (other, "moved")]
    )
    assert len(first) == 2 + 2 * 5
    assert first == again == moved


def test_crlf_is_read_as_lf_and_byte_order_marks_are_left_out(tmp_path, vocab):
    raw = {
        "train/a.txt": b"one\r\ntwo\r\n\r\n",
        "train/b.txt": b"a\rb\n\r",
        "train/c.txt": "\ufeffé\r\n".encode(),
    }
    out = build(write_texts(tmp_path / "in", raw), tmp_path / "out", vocab)
    check_split(
        out, "train", in_order({"a.txt": "one\ntwo\n\n", "b.txt": "a\rb\n\r", "c.txt": "é\n"})
    )
    sizes = dict(zip(names_of(out, "train"), Dataset(out).split("train").doc_bytes.tolist()))
    assert sizes == {"a.txt": 9, "b.txt": 5, "c.txt": 3}
    manifest = json.loads((out / "manifest.json").read_text())
    assert (
        "CRLF" in manifest["text"]["line_ends"]
        and "left out" in manifest["text"]["byte_order_mark"]
    )
    assert manifest["splits"]["train"]["found"] == {
        "byte_order_mark": 1,
        "crlf": 2,
        "nul": 0,
        "bad_utf8": 0,
        "duplicate": 0,
        "also_held_out": 0,
    }


def test_texts_that_look_like_special_ids_stay_text(tmp_path, vocab):
    texts = {
        "a.txt": "<D>",
        "b.txt": "x<D><D>>\u2581\0y",
        "c.txt": "<pad><unk>\n\n",
        "new\nline.txt": " ",
    }
    out = build(write_texts(tmp_path / "in" / "train", texts).parent, tmp_path / "out", vocab)
    check_split(out, "train", in_order(texts))


def test_empty_files_are_left_out_and_counted(tmp_path, vocab):
    write_texts(tmp_path / "in" / "train", {"a.txt": "one", "b.txt": "", "c.txt": "\n"})
    out = build(tmp_path / "in", tmp_path / "out", vocab)
    check_split(out, "train", in_order({"a.txt": "one", "c.txt": "\n"}))
    assert json.loads((out / "manifest.json").read_text())["splits"]["train"]["left_out"] == {
        "empty": 1,
        "bad_utf8": 0,
        "duplicate": 0,
    }


def test_a_given_tokenizer_is_used_as_it_is(books, sample, tmp_path, run_command):
    options = ["--input", books, "--test_every", 4, "--out", tmp_path / "new" / "out"]
    done = run_command([*COMMAND, *options, "--tokenizer", sample / "tokenizer.model"], tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "new" / "out"
    assert (out / "tokenizer.model").read_bytes() == (sample / "tokenizer.model").read_bytes()
    for split, texts in every(BOOKS, 4).items():
        check_split(out, split, texts)
        assert f"{split}: {len(texts)} documents" in done.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


# Each case: the files that there are, the options, what the message holds.
BAD_COMMANDS = {
    "no folder": ({}, "--input in --test_every 2 --out place/out", "in is not a folder"),
    "no rule": (BOOKS, "--input in --out place/out", "--test_every N"),
    "too many held out": (
        BOOKS,
        "--input in --test_every 15 --out place/out",
        "no test document out of 14",
    ),
    "vocabulary too small": (
        BOOKS,
        "--input in --test_every 2 --vocab_size 259 --out place/out",
        "at least 260",
    ),
    "no vocabulary": (
        BOOKS,
        "--input in --test_every 2 --vocab_size 0 --out place/out",
        "--vocab_size 0",
    ),
    "not UTF-8": (
        {**BOOKS, "bad.txt": b"good \xff"},
        "--input in --test_every 15 --out place/out",
        "bad.txt is not UTF-8 at byte 5",
    ),
    "an empty path": (
        BOOKS,
        "--input= --test_every 2 --out place/out",
        "an empty path is not a folder",
    ),
    "an empty OUT": (BOOKS, "--input in --test_every 2 --out=", ". exists already"),
    "an empty tokenizer": (
        BOOKS,
        "--input in --test_every 2 --tokenizer= --out place/out",
        "cannot read the tokenizer",
    ),
    "OUT in the input": (
        BOOKS,
        "--input in --test_every 2 --out in/deep/out",
        "--out in/deep/out lies in --input in, and would be",
    ),
    "OUT exists": (BOOKS, "--input in --test_every 2 --out in", "in exists already"),
    "sample and more": (
        {},
        "--sample place/out --vocab_size 300",
        "--sample takes no other option",
    ),
    "unknown option": ({}, "--input in --bogus 3 --out place/out", "--bogus"),
    "nothing": ({}, "", "--input FOLDER"),
}


@pytest.mark.parametrize("texts, options, message", BAD_COMMANDS.values(), ids=BAD_COMMANDS.keys())
def test_bad_command(tmp_path, run_command, texts, options, message):
    (tmp_path / "place").mkdir()
    write_texts(tmp_path / "in", texts)
    before = files_of(tmp_path)
    done = run_command([*COMMAND, *options.split()], tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    if "usage:" not in done.stderr:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert list((tmp_path / "place").iterdir()) == []
    assert files_of(tmp_path) == before


LOSSY = {
    "dummy prefix": {"add_dummy_prefix": True},
    "removes blanks": {"remove_extra_whitespaces": True},
    "no bytes": {"byte_fallback": False, "hard_vocab_limit": False},
    # a byte for a byte: counting does not show it
    "newlines to blanks": {"normalization_rule_name": "nmt_nfkc"},
    "lower case": {"normalization_rule_name": "nmt_nfkc_cf"},
}


@pytest.mark.parametrize("options", LOSSY.values(), ids=LOSSY.keys())
def test_lossy_tokenizer_is_refused(tmp_path, options):
    model = io.BytesIO()
    lines = [line for i in range(9) for line in book(i).split("\n")]
    options = {**TOKENIZER_OPTIONS, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=300, minloglevel=2, **options
    )
    write_texts(tmp_path / "in" / "train", {"plain.txt": "The  ship\nof the captain. 😀"})
    (tmp_path / "place").mkdir()
    with pytest.raises(
        UserError, match="the tokenizer does not encode plain.txt without loss: use one"
    ):
        build(tmp_path / "in", tmp_path / "place" / "out", Vocab(model.getvalue(), "mine.model"))
    assert list((tmp_path / "place").iterdir()) == []


def test_out_exists_and_stays(books, tmp_path, vocab):
    write_texts(tmp_path / "out", {"mine": "precious"})
    with pytest.raises(
        UserError, match="out exists already: remove it first, or name another folder"
    ):
        build(books, tmp_path / "out", vocab, test_every=4)
    assert files_of(tmp_path / "out") == {"mine": b"precious"}


def test_a_link_is_no_new_folder(books, tmp_path, vocab):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(
        UserError, match="out exists already: remove it first, or name another folder"
    ):
        build(books, tmp_path / "out", vocab, test_every=4)


def test_a_folder_of_others_is_not_worked_in(books, tmp_path, vocab):
    write_texts(tmp_path / "out.preparing", {"mine": "precious"})
    with pytest.raises(
        UserError,
        match=(
            "out.preparing is where the dataset would be made, and holds other files: move them, or"
        ),
    ):
        build(books, tmp_path / "out", vocab, test_every=4)
    assert files_of(tmp_path / "out.preparing") == {"mine": b"precious"}


def test_an_interrupt_leaves_nothing_behind(tmp_path, vocab, monkeypatch):
    write_texts(tmp_path / "in" / "train", {"a.txt": "a"})
    monkeypatch.setattr(
        pipeline.Encoder, "encode", lambda encoder, text: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "in", tmp_path / "out", vocab)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]

"""Training a vocabulary on documents."""

import io
import json
import re
import subprocess
import sys

import pytest
import sentencepiece
from small_corpora import BOOKS, book, build, check_split, in_order, write_texts

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare import trainer_process
from gpt.prepare.texts import Document
from gpt.prepare.vocab_training import TOKENIZER_OPTIONS, train_tokenizer


def test_vocabulary_too_large_for_the_text():
    documents = [Document("a", book(1))]
    with pytest.raises(
        UserError, match="too little for a vocabulary of 16384: lower --vocab_size"
    ) as error:
        train_tokenizer(documents, 16384)
    largest = int(re.search(r"at most (\d+)", str(error.value))[1])
    assert train_tokenizer(documents, largest).size == largest


def test_no_text_to_train_on():
    with pytest.raises(UserError, match="the documents of `train` hold no text"):
        train_tokenizer([Document("a", ""), Document("b", "\n\n")], 300)


def test_a_trainer_that_is_ended_is_told(monkeypatch):
    for code in ("import os; os.abort()", "import sys; sys.stdin.read(); raise MemoryError"):
        monkeypatch.setattr(trainer_process, "COMMAND", [sys.executable, "-c", code])
        with pytest.raises(UserError) as error:
            train_tokenizer([Document("a", book(1))], 300)
        returncode = -6 if "abort" in code else 1
        assert str(error.value) == (
            f"the tokenizer's training ended with exit code {returncode}, for want of memory"
            " perhaps: free some, or give a tokenizer with --tokenizer"
        )


def test_a_trainer_whose_texts_end_early_makes_nothing():
    """As when the process that sends them is killed."""
    options = json.dumps({"vocab_size": 300, **TOKENIZER_OPTIONS}).encode()
    done = subprocess.run(
        trainer_process.COMMAND, input=options + b"\nsea\nship\n", capture_output=True
    )
    assert done.returncode == 1 and done.stdout == b""


def test_the_model_is_the_one_that_sentencepiece_trains_by_itself():
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    lines = book(1).split("\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=300, **TOKENIZER_OPTIONS
    )
    trained = train_tokenizer([Document("a", book(1))], 300)
    assert trained.fingerprint == Vocab(model.getvalue()).fingerprint


def test_vocabulary_too_small_for_the_characters():
    documents = [Document("a", " ".join(map(chr, range(0x4E00, 0x4E64))))]
    # 100 characters, the blank, 259 special ids
    with pytest.raises(UserError, match="300 .*raise --vocab_size"):
        train_tokenizer(documents, 300)


def test_a_tokenizer_is_trained_on_what_is_left(tmp_path):
    folder = write_texts(tmp_path / "in" / "train", {**BOOKS, "bad.txt": b"ship\xff"}).parent
    with pytest.raises(UserError, match="bad.txt is not UTF-8 at byte 4"):
        build(folder, tmp_path / "out", 300)
    out = build(folder, tmp_path / "out", 300, bad_utf8="skip")
    check_split(out, "train", in_order(BOOKS))
    (folder / "train" / "bad.txt").unlink()
    assert (build(folder, tmp_path / "good", 300) / "tokenizer.model").read_bytes() == (
        out / "tokenizer.model"
    ).read_bytes()

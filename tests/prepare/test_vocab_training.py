"""Training a vocabulary on documents."""

import re

import pytest
from small_corpora import BOOKS, book, build, check_split, in_order, write_texts

from gpt.errors import UserError
from gpt.prepare.texts import Document
from gpt.prepare.vocab_training import train_tokenizer


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

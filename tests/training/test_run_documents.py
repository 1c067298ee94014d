"""A dataset that changes under a run, or does not reach as far as it."""

import json
import shutil

import pytest
from conftest import read_metrics
from plain_run import train
from small_corpora import book, build, write_texts

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.training.run_documents import difference

TEXTS = {f"train/{name}.txt": book(name) for name in "abcdefghi"}
TEXTS |= {"test/t.txt": book("t"), "other/o.txt": book("o")}
REORDERED = "the same documents in another order, the first of them at place 1: b, where a was"
ORDERS = ([("a", "1"), ("b", "2")], [("b", "2"), ("a", "1")])


def dataset(folder, texts, sample):
    shutil.rmtree(folder, ignore_errors=True)
    inputs = write_texts(folder.with_name("texts"), texts)
    build(inputs, folder, vocab=Vocab.load(sample / "tokenizer.model"))
    shutil.rmtree(inputs)
    return str(folder)


@pytest.mark.parametrize(
    "before, now, words",
    [
        (*ORDERS, REORDERED),
        (ORDERS[0], ORDERS[0][:1], "1 document where it had 2, gone: b"),
        (ORDERS[0][:1], ORDERS[0], "2 documents where it had 1, new: b"),
        (ORDERS[0], [("a", "1"), ("c", "2")], "gone: b, new: c"),
        (ORDERS[0], [("a", "1"), ("b", "3")], "of another text: b"),
    ],
)
def test_a_difference_is_told_by_the_documents_names(before, now, words):
    assert difference(before, now) == words


def test_of_datasets_that_know_names_and_sizes_alone(sample, tmp_path):
    documents = [("a", "9 bytes"), ("b", "7 bytes")]
    words = "of the same names and sizes, and other texts"
    assert difference(documents, documents) == words


def test_what_changed_in_a_dataset_is_told_by_name(sample, tmp_path):
    root = dataset(tmp_path / "data", TEXTS, sample)
    run_dir = tmp_path / "run"
    train(run_dir, sample, gpt={"data_root": root, "max_train_steps": 1})
    changed = {**TEXTS, "train/b.txt": book("B"), "train/j.txt": book("j")}
    dataset(tmp_path / "data", changed, sample)
    gpt = {"data_root": root, "max_train_steps": 2}
    sentence = (
        r"dataset.train has other documents \(10 documents where it had 9, new: j.txt, of another"
        r" text: b.txt\)"
    )
    with pytest.raises(UserError, match=sentence):
        train(run_dir, sample, gpt=gpt)
    train(run_dir, sample, gpt=gpt, allowed=["dataset"])
    # and it is the one of now that a later change is held against
    kept = json.loads((run_dir / "documents.json").read_text())
    assert "j.txt" in [name for name, _ in kept["splits"]["train"]]


def test_a_split_that_no_number_comes_from_may_change(sample, tmp_path):
    root = dataset(tmp_path / "data", TEXTS, sample)
    train(tmp_path / "run", sample, gpt={"data_root": root, "max_train_steps": 1})
    dataset(tmp_path / "data", {**TEXTS, "other/o.txt": book("O")}, sample)
    train(tmp_path / "run", sample, gpt={"data_root": root, "max_train_steps": 2})
    assert [event["step"] for event in read_metrics(tmp_path / "run", "train")] == [1, 2]


def test_a_split_that_is_scored_may_not(sample, tmp_path):
    root = dataset(tmp_path / "data", TEXTS, sample)
    train(tmp_path / "run", sample, gpt={"data_root": root, "max_train_steps": 1})
    dataset(tmp_path / "data", {**TEXTS, "test/t.txt": book("T")}, sample)
    words = r"dataset.scored has other documents \(of another text: t.txt\)"
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", sample, gpt={"data_root": root, "max_train_steps": 2})
    (tmp_path / "run/documents.json").unlink()
    sizes = [len(book(seed).encode()) for seed in "tT"]
    words = rf"\(1 document of {sizes[0]} bytes, now 1 document of {sizes[1]} bytes\)"
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", sample, gpt={"data_root": root, "max_train_steps": 2})


def test_data_that_are_read_again_are_told(sample, tmp_path, capsys):
    root = dataset(tmp_path / "data", TEXTS, sample)
    gpt = {"data_root": root, "max_train_steps": 40, "eval_every": 40, "log_terminal_every": 0}
    trainer = train(tmp_path / "run", sample, gpt=gpt)
    tokens = len(trainer.dataset.split("train").tokens)
    passes = 40 * 8 * 32 / tokens
    out = capsys.readouterr().out
    assert (
        f"notice: the training data are read {passes:.2f} times: they have {tokens:,} tokens" in out
    )
    # the first window that reaches beyond the shortest of the eight streams
    streams = [0] * 8
    for count in trainer.dataset.split("train").doc_tokens.tolist():
        streams[streams.index(min(streams))] += count + 1
    step = 1 + min(streams) // 32
    assert out.count(f"notice: training data repeat from step {step} on: the shortest of 8") == 1
    first, last = read_metrics(tmp_path / "run", "eval")
    assert (first["passes"], last["passes"]) == (0, pytest.approx(passes))

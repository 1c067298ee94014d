"""tools/show_data.py: documents, their texts, batches in words, histograms."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from small_corpora import BOOKS, build, in_order, write_texts

from gpt.data import contents
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.errors import UserError

COMMAND = [sys.executable, Path(__file__).resolve().parents[2] / "tools" / "show_data.py"]
TEXTS = {**BOOKS, "short.txt": "é\x1b[31m\n", "x.txt": "<D> stays text"}


@pytest.fixture
def dataset(tmp_path, vocab):
    splits = {f"train/{name}": text for name, text in TEXTS.items()}
    folder = write_texts(tmp_path / "in", {**splits, "test/t.txt": "a test"})
    return Dataset(build(folder, tmp_path / "data", vocab))


def test_documents_and_their_texts(dataset):
    split = dataset.split("train")
    listed = contents.documents_of(split)
    assert [document["name"] for document in listed] == list(in_order(TEXTS))
    for document in listed:
        text = TEXTS[document["name"]]
        assert document["bytes"] == len(text.encode())
        assert document["tokens"] == len(dataset.vocab.encode(text))
        shown = contents.document_of(dataset, split, document["name"])
        assert shown == {**document, "text": text}
    with pytest.raises(UserError, match="train has no document 'none': --documents lists them"):
        contents.document_of(dataset, split, "none")


@pytest.mark.parametrize("count, seq_len", [(1, 40), (3, 16), (16, 700)])
def test_a_batch_in_words_is_the_batch(dataset, count, seq_len):
    streams = Streams(dataset.split("train"), count, seq_len)
    for index in (0, 5, 300):
        shown = contents.batch_of(dataset, streams, index, range(count))
        assert [row["row"] for row in shown] == list(range(count))
        documents = []
        for row, window in zip(shown, streams.batch(index)):
            ids = []
            for piece in row["pieces"]:
                tokens = [*dataset.vocab.encode(TEXTS[piece["document"]]), dataset.vocab.eod_id]
                ids += tokens[piece["first"] : piece["first"] + piece["tokens"]]
                assert piece["ends"] == (ids[-1] == dataset.vocab.eod_id)
                documents.append(piece["document"])
            assert ids == window.tolist()
            text = dataset.vocab.text_bytes(window).decode("utf-8", "replace")
            assert "".join(piece["text"] for piece in row["pieces"]) == text
        assert list(dict.fromkeys(documents)) == streams.documents(index)


def test_ids_that_are_none_of_the_vocabulary_s(dataset):
    split = dataset.split("train")
    path = dataset.root / "train" / "tokens.bin"
    path.write_bytes(b"\xff" * path.stat().st_size)
    name = split.names()[-1]
    for read in (
        lambda: contents.document_of(dataset, split, name),
        lambda: contents.batch_of(dataset, Streams(split, 2, 8), 0, range(2)),
        lambda: contents.histogram_of(dataset, split),
    ):
        with pytest.raises(UserError, match="is damaged: it holds the id 65535, and the tokenizer"):
            read()


def test_a_histogram_counts_all(dataset, monkeypatch):
    monkeypatch.setattr(contents, "AT_A_TIME", 7)
    split = dataset.split("train")
    counts = contents.histogram_of(dataset, split)
    by_id = Counter(split.tokens[:].tolist())
    assert counts["tokens"] == len(split.tokens) == sum(counts["token_bytes"].values())
    assert counts["bytes"] == sum(len(text.encode()) for text in TEXTS.values())
    assert counts["ids_never_met"] == dataset.vocab.size - len(by_id)
    assert {
        entry["id"]: entry["count"] for entry in counts["most_frequent"]
    }.items() <= by_id.items()
    frequencies = [entry["count"] for entry in counts["most_frequent"]]
    assert frequencies == sorted(by_id.values(), reverse=True)[: contents.SHOWN]
    assert sum(counts["document_tokens"].values()) == len(TEXTS)
    assert sum(size * count for size, count in counts["token_bytes"].items()) == counts["bytes"]


def test_the_commands_lines(dataset, run_command):
    root = dataset.root

    def shown(*options):
        done = run_command([*COMMAND, root, *options], root.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "train: 16 documents, " in shown()
    assert shown("--split", "test", "--documents").splitlines()[-1] == (
        "1 documents, 3 tokens on average, at most 3 ('t.txt')"
    )
    # what a terminal would obey is spelt out
    assert shown("--document", "short.txt") == "short.txt: 8 bytes, 8 tokens\né\\x1b[31m\n\n"
    batch = "--batch 2 --train_batch_size 4 --seq_len 16 --rank 1 --world_size 2".split()
    rows = json.loads(shown(*batch, "--json"))
    assert [row["row"] for row in rows] == [1, 3]
    lines = shown(*batch).splitlines()
    piece = rows[0]["pieces"][0]
    last = piece["first"] + piece["tokens"] - 1
    assert lines[:2] == ["row 1", f"  {piece['document']}: tokens {piece['first']} to {last}"]
    assert "documents, by their tokens" in shown("--histogram")


def test_a_reader_that_has_seen_enough(dataset):
    command = f"{sys.executable} {COMMAND[1]} {dataset.root} --documents | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.count("\n") == 1


BAD_COMMANDS = {
    "--batch 3": "--batch needs --train_batch_size and --seq_len: give those of the run",
    "--seq_len 3": "--seq_len is for --batch: give --batch N, or leave it out",
    "--batch 1 --train_batch_size 4 --seq_len 2147483647": (
        "no run has such a batch: it has 67,108,864 tokens at most"
    ),
    "--batch 3 --train_batch_size 4 --seq_len 8 --rank 2 --world_size 2": (
        "there is no rank 2 of 2: ranks count from 0"
    ),
    "--batch 3 --train_batch_size 99 --seq_len 8": "the split 'train' has 16 documents, fewer than",
    "--batch -1 --train_batch_size 4 --seq_len 8": "--batch counts from 0",
    "--split none --histogram": "has no split 'none': it has test, train",
}


def test_bad_commands(dataset, run_command):
    for options, message in BAD_COMMANDS.items():
        done = run_command([*COMMAND, dataset.root, *options.split()], dataset.root.parent)
        assert done.returncode == 2 and done.stdout == "", options
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr

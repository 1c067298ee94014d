"""Large text files cut into documents: nothing is lost, and cuts are where a reader would make
them."""

import random
import sys
from pathlib import Path

import pytest
from small_corpora import BOOKS, build, check_split, every, write_texts

from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.prepare import cuts, verify
from gpt.prepare.cuts import cut
from gpt.prepare.documents import documents
from gpt.prepare.inputs import find_inputs
from gpt.prepare.texts import NotUTF8, Reading

COMMAND = [sys.executable, Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"]
NO_RULE = False


def pieces_of(path, size, **reading):
    """{name: text} of the documents that a file is cut into."""
    texts = {}
    for entry in cut(find_inputs(path, NO_RULE), size):
        for document in documents(entry, Reading(**reading)):
            texts[document.name] = document.read()
    return texts


@pytest.fixture
def small_cuts(monkeypatch):
    monkeypatch.setattr(cuts, "SMALLEST", 10)


LINES = [
    "a\n",
    "the whale\n",
    "\n",
    "é" * 30,
    "😀😀😀\n\n",
    "ship\n\n\n",
    "\ufeff",
    "x" * 50,
    "a\u2028b\n",
]


def test_pieces_together_are_the_file(tmp_path, small_cuts):
    rng = random.Random(0)
    for number in range(200):
        text = "".join(rng.choices(LINES, k=rng.randrange(1, 60)))
        text = text.lstrip("\ufeff") or "a"
        path = write_texts(tmp_path, {f"{number}.txt": text}) / f"{number}.txt"
        size = rng.randrange(60, 400)
        pieces = pieces_of(path, size)
        assert "".join(pieces.values()) == text
        count = max(1, int(len(text.encode()) / size + 0.5))
        expected = [f"{number}.txt"]
        if count > 1:
            expected = [f"{number}.txt#{piece}" for piece in range(1, count + 1)]
        assert list(pieces) == expected
        for piece in pieces.values():
            assert 0 < len(piece.encode()) < 2.5 * size


def test_cuts_are_behind_paragraphs_or_else_lines_or_else_characters(tmp_path):
    paragraphs = "".join(f"{'line of a paragraph ' * 3}\n" * 4 + "\n" for _ in range(40))
    lines = "a line of its own\n" * 600
    windows = (f"{'line ' * 9}\r\n" * 4 + "\r\n") * 50
    characters = "é" * 6001
    files = {"p.txt": paragraphs, "l.txt": lines, "w.txt": windows, "c.txt": characters}
    folder = write_texts(tmp_path / "in", files)
    ends = {"p.txt": "\n\n", "l.txt": "\n", "w.txt": "\n\n", "c.txt": "é"}
    for file, text in files.items():
        pieces = list(pieces_of(folder / file, 2000).values())
        assert "".join(pieces) == text.replace("\r\n", "\n") and len(pieces) > 4
        assert all(piece.endswith(ends[file]) for piece in pieces)
        sizes = [len(piece.encode()) for piece in pieces]
        assert 1000 < min(sizes) and max(sizes) < 3000


def test_a_dataset_of_one_file(tmp_path, vocab):
    text = "\n\n".join(BOOKS.values())
    folder = write_texts(tmp_path / "in", {"input.txt": text, "small.txt": "a ship"})
    rows = '{"text": "' + "sea " * 2000 + '"}\n'
    write_texts(folder, {"rows.jsonl": rows})
    out = build(folder, tmp_path / "out", vocab, test_every=3, valid_every=4, cut_documents=1500)
    pieces = pieces_of(folder / "input.txt", 1500)
    whole = {"small.txt": "a ship", "rows.jsonl:1": "sea " * 2000}
    splits = every({**pieces, **whole}, 3)
    check_split(out, "test", splits["test"])
    dataset = Dataset(out)
    names = [name for split in dataset.split_names for name in dataset.split(split).names()]
    assert sorted(names) == sorted([*pieces, *whole])
    assert dataset.manifest["text"]["cut_documents"] == 1500
    inputs = find_inputs(folder, NO_RULE)
    reading = Reading(cut_documents=dataset.manifest["text"]["cut_documents"])
    assert verify.compare_with_source(dataset, inputs, reading) == []
    assert verify.compare_with_source(dataset, inputs, Reading()) != []


def test_a_mistake_is_at_the_files_own_byte(tmp_path):
    text = ("a line\n" * 1000).encode()
    path = tmp_path / "a.txt"
    path.write_bytes(text[:5000] + b"\xff" + text[5000:])
    with pytest.raises(NotUTF8, match=f"{path} is not UTF-8 at byte 5000:"):
        pieces_of(path, 1000)
    assert "\ufffd" in "".join(pieces_of(path, 1000, bad_utf8="replace").values())


def test_one_large_file_that_is_not_cut(tmp_path, vocab):
    with pytest.raises(
        UserError, match="--cut_documents 999 is too small: give 1000 bytes or more"
    ):
        build(write_texts(tmp_path / "a", BOOKS), tmp_path / "out", vocab, 2, cut_documents=999)
    folder = write_texts(tmp_path / "one", {"input.txt": "sea\n" * 3000})
    with pytest.raises(UserError, match="no test document out of 1: .*; --cut_documents BYTES"):
        build(folder, tmp_path / "out", vocab, 10)
    lines = []
    build(folder, tmp_path / "few", vocab, 4, cut_documents=1000, say=lines.append)
    assert (
        "notice: a run needs as many documents as its train_batch_size, and train has 9;"
        " --cut_documents BYTES makes several of a large text file"
    ) in lines


def test_the_command(tmp_path, sample, run_command):
    write_texts(tmp_path, {"enwik": "a line of text\n" * 800})
    options = "--input enwik --cut_documents 1000 --test_every 4 --valid_every 3 --out out"
    tokenizer = ["--tokenizer", sample / "tokenizer.model"]
    done = run_command([*COMMAND, *options.split(), *tokenizer], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == (
        "wrote out; train on it with --data_root out --vocab_size 2048 --eval_data_split valid"
    )
    provenance = Dataset(tmp_path / "out").manifest["provenance"]
    assert provenance["splits"] == "every 4-th document is test, then every 3-th document is valid"

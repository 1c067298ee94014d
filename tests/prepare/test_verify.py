"""tools/verify_data.py: any flipped byte is named, any count that is off, any document that is not
its source's."""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from packed_documents import reseal
from small_corpora import BOOKS, build, write_texts

from gpt.data import manifests
from gpt.data.datasets import Dataset
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.prepare import verify

COMMAND = [sys.executable, Path(__file__).resolve().parents[2] / "tools" / "verify_data.py"]
TEXTS = {
    **BOOKS,
    "empty.txt": "",
    "rows.jsonl": '{"text": "the whale <D>"}\n{"text": "ship \u2581"}\n',
    "crlf.txt": "sea\r\n",
}


@pytest.fixture
def prepared(sample, tmp_path):
    """The folder of a dataset `out` and its source `in`."""
    write_texts(tmp_path / "in", TEXTS)
    build(tmp_path / "in", tmp_path / "out", Vocab.load(sample / "tokenizer.model"), test_every=4)
    return tmp_path


def test_all_is_as_made(prepared, run_command):
    done = run_command([*COMMAND, "out", "--source", "in"], prepared)
    assert done.returncode == 0, done.stdout
    assert (
        done.stdout.splitlines()[0].endswith("all as made, and as the source")
        and done.stdout.count("\n") == 2
    )


def test_fields_of_other_names_are_known_by_the_dataset(sample, tmp_path, run_command):
    rows = [{"title": str(n), "id": 7, "body": f"the whale {n}"} for n in range(8)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_texts(tmp_path / "in", {"rows.jsonl": text})
    vocab = Vocab.load(sample / "tokenizer.model")
    fields = {"text_field": "body", "id_field": "title"}
    build(tmp_path / "in", tmp_path / "out", vocab, test_every=4, **fields)
    done = run_command([*COMMAND, "out", "--source", "in"], tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_file_of_any_flipped_byte_is_named(prepared):
    out, rng = prepared / "out", random.Random(0)
    manifest = manifests.read(out)
    files = [
        path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "manifest.json"
    ]
    assert len(files) == 1 + 2 * 5
    for path in files:
        content = path.read_bytes()
        for place in (0, len(content) - 1, *rng.sample(range(len(content)), 10)):
            path.write_bytes(flipped(content, place, 1 << rng.randrange(8)))
            assert verify.damaged_files(out, manifest) == [
                f"{path} is not as it was written: its sha256 is another than in the manifest"
            ]
        path.write_bytes(content)
    assert verify.damaged_files(out, manifest) == []


def test_any_flipped_byte_of_the_manifest_is_noticed_before_training(prepared):
    path, rng = prepared / "out" / "manifest.json", random.Random(0)
    content = path.read_bytes()
    for place in rng.sample(range(len(content)), 1000):
        path.write_bytes(flipped(content, place, 1 << rng.randrange(8)))
        with pytest.raises(UserError, match="manifest.json (is damaged|has format)"):
            manifests.read(prepared / "out")


def flipped(content, place, bits):
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


def test_the_command_names_the_file(prepared, run_command):
    path = prepared / "out" / "test" / "tokens.bin"
    path.write_bytes(flipped(path.read_bytes(), 5, 4))
    (prepared / "out" / "train" / "names.txt").unlink()
    done = run_command([*COMMAND, "out"], prepared)
    assert done.returncode == 1
    assert (
        done.stdout == "NOT AS IT WAS MADE: out/train/names.txt is missing\nNOT AS IT WAS MADE:"
        " out/test/tokens.bin is not as it was written: its sha256 is another than in the"
        " manifest\n"
    )


def remake(out, split, change):
    """Change the arrays of a split, {"tokens", "doc_tokens", "doc_bytes"}, and have the manifest
    say so."""
    folder = out / split
    arrays = {
        "tokens": np.fromfile(folder / "tokens.bin", "<u2"),
        "doc_tokens": np.load(folder / "doc_tokens.npy"),
        "doc_bytes": np.load(folder / "doc_bytes.npy"),
    }
    change(arrays)
    arrays["tokens"].tofile(folder / "tokens.bin")
    for name in ("doc_tokens", "doc_bytes"):
        np.save(folder / f"{name}.npy", arrays[name])
    manifest = manifests.read(out)
    manifest["splits"][split]["files"] = {
        file: hash_file(folder / file) for file in manifests.SPLIT_FILES
    }
    manifests.write(out, manifest)


def swap(name, i, j):
    def change(arrays):
        arrays[name][[i, j]] = arrays[name][[j, i]]

    return change


MISCOUNTS = {
    "bytes of two documents": (
        swap("doc_bytes", 0, 1),
        "train: 2 documents do not have the bytes that they should, the first is",
    ),
    "tokens of two documents": (
        swap("doc_tokens", 0, 1),
        "train: the ends of documents are not where doc_tokens.npy says",
    ),
    "bytes": (lambda arrays: arrays["doc_bytes"].__setitem__(2, 999), "bytes by doc_bytes.npy"),
    "an end within a document": (
        lambda arrays: arrays["tokens"].__setitem__(3, 2),
        "train: 1 documents do not have the bytes that they",
    ),
}


@pytest.mark.parametrize("change, message", MISCOUNTS.values(), ids=MISCOUNTS.keys())
@pytest.mark.parametrize("at_a_time", [7, 1 << 20])
def test_counts_that_do_not_add_up(prepared, monkeypatch, change, message, at_a_time):
    monkeypatch.setattr(verify, "AT_A_TIME", at_a_time)
    assert verify.miscounts(Dataset(prepared / "out"), "train") == []
    remake(prepared / "out", "train", change)
    assert verify.damaged_files(prepared / "out", manifests.read(prepared / "out")) == []
    mistakes = verify.miscounts(Dataset(prepared / "out"), "train")
    assert any(message in sentence for sentence in mistakes), mistakes


@pytest.mark.parametrize("at_a_time, of_a_task", [(7, 300), (1 << 20, 1 << 24)])
def test_texts_of_other_hashes_are_named(prepared, monkeypatch, at_a_time, of_a_task):
    monkeypatch.setattr(verify, "AT_A_TIME", at_a_time)
    monkeypatch.setattr(verify, "TOKENS_OF_A_TASK", of_a_task)
    path = prepared / "out" / "train" / "doc_hashes.npy"
    hashes = np.load(path)
    hashes[[3, 7, -1], 15] ^= 1
    np.save(path, hashes)
    reseal(prepared / "out")
    dataset = Dataset(prepared / "out")
    name = dataset.split("train").names()[3]
    assert verify.miscounts(dataset, "train") == [
        f"train: 3 documents have another text than doc_hashes.npy says, the first is {name!r}"
    ]
    assert verify.miscounts(dataset, "test") == []


def test_texts_are_looked_at_on_several_processes(prepared, monkeypatch):
    monkeypatch.setattr(verify, "TOKENS_OF_A_TASK", 300)
    path = prepared / "out" / "train" / "doc_hashes.npy"
    hashes = np.load(path)
    np.save(path, ~hashes)
    reseal(prepared / "out")
    documents = len(hashes)
    (sentence,) = verify.miscounts(Dataset(prepared / "out"), "train", workers=2)
    assert sentence.startswith(f"train: {documents} documents have another text than")


CHANGES = {
    "another letter": (
        lambda folder: write_texts(folder, {"b/book 1.txt": BOOKS["b/book 1.txt"].swapcase()}),
        "'b/book 1.txt' is another text in the source than in the dataset",
    ),
    "one more": (
        lambda folder: write_texts(folder, {"new.txt": "new"}),
        (
            "2 documents of the source are not in the dataset, and the manifest knows of 1 that"
            " were left out"
        ),
    ),
    "one less": (
        lambda folder: (folder / "crlf.txt").unlink(),
        "1 documents are not in the source, the first is 'crlf.txt' of t",
    ),
    "a row": (
        lambda folder: write_texts(
            folder, {"rows.jsonl": TEXTS["rows.jsonl"].replace("ship", "boat")}
        ),
        "'rows.jsonl:2' is another text",
    ),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES.keys())
def test_another_source(prepared, run_command, change, message):
    change(prepared / "in")
    done = run_command([*COMMAND, "out", "--source", "in"], prepared)
    assert done.returncode == 1 and done.stdout.count("\n") == 1 and message in done.stdout, (
        done.stdout
    )


def test_datasets_of_format_1_still_open(prepared):
    path = prepared / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[manifests.SEAL], manifest["provenance"]
    for split, entry in manifest["splits"].items():
        del entry["files"]["doc_hashes.npy"]
        (prepared / "out" / split / "doc_hashes.npy").unlink()
    manifest["format"] = 1
    path.write_text(json.dumps(manifest))
    assert Dataset(prepared / "out").split("train").doc_tokens.sum() > 0
    assert verify.miscounts(Dataset(prepared / "out"), "train") == []
    assert verify.damaged_files(prepared / "out", manifest) == []


def test_no_dataset(prepared, run_command):
    shutil.rmtree(prepared / "out")
    done = run_command([*COMMAND, "out"], prepared)
    assert done.returncode == 2 and "out holds no dataset" in done.stderr

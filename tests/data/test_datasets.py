"""Datasets on disk: what they hold, and what is said of every damage."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import sentencepiece
from packed_documents import EOD, pack, reseal

from gpt import files
from gpt.data import datasets, manifests
from gpt.data.datasets import Dataset
from gpt.data.manifests import SEAL, token_dtype
from gpt.data.streams import Streams
from gpt.errors import UserError
from gpt.prepare.documents import Input
from gpt.prepare.pipeline import prepare
from gpt.prepare.splits import Rule
from gpt.prepare.staging import Job
from gpt.prepare.vocab_training import TOKENIZER_OPTIONS

# by the hashes of their names
TEXTS = {"d": "four, for a change\n", "c": "three", "b": "two and a half\n", "a": "one\n"}


def build(folder, vocab, texts=TEXTS, test=None):
    splits = {"train": texts, "test": test or {"t": "a test\n", "u": "another test\n"}}
    inputs = [Input(*item, split, 9) for split, texts in splits.items() for item in texts.items()]
    prepare(inputs, folder, Job(Rule()), vocab, say=lambda text: None)
    return folder


@pytest.fixture
def small(tmp_path, vocab):
    return build(tmp_path / "small", vocab)


def test_ids_above_65535_are_stored_in_four_bytes(small, tmp_path):
    assert [token_dtype(size) for size in (300, 65_536, 65_537, 10**6)] == [
        "<u2",
        "<u2",
        "<u4",
        "<u4",
    ]
    documents = [[70_000, 3], [65_536], [299_999, 65_535, 4]]
    pack(small / "train", documents, "<u4")
    manifest = json.loads((small / "manifest.json").read_text())
    entry = manifest["splits"]["train"]
    entry.update(documents=3, tokens=9)
    manifests.write(small, {**manifest, "dtype": "<u4"})
    reseal(small)
    split = Dataset(small).split("train")
    with pytest.raises(
        UserError,
        match=r"tokens.bin is damaged: it holds the id 299999, and the tokenizer has \d+; prepare",
    ):
        Streams(split, 1, 8).batch(0)
    split.vocab_size = 300_000
    batch = Streams(split, 1, 8).batch(0)
    assert batch.tolist() == [[70_000, 3, EOD, 65_536, EOD, 299_999, 65_535, 4, EOD]]


def test_dataset_tells_what_it_holds(small, vocab):
    dataset = Dataset(small)
    assert dataset.split_names == ["train", "test"]
    assert dataset.vocab.fingerprint == vocab.fingerprint
    split = dataset.split("train")
    assert split.doc_bytes.tolist() == [len(text.encode()) for text in TEXTS.values()]
    assert len(split.tokens) == split.doc_tokens.sum() + 4
    with pytest.raises(UserError, match=r"small has no split 'wood': it has train, test$"):
        dataset.split("wood")
    with pytest.raises(UserError, match="has no split 'wood'"):
        dataset.documents("wood")


def test_documents_are_known_by_their_texts_whatever_the_tokenizer(small, tmp_path):
    dataset = Dataset(small)
    other_tokenizer = Dataset(build(tmp_path / "bytes", 280))
    other_names = Dataset(build(tmp_path / "names", 280, {"d": "one\n", **TEXTS, "a": "new"}))
    assert dataset.vocab.size != other_tokenizer.vocab.size
    for split in ("train", "test"):
        assert dataset.documents(split) == other_tokenizer.documents(split)
        hashes = np.load(small / split / "doc_hashes.npy")
        assert dataset.split(split).doc_hashes.tolist() == hashes.tolist()
    expected = [list(hashlib.sha256(text.encode()).digest()[:16]) for text in TEXTS.values()]
    assert dataset.split("train").doc_hashes.tolist() == expected
    assert dataset.documents("train") != dataset.documents("test")
    assert dataset.documents("train") != other_names.documents("train")
    assert dataset.documents("test") == other_names.documents("test")
    file = (small / "train" / "doc_hashes.npy").read_bytes()
    assert dataset.documents("train") == hashlib.sha256(file).hexdigest()


def as_format_2(folder):
    """Turn a dataset into one of before the hashes of texts."""
    manifest = manifests.read(folder)
    for split, entry in manifest["splits"].items():
        (folder / split / "doc_hashes.npy").unlink()
        del entry["files"]["doc_hashes.npy"]
    manifests.write(folder, {**manifest, "format": 2})
    return Dataset(folder)


def test_documents_of_datasets_of_before_are_known_by_their_tokens(small, vocab, tmp_path):
    new = Dataset(small).documents("train")
    old = as_format_2(small)
    assert old.split("train").doc_hashes is None
    assert old.documents("train").startswith("tokens:") and new not in old.documents("train")
    again = as_format_2(build(tmp_path / "again", vocab))
    assert old.documents("train") == again.documents("train")
    # another text of the same size under the same name
    text = TEXTS["a"].replace("o", "u")
    assert text != TEXTS["a"]
    other = as_format_2(build(tmp_path / "other", vocab, {**TEXTS, "a": text}))
    assert old.documents("train") != other.documents("train")


def test_damaged_hashes(small):
    path = small / "train" / "doc_hashes.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match="doc_hashes.npy is damaged: prepare the dataset again"):
        assert Dataset(small).split("train").doc_hashes is None


def test_damaged_names(small):
    path = small / "train" / "names.txt"
    content = path.read_bytes()
    other_bytes = content[:1] + b"\xff" + content[2:]
    for damaged in (content.replace(b'"', b"'", 1), other_bytes, b"1\n2\n3\n4\n", b""):
        split = Dataset(small).split("train")
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="names.txt is damaged: prepare the dataset again"):
            split.names()
        path.write_bytes(content)


def test_counts_that_are_written_so_and_are_none(small):
    for counts in (np.array([1.5]), np.array([[3]]), np.array([3, 0, 2, 4])):
        np.save(small / "train" / "doc_tokens.npy", counts)
        reseal(small)
        with pytest.raises(UserError, match="doc_tokens.npy is damaged: prepare the dataset again"):
            Dataset(small).split("train")


def test_tokens_are_held_against_their_hash(small):
    path = small / "test" / "tokens.bin"
    content = path.read_bytes()
    split = Dataset(small).split("test")
    split.require_as_written()
    for damaged in (bytes(len(content)), content[2:] + content[:2], content[:-1] + b"\1"):
        path.write_bytes(damaged)
        # written within the same tick of the clock as the one before
        os.utime(path, ns=(1, hash(damaged) % 10**9))
        with pytest.raises(UserError) as error:
            Dataset(small).split("test").require_as_written()
        assert str(error.value) == (
            f"{path} is not as it was written (its sha256 is another than in manifest.json), so"
            " that what is measured on it would be wrong: prepare the dataset again, or copy that"
            " file again"
        )
    path.write_bytes(content)
    Dataset(small).split("test").require_as_written()


def test_tokens_are_hashed_once_as_long_as_they_do_not_change(small, monkeypatch):
    hashed = []

    def hash_file(path):
        hashed.append(path)
        return files.hash_file(path)

    monkeypatch.setattr(datasets, "hash_file", hash_file)
    for _ in range(3):
        Dataset(small).split("test").require_as_written()
    assert len(hashed) == 1


def test_fingerprint_changes_with_any_document(tmp_path, vocab):
    same = [Dataset(build(tmp_path / name, vocab)).fingerprint for name in ("first", "second")]
    assert same[0] == same[1]
    changed = [
        build(tmp_path / f"in-{name}", vocab, {**TEXTS, name: text.swapcase()})
        for name, text in TEXTS.items()
    ]
    changed += [
        build(tmp_path / "test-changed", vocab, test={"t": "b test\n", "u": "another test\n"}),
        build(tmp_path / "one-more", vocab, {**TEXTS, "e": "five"}),
        build(
            tmp_path / "renamed",
            vocab,
            {("z" if name == "d" else name): t for name, t in TEXTS.items()},
        ),
    ]
    assert len({same[0], *(Dataset(folder).fingerprint for folder in changed)}) == 1 + len(changed)


def edit(*path, value=None):
    """A damage: the manifest's entry at `path` is set to `value`, or taken out."""

    def damage(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        entry = manifest
        for key in path[:-1]:
            entry = entry[key]
        if value is None:
            del entry[path[-1]]
        else:
            entry[path[-1]] = value
        manifests.write(folder, manifest)

    return damage


def respell(old, new):
    """A damage: a text in the manifest is another one."""

    def damage(folder):
        text = (folder / "manifest.json").read_text()
        assert old in text
        (folder / "manifest.json").write_text(text.replace(old, new))

    return damage


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def remove(file):
    return lambda folder: (folder / file).unlink()


def truncate(file):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-2])


def scribble(file):
    """A damage that keeps the file's size."""
    return lambda folder: (folder / file).write_bytes(b"x" * (folder / file).stat().st_size)


AGAIN = "prepare the dataset again"
FILES = ("tokens.bin", "doc_tokens.npy", "doc_bytes.npy", "doc_hashes.npy", "names.txt")
DAMAGES = {
    "no folder": (shutil.rmtree, "small", "python tools/prepare_data.py --input FOLDER --out"),
    "no manifest": (
        remove("manifest.json"),
        "manifest.json",
        "python tools/prepare_data.py --input FOLDER --out",
    ),
    "manifest not JSON": (truncate("manifest.json"), "manifest.json", AGAIN),
    "manifest empty": (write("manifest.json", b""), "manifest.json", AGAIN),
    "manifest not UTF-8": (write("manifest.json", b"\xff\xfe"), "manifest.json", AGAIN),
    "manifest no object": (write("manifest.json", b"[]"), "manifest.json", AGAIN),
    "other format": (
        edit("format", value=4),
        "manifest.json has format 4, this program reads formats up to 3",
        AGAIN,
    ),
    "a letter of the manifest": (
        respell("CRLF", "CRLE"),
        "manifest.json is damaged (its own hash is another)",
        AGAIN,
    ),
    "a blank of the manifest": (
        respell(": 3", ":\t3"),
        "manifest.json is damaged (its own hash is another)",
        AGAIN,
    ),
    "no hash of its own": (
        respell(SEAL, "x"),
        "manifest.json is damaged (its own hash is another)",
        AGAIN,
    ),
    "other dtype": (edit("dtype", value="<i8"), "manifest.json", AGAIN),
    **{
        f"no {' '.join(path)}": (edit(*path), "manifest.json", AGAIN)
        for path in (
            ["format"],
            ["dtype"],
            ["tokenizer"],
            ["tokenizer", "pieces_sha256"],
            ["splits"],
            ["splits", "train", "files"],
            *(["splits", "train", key] for key in ("documents", "tokens", "bytes")),
            ["splits", "train", "files", "tokens.bin", "size"],
            ["splits", "train", "files", "tokens.bin", "sha256"],
            *(["splits", "train", "files", name] for name in FILES),
        )
    },
    "no split": (edit("splits", value={}), "manifest.json", AGAIN),
    "a split that no folder can be called": (
        respell('"train": {', '"tr\\u0000n": {'),
        "manifest.json is damaged (a split is called 'tr\\x00n')",
        AGAIN,
    ),
    "a split elsewhere": (
        respell('"train": {', '"../x": {'),
        "manifest.json is damaged (a split is called '../x')",
        AGAIN,
    ),
    "split no object": (edit("splits", "train", value=[1]), "manifest.json", AGAIN),
    "tokens.bin truncated": (truncate("train/tokens.bin"), "train/tokens.bin", AGAIN),
    "no tokens.bin": (remove("train/tokens.bin"), "train/tokens.bin", AGAIN),
    "no doc_tokens.npy": (remove("train/doc_tokens.npy"), "train/doc_tokens.npy is missing", AGAIN),
    "doc_bytes.npy truncated": (truncate("train/doc_bytes.npy"), "train/doc_bytes.npy", AGAIN),
    "doc_tokens.npy scribbled": (scribble("train/doc_tokens.npy"), "train", AGAIN),
    "doc_bytes.npy scribbled": (scribble("train/doc_bytes.npy"), "train", AGAIN),
    "no doc_hashes.npy": (remove("train/doc_hashes.npy"), "train/doc_hashes.npy is missing", AGAIN),
    "no split folder": (lambda folder: shutil.rmtree(folder / "train"), "train/", AGAIN),
    "count of tokens": (edit("splits", "train", "tokens", value=5), "train", AGAIN),
    "count of documents": (edit("splits", "train", "documents", value=3), "train", AGAIN),
    "no tokenizer": (remove("tokenizer.model"), "tokenizer.model", ""),
    "tokenizer empty": (write("tokenizer.model", b""), "tokenizer.model", ""),
    "tokenizer truncated": (truncate("tokenizer.model"), "tokenizer.model", ""),
}


@pytest.mark.parametrize("damage, names, remedy", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named_with_its_remedy(small, damage, names, remedy):
    Dataset(small).split("train")
    damage(small)
    with pytest.raises(UserError) as error:
        Dataset(small).split("train")
    message = str(error.value)
    assert names in message and remedy in message and str(small) in message and "\n" not in message


def test_tokenizer_replaced_by_another(small, tmp_path):
    (tmp_path / "text.txt").write_text("some other text\n" * 9)
    options = dict(TOKENIZER_OPTIONS, input=tmp_path / "text.txt", minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(
        model_prefix=small / "tokenizer", vocab_size=275, **options
    )
    with pytest.raises(
        UserError,
        match="tokenizer.model is not the tokenizer that made the dataset.*put the original",
    ):
        Dataset(small)

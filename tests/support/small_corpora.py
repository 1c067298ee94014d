"""Small folders of texts, datasets that are made of them, and what these hold."""

import hashlib
import json
import os
import random

import numpy as np
import sentencepiece

from gpt.prepare import pipeline, staging
from gpt.prepare.inputs import find_inputs
from gpt.prepare.splits import Rule
from gpt.prepare.texts import Reading

PLACES = ["", "b/", "b/c/", "d e/"]

WORDS = [
    "whale",
    "ship",
    "sea",
    "the",
    "of",
    "and",
    "captain",
    "Ünder",
    "1851",
    "don't",
    "harpooner",
]


def book(seed):
    """Twelve lines of nine words, and the seed."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=9)) + "." for _ in range(12)]
    return "\n".join([*lines, str(seed)])


BOOKS = {f"{PLACES[i % 4]}book {i}.txt": book(i) for i in range(14)}


def write_texts(folder, texts):
    """Write {name: text} below a folder; returns the folder."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def build(
    folder,
    out,
    vocab=300,
    test_every=None,
    lists=(),
    valid_every=None,
    duplicates="keep",
    say=lambda text: None,
    **reading,
):
    """Prepare the dataset `out` of a folder of texts, as tools/prepare_data.py does."""
    rule = Rule(test_every, lists, valid_every)
    job = staging.Job(rule, Reading(**reading), duplicates)
    pipeline.prepare(find_inputs(folder, rule.by_folder), out, job, vocab, say=say)
    return out


def files_of(folder):
    """{name: content} of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names_of(folder, split):
    """The documents' names of a dataset's split."""
    return [json.loads(line) for line in (folder / split / "names.txt").read_text().splitlines()]


def check_split(folder, split, texts):
    """Everything that the dataset says of a split, counted again; texts: {name: text} in the order
    expected."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["splits"][split]
    sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    packed = np.fromfile(folder / split / "tokens.bin", manifest["dtype"]).tolist()
    documents, document = [], []
    for token in packed:
        if token == manifest["special_ids"]["eod"]:
            documents.append(document)
            document = []
        else:
            document.append(token)
    assert document == [], "the last document has no end"
    assert names_of(folder, split) == list(texts)
    assert [sp.decode(document) for document in documents] == list(texts.values())
    assert np.load(folder / split / "doc_tokens.npy").tolist() == [
        len(document) for document in documents
    ]
    assert np.load(folder / split / "doc_bytes.npy").tolist() == [
        len(text.encode()) for text in texts.values()
    ]
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in texts.values()]
    assert np.load(folder / split / "doc_hashes.npy").tolist() == [
        list(digest) for digest in hashes
    ]
    assert entry["documents"] == len(texts)
    assert entry["tokens"] == len(packed)
    assert entry["bytes"] == sum(len(text.encode()) for text in texts.values())
    assert {path.name for path in (folder / split).iterdir()} == set(entry["files"])
    for file, facts in entry["files"].items():
        content = (folder / split / file).read_bytes()
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def in_order(texts):
    """By the sha256 of their names."""
    names = sorted(texts, key=lambda name: hashlib.sha256(os.fsencode(name)).hexdigest())
    return {name: texts[name] for name in names}


def every(texts, n):
    """The rule, by hand: each n-th document by the hashes of their names is for testing."""
    texts = list(in_order(texts).items())
    return {
        "train": dict(item for i, item in enumerate(texts, 1) if i % n),
        "test": dict(texts[n - 1 :: n]),
    }

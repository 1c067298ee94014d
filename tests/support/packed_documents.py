"""Splits of a dataset written by hand, without gpt.prepare."""

import json

import numpy as np

from gpt.data import manifests
from gpt.data.datasets import Split
from gpt.files import hash_file

# the end-of-document id
EOD = 2


def pack(folder, documents, dtype):
    """Write documents, lists of ids, as a split; returns it opened."""
    folder.mkdir(exist_ok=True)
    ids = [token for document in documents for token in [*document, EOD]]
    counts = np.array([len(document) for document in documents], np.int64)
    np.array(ids, dtype).tofile(folder / "tokens.bin")
    np.save(folder / "doc_tokens.npy", counts)
    np.save(folder / "doc_bytes.npy", counts)
    (folder / "names.txt").write_text("".join(f'"{i}"\n' for i in range(len(documents))))
    return Split(folder.name, folder, dtype, 1 << 32, facts_of(folder))


def facts_of(folder):
    """{file: what its manifest should say} of a split."""
    return {path.name: hash_file(path) for path in folder.iterdir()}


def reseal(dataset):
    """Have a dataset's manifest tell the files as they are, as if they had been written so."""
    manifest = json.loads((dataset / manifests.MANIFEST).read_text())
    for split, entry in manifest["splits"].items():
        entry["files"] = facts_of(dataset / split)
    manifests.write(dataset, manifest)


def random_documents(rng, count, largest_id=65_535):
    """Lists of ids, none of them EOD."""
    longest = rng.choice([1, 3, 20, 300])
    documents = []
    for _ in range(count):
        length = rng.randint(1, longest)
        documents.append([rng.randint(3, largest_id) for _ in range(length)])
    return documents

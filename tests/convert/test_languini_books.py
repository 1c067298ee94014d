"""The seed project's books, imported, against its loader written again."""

import hashlib
import io
import json
import os
import pickle

import numpy as np
import pytest
import seed_project
import sentencepiece
from seed_project import TEXTS, VOCAB

from gpt.convert import languini_books
from gpt.convert.languini_books import import_dataset
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.data.vocab import Vocab
from gpt.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def books(tmp_path, pieces):
    return seed_project.write_sample_books(tmp_path / "books", pieces)


def imported(books, vocab, out):
    lines = []
    import_dataset(books, VOCAB, vocab, out, say=lines.append)
    return Dataset(out), lines


@pytest.mark.parametrize("count, seq_len", [(1, 16), (3, 33), (8, 7), (30, 64)])
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_batches_are_those_of_the_seed_projects_loader(
    count, seq_len, chunk, books, vocab, tmp_path, monkeypatch
):
    monkeypatch.setattr(languini_books, "CHUNK", chunk)
    dataset, _ = imported(books, vocab, tmp_path / "out")
    streams = Streams(dataset.split("train"), count, seq_len)
    theirs = seed_project.batches(books, "train", VOCAB, count, seq_len)
    # beyond the end, where each stream begins again
    for step in range(3000 // seq_len // count + 3):
        assert streams.batch(step).tolist() == next(theirs)


def test_a_dataset_holds_all_splits_that_exist(books, vocab, tmp_path):
    np.save(books / "file_list_mine.npy", np.array([("files/x.npy", "1")]))
    dataset, lines = imported(books, vocab, tmp_path / "out")
    assert dataset.split_names == ["train", "test", "stats", "wood"]
    assert (
        lines[0]
        == "notice: not imported, being none of the seed project's lists: file_list_mine.npy"
    )
    assert lines[2].startswith(
        f"test: 3 documents, {sum(len(text.encode()) for text in TEXTS):,} bytes, "
    )
    assert (tmp_path / "out/tokenizer.model").read_bytes() == vocab.model
    for name in dataset.split_names:
        split = dataset.split(name)
        assert split.tokens[:].tolist() == list(
            seed_project.tokens_of(seed_project.queues(books, name, VOCAB, 1)[0])
        )
        assert (
            split.names()
            == np.load(books / f"file_list_{seed_project.LISTS[name]}.npy")[:, 0].tolist()
        )
    assert dataset.split("test").doc_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    hashes = [list(hashlib.sha256(text.encode()).digest()[:16]) for text in TEXTS]
    assert dataset.split("test").doc_hashes.tolist() == hashes
    facts = json.loads((tmp_path / "out/manifest.json").read_text())
    assert facts["provenance"]["file_lists"].keys() == {
        f"file_list_{seed_project.LISTS[name]}.npy" for name in facts["splits"]
    }


def test_ends_of_documents_inside_documents_stay_and_are_told(books, vocab, tmp_path):
    seed_project.write_books(tmp_path / "b", {"test": {"a": [5, 2, 6], "b": [2, 7]}})
    dataset, lines = imported(tmp_path / "b", vocab, tmp_path / "out")
    assert dataset.split("test").tokens[:].tolist() == [5, 2, 6, 2, 2, 7, 2]
    assert lines[0].endswith("; 2 end-of-document ids stand inside documents, of 0 bytes each")


def test_ids_in_four_bytes(vocab, tmp_path):
    seed_project.write_books(tmp_path / "b", {"test": {"a": [5, 6]}}, dtype=np.uint32)
    dataset, _ = imported(tmp_path / "b", vocab, tmp_path / "out")
    assert (
        dataset.split("test").tokens[:].tolist() == [5, 6, 2]
        and dataset.split("test").tokens.dtype == "<u2"
    )


def replace(name, value):
    """Puts an array, or bytes, in the place of a file."""

    def damage(books):
        if isinstance(value, bytes):
            (books / name).write_bytes(value)
        else:
            np.save(books / name, value, allow_pickle=True)

    return damage


def first_rows(*rows):
    return replace("file_list_test_iid.npy", np.array(rows))


TEXT0 = f"{VOCAB}/files/text 0.npy"
ENTRY = "files/text 0.npy"
BAD_BOOKS = {
    "no lists": (
        lambda books: [path.unlink() for path in books.glob("*.npy")],
        "holds none of the file lists file_list_{{train,",
    ),
    "a list that is a link to nothing": (
        lambda books: (books / "file_list_test_java.npy").symlink_to("nothing"),
        "{books}/file_list_test_java.npy is no file (a folder, or a link to nothing): put the list",
    ),
    "a damaged header": (
        replace(TEXT0, b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((\n"),
        TEXT0 + " is not a plain .npy file",
    ),
    "no vocabulary": (
        lambda books: os.rename(books / VOCAB, books / "x"),
        "{books}/books_2048 is not a folder: --root takes",
    ),
    "no file": (
        lambda books: (books / TEXT0).unlink(),
        "{books}/" + TEXT0 + " is missing, and {books}/file_list_test_iid.npy names it",
    ),
    "fewer tokens": (
        replace(TEXT0, np.array([5, 6], np.uint16)),
        TEXT0 + " holds 2 tokens, and {books}/file_list_test_iid.npy says",
    ),
    "signed ids": (
        replace(TEXT0, np.array([5, 6])),
        "holds int64 of the shape (2,), not a row of uint16 or uint32 ids",
    ),
    "a table": (
        replace(TEXT0, np.zeros((2, 2), np.uint16)),
        "holds uint16 of the shape (2, 2), not a row",
    ),
    "objects": (
        replace(TEXT0, np.array([{}], object)),
        TEXT0 + " is not a plain .npy file (damaged, or pickled objects, which",
    ),
    "a pickle": (replace(TEXT0, pickle.dumps([1, 2])), TEXT0 + " is not a plain .npy file"),
    "no content": (replace(TEXT0, b""), TEXT0 + " is not a plain .npy file"),
    "half a file": (
        lambda books: os.truncate(books / TEXT0, 130),
        TEXT0 + " is not a plain .npy file",
    ),
    "a zip": (replace(TEXT0, b"PK\x03\x04zip"), TEXT0 + " is not a plain .npy file"),
    "ids too large": (
        first_rows(("files/big.npy", "2")),
        "files/big.npy holds the id 2048, and {tokenizer} has 2048: give the tokenizer",
    ),
    "no text": (
        first_rows(("files/ends.npy", "2")),
        "files/ends.npy holds no text, only special ids: tokenise that book again",
    ),
    "no count": (
        first_rows((ENTRY, "many")),
        "file_list_test_iid.npy, row 1: 'many' is no number of tokens: get the file anew",
    ),
    "none counted": (first_rows((ENTRY, "0")), "row 1: '0' is no number of tokens"),
    "a path out": (
        first_rows(("../x.npy", "1")),
        "row 1: '../x.npy' lies outside of {books}/books_2048: get the file anew",
    ),
    "a path from the root": (
        first_rows(("/etc/x.npy", "1")),
        "row 1: '/etc/x.npy' lies outside of",
    ),
    "one column": (
        first_rows(ENTRY),
        "file_list_test_iid.npy is not a file list, two columns of text in a plain .npy file",
    ),
    "a list of objects": (
        replace("file_list_test_iid.npy", np.array([(ENTRY, 9)], object)),
        "is not a file list",
    ),
    "an empty list": (
        replace("file_list_test_iid.npy", np.zeros((0, 2), "U9")),
        "file_list_test_iid.npy names no document: get",
    ),
    "another end": (
        lambda books: None,
        "ends documents with the id 3, the seed project's loader with 2",
    ),
}


@pytest.mark.parametrize("damage, sentence", BAD_BOOKS.values(), ids=BAD_BOOKS)
def test_bad_books(damage, sentence, request, books, vocab, tmp_path):
    np.save(books / VOCAB / "files/big.npy", np.array([5, 2048], np.uint16))
    np.save(books / VOCAB / "files/ends.npy", np.array([2, 0], np.uint16))
    damage(books)
    if "another end" in request.node.callspec.id:
        model = io.BytesIO()
        options = dict(
            vocab_size=270,
            byte_fallback=True,
            user_defined_symbols="x,<D>",
            pad_id=-1,
            bos_id=1,
            eos_id=-1,
            unk_id=0,
            model_type="bpe",
            minloglevel=2,
        )
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b"]), model_writer=model, hard_vocab_limit=False, **options
        )
        vocab = Vocab(model.getvalue())
    with pytest.raises(UserError) as error:
        imported(books, vocab, tmp_path / "out")
    assert sentence.format(books=books, tokenizer=vocab.name) in str(
        error.value
    ) and "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"books"}  # nothing half made


def test_an_existing_folder_is_left_alone(books, vocab, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(
        UserError, match="out exists already: remove it first, or name another folder"
    ):
        imported(books, vocab, tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "x"

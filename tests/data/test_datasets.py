"""Datasets on disk and token streams, against streams built by hand from lists."""

import json
import os
import random
import shutil
import threading

import numpy as np
import pytest
import sentencepiece

from gpt.data import manifests
from gpt.data.datasets import Dataset, Split
from gpt.data.manifests import SEAL, token_dtype
from gpt.data.streams import Ahead, Streams
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare.documents import Input
from gpt.prepare.pipeline import prepare
from gpt.prepare.splits import Rule
from gpt.prepare.staging import Job
from gpt.prepare.vocab_training import TOKENIZER_OPTIONS

EOD = 2
# by the hashes of their names
TEXTS = {"d": "four, for a change\n", "c": "three", "b": "two and a half\n", "a": "one\n"}


def reference_streams(documents, count, eod=EOD):
    """Documents in order, each to the stream with the fewest tokens so far; ends of documents do
    not count."""
    loads, streams = [0] * count, [[] for _ in range(count)]
    for document in documents:
        stream = loads.index(min(loads))  # the first of equals
        loads[stream] += len(document)
        streams[stream] += [*document, eod]
    return streams


def reference_batch(streams, seq_len, step):
    return [
        [stream[(step * seq_len + i) % len(stream)] for i in range(seq_len + 1)]
        for stream in streams
    ]


def pack(folder, documents, dtype):
    """Write a split by hand."""
    folder.mkdir(exist_ok=True)
    np.array([token for document in documents for token in [*document, EOD]], dtype).tofile(
        folder / "tokens.bin"
    )
    np.save(
        folder / "doc_tokens.npy", np.array([len(document) for document in documents], np.int64)
    )
    np.save(folder / "doc_bytes.npy", np.array([len(document) for document in documents], np.int64))
    (folder / "names.txt").write_text("".join(f'"{i}"\n' for i in range(len(documents))))
    return Split(folder.name, folder, dtype, vocab_size=1 << 32)


def random_documents(rng, count, largest_id=65_535):
    longest = rng.choice([1, 3, 20, 300])
    return [
        [rng.randint(3, largest_id) for _ in range(rng.randint(1, longest))] for _ in range(count)
    ]


def build(folder, vocab, texts=TEXTS, test=None):
    splits = {"train": texts, "test": test or {"t": "a test\n", "u": "another test\n"}}
    inputs = [Input(*item, split, 9) for split, texts in splits.items() for item in texts.items()]
    prepare(inputs, folder, Job(Rule()), vocab, say=lambda text: None)
    return folder


@pytest.fixture(scope="module")
def vocab(sample):
    return Vocab.load(sample / "tokenizer.model")


@pytest.fixture
def small(tmp_path, vocab):
    return build(tmp_path / "small", vocab)


@pytest.mark.parametrize("dtype, largest_id", [("<u2", 65_535), ("<u4", 300_000)])
def test_batches_are_those_of_streams_built_by_hand(tmp_path, dtype, largest_id):
    rng = random.Random(dtype)
    for _ in range(150):
        count = rng.randint(1, 8)
        documents = random_documents(rng, rng.randint(count, 40), largest_id)
        seq_len = rng.randint(1, 50)
        streams = Streams(pack(tmp_path / "split", documents, dtype), count, seq_len)
        expected = reference_streams(documents, count)
        for step in [
            0,
            1,
            *(rng.randint(2, 200) for _ in range(5)),
            10**9,
            10**9 + rng.randint(1, 99),
        ]:
            batch = streams.batch(step)
            assert batch.dtype == np.int64
            assert batch.tolist() == reference_batch(expected, seq_len, step), (
                len(documents),
                count,
                seq_len,
                step,
            )


def test_equal_loads_go_to_the_lowest_stream_and_ends_of_documents_do_not_count(tmp_path):
    # The last document meets a tie at 3 tokens; with ends counted it would be 6 against 4, and the
    # other stream's.
    documents = [[10], [20, 21, 22], [11], [12], [13]]
    batch = Streams(pack(tmp_path / "split", documents, "<u2"), 2, 7).batch(0)
    assert batch.tolist() == [[10, EOD, 11, EOD, 12, EOD, 13, EOD], [20, 21, 22, EOD] * 2]


def test_neighbouring_windows_share_one_token_and_miss_none(tmp_path):
    documents = random_documents(random.Random(1), 12)
    streams = Streams(pack(tmp_path / "split", documents, "<u2"), 3, 16)
    batches = [streams.batch(step) for step in range(20)]
    for row, expected in enumerate(reference_streams(documents, 3)):
        seen = [token for batch in batches for token in batch[row, :-1].tolist()]
        assert seen == (expected * (320 // len(expected) + 1))[:320]
        assert all(first[row, -1] == second[row, 0] for first, second in zip(batches, batches[1:]))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_rows_of_all_ranks_are_the_whole_batch(tmp_path, world):
    split = pack(tmp_path / "split", random_documents(random.Random(world), 60), "<u2")
    whole = Streams(split, 24, 13)
    ranks = [Streams(split, 24, 13) for _ in range(world)]
    for step in (0, 1, 77, 10**9):
        batch = whole.batch(step)
        for rank, streams in enumerate(ranks):
            rows = streams.batch(step, range(rank, 24, world))
            assert rows.dtype == np.int64 and np.array_equal(rows, batch[rank::world])


def test_batch_depends_on_its_step_only(tmp_path):
    split = pack(tmp_path / "split", random_documents(random.Random(2), 30), "<u2")
    streams = Streams(split, 5, 11)
    in_order = [streams.batch(step) for step in range(40)]
    streams.batch(7)[:] = 0  # a batch is the caller's own
    for step in random.Random(3).sample(range(40), 40):
        assert np.array_equal(streams.batch(step), in_order[step])
        assert np.array_equal(Streams(split, 5, 11).batch(step), in_order[step])


@pytest.mark.parametrize(
    "name, count, seq_len", [("train", 1, 512), ("train", 16, 100), ("python", 79, 33)]
)
def test_batches_of_the_sample(sample, name, count, seq_len):
    packed = np.fromfile(sample / name / "tokens.bin", "<u2").tolist()
    lengths = np.load(sample / name / "doc_tokens.npy").tolist()
    documents, at = [], 0
    for length in lengths:
        assert packed[at + length] == EOD
        documents.append(packed[at : at + length])
        at += length + 1
    assert at == len(packed) and packed.count(EOD) == len(lengths)
    streams = Streams(Dataset(sample).split(name), count, seq_len)
    expected = reference_streams(documents, count)
    for step in (0, 1, 5, 300, 12_345, 10**9):
        assert streams.batch(step).tolist() == reference_batch(expected, seq_len, step)


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
    for file, facts in entry["files"].items():
        facts["size"] = (small / "train" / file).stat().st_size
    manifests.write(small, {**manifest, "dtype": "<u4"})
    split = Dataset(small).split("train")
    with pytest.raises(
        UserError,
        match=r"tokens.bin is damaged: it holds the id 299999, and the tokenizer has \d+; prepare",
    ):
        Streams(split, 1, 8).batch(0)
    split.vocab_size = 300_000
    batch = Streams(split, 1, 8).batch(0)
    assert batch.tolist() == [[70_000, 3, EOD, 65_536, EOD, 299_999, 65_535, 4, EOD]]


def test_fewer_documents_than_streams(small):
    split = Dataset(small).split("train")
    assert Streams(split, 4, 8).batch(0).shape == (4, 9)
    with pytest.raises(UserError) as error:
        Streams(split, 5, 8)
    assert (
        str(error.value)
        == "the split 'train' has 4 documents, fewer than the 5 streams that train_batch_size 5"
        " needs: prepare more documents or lower train_batch_size to at most 4"
    )


def test_dataset_tells_what_it_holds(small, vocab):
    dataset = Dataset(small)
    assert dataset.split_names == ["train", "test"]
    assert dataset.vocab.fingerprint == vocab.fingerprint
    split = dataset.split("train")
    assert split.doc_bytes.tolist() == [len(text.encode()) for text in TEXTS.values()]
    assert len(split.tokens) == split.doc_tokens.sum() + 4
    with pytest.raises(UserError, match=r"small has no split 'wood': it has train, test$"):
        dataset.split("wood")


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
FILES = ("tokens.bin", "doc_tokens.npy", "doc_bytes.npy", "names.txt")
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
        edit("format", value=3),
        "manifest.json has format 3, this program reads formats up to 2",
        AGAIN,
    ),
    "a letter of the manifest": (
        respell("CRLF", "CRLE"),
        "manifest.json is damaged (its own hash is another)",
        AGAIN,
    ),
    "a blank of the manifest": (
        respell(": 2", ":\t2"),
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
            *(["splits", "train", "files", name] for name in FILES),
        )
    },
    "no split": (edit("splits", value={}), "manifest.json", AGAIN),
    "split no object": (edit("splits", "train", value=[1]), "manifest.json", AGAIN),
    "tokens.bin truncated": (truncate("train/tokens.bin"), "train/tokens.bin", AGAIN),
    "no tokens.bin": (remove("train/tokens.bin"), "train/tokens.bin", AGAIN),
    "no doc_tokens.npy": (remove("train/doc_tokens.npy"), "train/doc_tokens.npy is missing", AGAIN),
    "doc_bytes.npy truncated": (truncate("train/doc_bytes.npy"), "train/doc_bytes.npy", AGAIN),
    "doc_tokens.npy scribbled": (scribble("train/doc_tokens.npy"), "train", AGAIN),
    "doc_bytes.npy scribbled": (scribble("train/doc_bytes.npy"), "train", AGAIN),
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


def test_batches_read_ahead_are_those_that_are_asked_for(tmp_path, monkeypatch):
    streams = Streams(
        pack(tmp_path / "split", random_documents(random.Random(4), 30), "<u2"), 6, 11
    )
    read, threads = streams.batch, []
    monkeypatch.setattr(
        streams, "batch", lambda *args: threads.append(threading.current_thread()) or read(*args)
    )
    ahead = Ahead(streams, range(1, 6, 2))
    order = [0, 1, 2, 2, 3, 5, 6, 4, 5, 0, 1]  # again, on, past one that is left out, back
    for index in order:
        batch = ahead.batch(index)
        assert np.array_equal(batch, read(index, range(1, 6, 2)))
        batch[:] = -1
    ahead.close()
    misses = sum(index != before + 1 for before, index in zip([-9, *order], order))
    # all others were read ahead
    assert sum(thread is threading.main_thread() for thread in threads) == misses == 5


def test_a_batch_that_cannot_be_read_ahead_is_told_when_it_is_asked_for(tmp_path):
    split = pack(tmp_path / "split", [[5] * 40, [7] * 40], "<u2")
    ahead = Ahead(Streams(split, 1, 20), range(1))
    split.vocab_size = 6
    ahead.batch(0)
    with pytest.raises(UserError, match="tokens.bin is damaged: it holds the id 7"):
        [ahead.batch(i) for i in range(1, 4)]
    ahead.close()


def test_a_file_that_is_cut_off_under_a_run_is_told(tmp_path):
    split = pack(tmp_path / "split", [[5] * 5000, [7] * 5000], "<u2")
    streams = Streams(split, 1, 20)
    os.truncate(tmp_path / "split" / "tokens.bin", 8000)
    streams.batch(0)
    with pytest.raises(
        UserError, match="tokens.bin ends before its token 4021: it was cut off since the run began"
    ):
        streams.batch(200)

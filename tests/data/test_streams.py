"""Token streams, against streams built by hand from lists."""

import os
import random
import threading

import numpy as np
import pytest
from packed_documents import EOD, pack, random_documents

from gpt.data.datasets import Dataset
from gpt.data.streams import Ahead, Streams
from gpt.errors import UserError


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
            rows = streams.batch(step, streams.rows_of(rank, world))
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
    "name, count, seq_len", [("train", 1, 512), ("train", 16, 100), ("python", 25, 33)]
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


def test_fewer_documents_than_streams(tmp_path):
    split = pack(tmp_path / "train", [[3], [4, 5], [6], [7]], "<u2")
    assert Streams(split, 4, 8).batch(0).shape == (4, 9)
    with pytest.raises(UserError) as error:
        Streams(split, 5, 8)
    assert (
        str(error.value)
        == "the split 'train' has 4 documents, fewer than the 5 streams that train_batch_size 5"
        " needs: prepare more documents (tools/prepare_data.py --cut_documents BYTES makes several"
        " of a large file) or lower train_batch_size to at most 4"
    )


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
        UserError,
        match="tokens.bin ends before its token 4,021: it was cut off while it was in use",
    ):
        streams.batch(200)

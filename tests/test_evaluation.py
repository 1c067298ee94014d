import itertools
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import tiny_run
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.config.resolve import resolve
from gpt.config.shape import ModelConfig
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.evaluation import DocumentTally, Evaluator, Tally, summary
from gpt.kernels.linear_cross_entropy import TokenScores
from gpt.model import GPT
from gpt.prepare.texts import Document
from gpt.prepare.vocab_training import train_tokenizer
from gpt.training.trainer import Trainer

ENGLISH = [
    "The kitchen opens at seven, and nobody eats before the bread is out of the oven.\n" * 2,
    "Whoever bakes the bread opens the kitchen; whoever eats the bread closes the oven.\n",
    (
        "Nobody knows whether the oven was open before the kitchen was.\n\n  Seven breads later,"
        " nobody asks.\n"
    ),
]
DOCUMENTS = [
    ENGLISH[0],
    "厨房七点开门。🍞🔥 The bread: 面包很好吃！\n",
    ENGLISH[1],
    "naïve café — 🥐🥐🥐\n",
    ENGLISH[2],
]
SEQ_LEN = 32
# of a document, in the streams of fake_evaluator
END = 60000


def split_of(tokens):
    return SimpleNamespace(tokens=tokens, check_ids=lambda ids: None)


pytestmark = pytest.mark.usefixtures("one_thread")


def fake_evaluator(tokens, seq_len, last_n, batch_size=1, **options):
    """Over the ids 0, 1, 2, …, so that a target's id is its position in the stream; each stands for
    one byte."""
    vocab = SimpleNamespace(
        byte_lengths=np.ones(tokens, np.int64), decode=lambda ids: "x" * len(ids), eod_id=END
    )
    split = split_of(np.arange(tokens, dtype=np.uint16))
    return Evaluator(split, vocab, seq_len, last_n, batch_size, **options)


class FakeScore:
    """Nats are the target's position. Keeps (context, target) of every scored position, call by
    call."""

    def __init__(self):
        self.calls = []

    def __call__(self, tokens, targets, scored):
        rows, columns = (index.numpy() for index in scored)
        self.calls.append(
            [(tokens[r, : c + 1].tolist(), targets[r, c].item()) for r, c in zip(rows, columns)]
        )
        ids = targets[scored]
        return TokenScores(ids.float(), ids % 13)

    @property
    def scored(self):
        return [pair for call in self.calls for pair in call]


def lengths(seq_len):
    return sorted({1, seq_len // 3, seq_len - 1, seq_len} - {0})


@pytest.mark.parametrize("seq_len", [1, 2, 7, 24, 64])
def test_every_token_is_scored_once_with_enough_context(seq_len):
    for last_n, tokens in itertools.product(
        lengths(seq_len), [*range(1, 30), 63, 64, 65, 66, 100, 129, 199, 200]
    ):
        score = FakeScore()
        tally = fake_evaluator(tokens, seq_len, last_n, batch_size=5).run(score)
        assert sorted(target for _, target in score.scored) == list(range(tokens))
        for context, target in score.scored:
            if target == 0:
                assert context == [END]
                continue
            assert context == list(range(target - len(context), target)) and len(context) <= seq_len
            assert len(context) >= min(target, seq_len - last_n)
            # window 0 scores all of its targets
            assert target > seq_len or len(context) == target
        assert tally.ours.tokens == tally.ours.text_tokens == tally.ours.bytes == tokens
        assert tally.ours.nats == tokens * (tokens - 1) / 2


@pytest.mark.parametrize("seq_len, last_n", [(1, 1), (7, 3), (24, 24), (64, 5)])
@pytest.mark.parametrize("sizes", [[1], [200], [1] * 50, [3, 1, 40, 1, 1, 90, 7]])
def test_every_target_counts_for_its_document(seq_len, last_n, sizes):
    """The ids of a document from `first` to `last` are scored with the nats first, …, last."""
    tallies = []
    for rank in range(2):
        tallies.append(DocumentTally(np.array(sizes)))
        evaluator = fake_evaluator(sum(sizes), seq_len, last_n, 5, rank=rank, world_size=2)
        evaluator.vocab.byte_lengths[::3] = 0
        evaluator.vocab.byte_lengths[1::3] = 2
        evaluator.run(FakeScore(), documents=tallies[-1])
    first = 0
    for document, size in enumerate(sizes):
        ids = range(first, first + size)
        expected = {
            "nats": sum(ids),
            "tokens": size,
            "text_nats": sum(id for id in ids if id % 3),
            "text_tokens": sum(id % 3 > 0 for id in ids),
            "bytes": sum((0, 2, 1)[id % 3] for id in ids),
        }
        for name, value in expected.items():
            assert sum(getattr(tally, name)[document] for tally in tallies) == value
        first += size


def run_ranks(world_size, **options):
    """(summed tally values, number of calls per rank)"""
    sums, calls = 0, []
    for rank in range(world_size):
        score = FakeScore()
        sums = sums + np.array(
            fake_evaluator(rank=rank, world_size=world_size, **options).run(score).values()
        )
        calls.append(len(score.calls))
    return sums.tolist(), calls


@pytest.mark.parametrize("tokens", [1, 2, 9, 60, 151])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("max_batches", [-1, 1, 4])
def test_any_number_of_ranks_finds_the_same_sums(tokens, batch_size, max_batches):
    options = dict(
        tokens=tokens, seq_len=16, last_n=6, batch_size=batch_size, max_batches=max_batches
    )
    alone, _ = run_ranks(1, **options)
    windows = 1 + max(0, math.ceil((tokens - 1 - 16) / 6))
    chosen = windows if max_batches < 0 else min(windows, max_batches * batch_size)
    assert Tally.from_values(alone).ours.tokens == min(tokens, 17 + 6 * (chosen - 1))
    for world_size, micro_size in itertools.product((1, 2, 3, 5, 16), (1, 2, 7, 100)):
        together, calls = run_ranks(world_size, micro_size=micro_size, **options)
        assert together == alone
        assert len(set(calls)) == 1
        assert Tally.from_values(together) == Tally.from_values(alone)


@pytest.mark.parametrize(
    "ranks, micro_size, calls",
    [
        (1, 1, 500),
        (8, 1, 500),
        (8, 2, 500),
        (8, 3, 334),
        (8, 8, 125),
        (8, 32, 32),
        (1, 32, 250),
        (1, 4, 500),
        (64, 4, 32),
        (64, 1000, 1),
    ],
)
def test_calls_are_no_smaller_than_training_micro_batches(ranks, micro_size, calls):
    """8,000 windows, in 500 batches of 16: more ranks make fewer calls, not smaller ones."""
    tokens = 1 + 32 + 7999 * 8  # exactly so many windows
    options = dict(max_batches=500, world_size=ranks, micro_size=micro_size)
    first, last = (fake_evaluator(tokens, 32, 8, 16, rank=r, **options) for r in (0, ranks - 1))
    assert first.windows == last.windows == 8000 and first.calls == last.calls == calls
    sizes = []

    def score(tokens, targets, scored):
        sizes.append(len(tokens))
        return TokenScores(scored[0].float(), scored[0])

    last.run(score)
    first_token = ranks == 1  # the row of its window is rank 0's, in the last call
    sizes[-1] -= first_token
    assert len(sizes) == calls and sum(sizes) == 8000 // ranks
    assert max(sizes) == min(8000 // ranks, max(math.ceil(16 / ranks), micro_size))


def test_tally_survives_its_way_through_floats():
    tally = fake_evaluator(50, 16, 6).run(FakeScore())
    again = Tally.from_values([float(value) for value in tally.values()])
    assert again == tally and type(again.ours.bytes) is int and summary(again) == summary(tally)


@pytest.fixture(scope="module")
def trained():
    """(vocab, stream, model): a model that has learned something of the five documents, in
    float64."""
    vocab = train_tokenizer([Document(str(i), text) for i, text in enumerate(ENGLISH)], 300)
    stream = np.concatenate([[*vocab.encode(text), vocab.eod_id] for text in DOCUMENTS]).astype(
        np.uint16
    )
    model = GPT(
        ModelConfig(
            n_layers=1, h_dim=16, mlp_dim=32, n_heads=2, head_dim=4, vocab_size=300, seq_len=SEQ_LEN
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rows = torch.from_numpy(stream[: len(stream) // 33 * 33].astype(np.int64)).view(-1, 33)
    for _ in range(25):
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    return vocab, stream, model.double().requires_grad_(False)


def evaluate(trained, stream, seq_len, last_n, **options):
    vocab, _, model = trained
    return summary(Evaluator(split_of(stream), vocab, seq_len, last_n, 4, **options).run(model))


def nats_and_rank(logits, target):
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    return math.log(np.exp(logits).sum()) - logits[target], order.index(target)


def quantities(scores, text_nats, size):
    """scores: (nats, rank) of every scored target."""
    nats, tokens = sum(n for n, _ in scores), len(scores)
    return {
        "tokens": tokens,
        "bytes": size,
        "loss": nats / tokens,
        "ppl": math.exp(nats / tokens),
        "normalised_loss": text_nats / size,
        "normalised_ppl": math.exp(text_nats / size),
        "top1": sum(rank == 0 for _, rank in scores) / tokens,
        "top10": sum(rank <= 9 for _, rank in scores) / tokens,
    }


def reference(trained, stream, seq_len, last_n):
    """Target by target: each is predicted from the start of the first window that reaches it, and
    the first from the end of a document."""
    vocab, _, model = trained
    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    scores = []
    text_nats = 0.0
    text_tokens = 0
    size = 0
    for position in range(len(stream)):
        start = max(0, math.ceil((position - seq_len) / last_n)) * last_n
        context = torch.from_numpy(stream[start:position].astype(np.int64))
        if position == 0:
            context = torch.tensor([pieces.piece_to_id("<D>")])
        target = int(stream[position])
        scores.append(nats_and_rank(model(context[None])[0, -1].numpy(), target))
        if pieces.is_byte(target):
            length = 1
        elif pieces.is_control(target) or pieces.id_to_piece(target) == "<D>":
            length = 0
        else:
            length = len(pieces.id_to_piece(target).replace("\u2581", " ").encode())
        size += length
        if length:
            text_nats += scores[-1][0]
            text_tokens += 1
    expected = quantities(scores, text_nats, size)
    return {
        **expected,
        "total_loss": sum(n for n, _ in scores),
        "text_nats": text_nats,
        "text_tokens": text_tokens,
        "bits_per_byte": text_nats / size / math.log(2),
    }


def languini_reference(trained, stream, seq_len, last_n):
    """Window by window as the seed project goes, padding the last one: (quantities, decoded targets
    per window)."""
    vocab, _, model = trained
    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    scores, texts = [], []
    for start in range(0, len(stream) - 1, last_n):
        row = np.zeros(seq_len + 1, np.int64)
        ids = stream[start : start + seq_len + 1]
        row[: len(ids)] = ids
        logits = model(torch.from_numpy(row[None, :-1]))[0].numpy()
        scored = [
            (logits[i], int(row[i + 1]))
            for i in range(seq_len - last_n, seq_len)
            if row[i + 1] != 0
        ]
        scores += [nats_and_rank(*pair) for pair in scored]
        texts.append(pieces.decode([target for _, target in scored]))
    return quantities(scores, sum(n for n, _ in scores), sum(map(len, texts))), texts


def with_zeros(stream):
    """A stream of a vocabulary whose id 0 occurs: the seed project takes it for padding."""
    stream = stream.copy()
    stream[5::41] = 0
    return stream


WINDOWS = [(SEQ_LEN, 8), (SEQ_LEN, SEQ_LEN), (12, 5), (3, 1)]


@pytest.mark.parametrize("seq_len, last_n", WINDOWS)
@pytest.mark.parametrize("change", [lambda stream: stream, with_zeros], ids=["text", "zeros"])
def test_quantities_agree_with_brute_force(trained, seq_len, last_n, change):
    stream = change(trained[1])
    got = evaluate(trained, stream, seq_len, last_n)
    expected = reference(trained, stream, seq_len, last_n)
    del got["languini"]
    assert got == pytest.approx(expected, rel=1e-9)
    assert 0 < got["top1"] < got["top10"] < 1


@pytest.mark.parametrize("seq_len, last_n", WINDOWS)
@pytest.mark.parametrize("change", [lambda stream: stream, with_zeros], ids=["text", "zeros"])
def test_languini_quantities_agree_with_brute_force(trained, seq_len, last_n, change):
    stream = change(trained[1])
    expected, texts = languini_reference(trained, stream, seq_len, last_n)
    assert any("\ufffd" in text for text in texts) and any("<D>" in text for text in texts)
    assert evaluate(trained, stream, seq_len, last_n)["languini"] == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize("seq_len, last_n", WINDOWS)
def test_bytes_are_the_size_of_the_text(trained, seq_len, last_n):
    figures = evaluate(trained, trained[1], seq_len, last_n)
    assert figures["bytes"] == len("".join(DOCUMENTS).encode())
    assert figures["tokens"] == len(trained[1])
    assert figures["text_tokens"] == figures["tokens"] - len(DOCUMENTS)


def test_the_bytes_of_a_text_do_not_depend_on_the_tokenizer():
    sizes = set()
    first_tokens = set()
    for frequent_word in ("", "The "):
        texts = [Document(str(i), frequent_word * 50 + text) for i, text in enumerate(ENGLISH)]
        vocab = train_tokenizer(texts, 300)
        ids = [id for text in DOCUMENTS for id in (*vocab.encode(text).tolist(), vocab.eod_id)]
        tally = Evaluator(split_of(np.array(ids)), vocab, SEQ_LEN, 8, 4).run(FakeScore())
        sizes.add(tally.ours.bytes)
        first_tokens.add(vocab.decode(ids[:1]))
    assert sizes == {len("".join(DOCUMENTS).encode())} and len(first_tokens) > 1


@pytest.mark.parametrize("seq_len, last_n", WINDOWS)
def test_documents_add_up_to_the_evaluation(trained, seq_len, last_n):
    vocab, stream, model = trained
    sizes = np.diff(np.flatnonzero(stream == vocab.eod_id), prepend=-1)
    documents = DocumentTally(sizes)
    ours = (
        Evaluator(split_of(stream), vocab, seq_len, last_n, 4).run(model, documents=documents).ours
    )
    assert documents.bytes.tolist() == [len(text.encode()) for text in DOCUMENTS]
    assert documents.tokens.tolist() == sizes.tolist()
    assert documents.text_tokens.tolist() == (sizes - 1).tolist()
    assert documents.nats.sum() == pytest.approx(ours.nats, rel=1e-12)
    assert documents.text_nats.sum() == pytest.approx(ours.text_nats, rel=1e-12)
    assert (documents.text_nats < documents.nats).all()


@pytest.mark.parametrize("max_batches", [1, 3])
def test_a_part_of_a_split_begins_with_its_first_token(trained, max_batches):
    """A part of 4 windows a batch ends after 4 x max_batches windows."""
    vocab, stream, _ = trained
    part = stream[: 1 + SEQ_LEN + 8 * (4 * max_batches - 1)]
    figures = evaluate(trained, stream, SEQ_LEN, 8, max_batches=max_batches)
    assert len(part) < len(stream) and figures["bytes"] == len(vocab.text_bytes(part))
    languini = figures.pop("languini")
    assert figures == pytest.approx(reference(trained, part, SEQ_LEN, 8), rel=1e-9)
    assert languini["tokens"] == 8 * 4 * max_batches


def test_training_evaluates_in_calls_of_its_micro_batches(sample, tmp_path):
    """Two batches of 16 windows on the second of 2 ranks: 8 and 8, or 16 as a micro-batch has."""
    for micro_size, calls in ((4, 2), (16, 1)):
        gpt = {"max_eval_steps": 2, "run_dir": str(tmp_path / "run")}
        tree = tiny_run(
            train_batch_size=32,
            train_micro_batch_size_per_gpu=micro_size,
            gradient_accumulation_steps=None,
            gpt=gpt,
        )
        trainer = Trainer(resolve(tree, "tiny", 2), Dataset(sample), 1, 2, ("torch", ""))
        trainer.batches.close()
        assert trainer.evaluator.calls == calls


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for a GPU: searches of masks, and numbers that are read."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.searches = 0
        self.copies = 0
        original = torch.Tensor.cpu

        def cpu(tensor, *args, **options):
            self.copies += 1
            return original(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, "cpu", cpu)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        indices = [index for index in args[1] if index is not None] if name == "index" else []
        by_mask = any(index.dtype == torch.bool for index in indices)
        self.searches += by_mask or name in ("nonzero", "masked_select", "_local_scalar_dense")
        return function(*args, **(kwargs or {}))


def test_a_call_waits_for_the_device_once(trained, monkeypatch):
    vocab, stream, model = trained
    evaluator = Evaluator(split_of(stream), vocab, SEQ_LEN, 8, 4)
    with Waits(monkeypatch) as waits:
        tally = evaluator.run(model)
    assert tally.ours.tokens == len(stream) and evaluator.calls > 3
    assert (waits.searches, waits.copies) == (0, evaluator.calls)


def test_ranks_agree_on_a_real_model(trained):
    vocab, stream, model = trained
    sums = 0
    for rank in range(3):
        evaluator = Evaluator(
            split_of(stream), vocab, SEQ_LEN, 8, 4, rank=rank, world_size=3, micro_size=3
        )
        sums = sums + np.array(evaluator.run(model).values())
    alone = evaluate(trained, stream, SEQ_LEN, 8)
    together = summary(Tally.from_values(sums.tolist()))
    assert together.pop("languini") == pytest.approx(alone.pop("languini"), rel=1e-12)
    assert together == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 20, 26, SEQ_LEN, SEQ_LEN + 1])
def test_split_of_one_window(trained, tokens):
    stream = trained[1][:tokens]
    got = evaluate(trained, stream, SEQ_LEN, 8)
    languini = evaluate(trained, stream, SEQ_LEN, 8)["languini"]
    del got["languini"]
    assert got == pytest.approx(reference(trained, stream, SEQ_LEN, 8), rel=1e-9)
    assert languini["tokens"] == max(0, tokens - 1 - (SEQ_LEN - 8))
    if languini["tokens"]:
        assert languini == pytest.approx(
            languini_reference(trained, stream, SEQ_LEN, 8)[0], rel=1e-9
        )


@pytest.mark.parametrize("tokens, max_batches", [(0, -1), (60, 0)])
def test_where_nothing_is_scored_there_are_no_numbers(tokens, max_batches):
    score = FakeScore()
    result = summary(fake_evaluator(tokens, 16, 6, max_batches=max_batches).run(score))
    assert score.calls == [] and result["tokens"] == result["bytes"] == 0
    for name in (
        "loss",
        "ppl",
        "normalised_loss",
        "normalised_ppl",
        "bits_per_byte",
        "top1",
        "top10",
    ):
        assert math.isnan(result[name]), name


def test_a_split_that_is_cut_while_it_is_scored_ends_with_a_sentence(sample, tmp_path):
    shutil.copytree(sample, tmp_path / "data")
    dataset = Dataset(tmp_path / "data")
    file = tmp_path / "data" / "test" / "tokens.bin"
    evaluator = Evaluator(dataset.split("test"), dataset.vocab, SEQ_LEN, 8, 4)

    def cut():
        os.truncate(file, 20_000)
        return True

    with pytest.raises(UserError, match=f"{file} ends before its token"):
        evaluator.run(FakeScore(), goes_on=cut)

"""The vocabulary: encoding without loss, what each token stands for, which tokenizers are
refused."""

import random

import numpy as np
import pytest
import sentencepiece
from small_tokenizers import ALPHABET, BLANK, NASTY, SENTENCES, train

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare.documents import documents
from gpt.prepare.sample import sample_inputs
from gpt.prepare.texts import Reading
from gpt.prepare.vocab_training import TOKENIZER_OPTIONS


def processor(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def check_lossless(vocab, text):
    ids = vocab.encode(text)
    assert vocab.decode(ids) == text
    assert int(vocab.byte_lengths[ids].sum()) == len(text.encode())
    assert vocab.eod_id not in ids
    return ids


@pytest.fixture(scope="module")
def model(sample):
    return (sample / "tokenizer.model").read_bytes()


@pytest.fixture(scope="module")
def vocabs(model):
    """By name: the sample's vocabulary, one with newlines in pieces, one that ends documents by
    end-of-sentence."""
    return {
        "sample": Vocab(model),
        "newlines": Vocab(train(user_defined_symbols=["<D>", "\n\n", ".\n", "x\ny"])),
        "eos": Vocab(train(user_defined_symbols="", eos_id=2)),
    }


def test_documents_are_encoded_without_loss_and_as_sentencepiece_would(model, vocabs):
    vocab, sp = vocabs["sample"], processor(model)
    texts = [
        document.read()
        for entry in sample_inputs()
        if entry.split != "train"
        for document in documents(entry, Reading())
    ]
    assert len(texts) > 30
    plain, encoded = [], []
    for text in texts:
        ids = check_lossless(vocab, text)
        if "<D>" not in text and BLANK not in text:
            plain.append(text)
            encoded.append(ids)
    assert len(plain) > 30
    for ids, expected in zip(encoded, sp.encode(plain)):
        assert np.array_equal(ids, expected)


def test_bytes_of_a_token_are_those_that_it_decodes_to(model):
    vocab, sp = Vocab(model), processor(model)
    assert (
        vocab.size == 2048
        and vocab.byte_lengths.shape == (2048,)
        and vocab.byte_lengths.dtype == np.int64
    )
    assert vocab.special_ids == {"eod": 2, "pad": 0, "unk": 1}
    assert vocab.byte_lengths[:3].tolist() == [0, 0, 0]
    assert vocab.byte_lengths[3:259].tolist() == [1] * 256
    assert vocab.byte_lengths[259:].tolist() == [
        len(sp.decode([i]).encode()) for i in range(259, 2048)
    ]


def test_encoding_has_one_type_also_when_it_is_empty(vocabs):
    assert vocabs["sample"].encode("").shape == (0,)
    assert {vocabs["sample"].encode(text).dtype for text in ("", "abc", "<D>")} == {
        np.dtype(np.int32)
    }


@pytest.mark.parametrize("kind", ["sample", "newlines", "eos"])
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_nasty_text_is_lossless(vocabs, kind, text):
    ids = check_lossless(vocabs[kind], text)
    if "<D>" not in text and BLANK not in text:
        assert ids.tolist() == processor(vocabs[kind].model).encode(text)


@pytest.mark.parametrize("kind", ["sample", "newlines", "eos"])
def test_random_nasty_text_is_lossless(vocabs, kind):
    rng, sp = random.Random(0), processor(vocabs[kind].model)
    for _ in range(1500):
        text = "".join(rng.choices(ALPHABET, k=rng.randrange(30)))
        ids = check_lossless(vocabs[kind], text)
        if "<D>" not in text and BLANK not in text:
            assert ids.tolist() == sp.encode(text), repr(text)


def test_pieces_that_span_line_ends_are_found(vocabs):
    vocab = vocabs["newlines"]
    sp = processor(vocab.model)
    text = "the fox.\nthe dog\n\n\nax\nyb\n\n"
    pieces = [sp.id_to_piece(i) for i in vocab.encode(text).tolist()]
    assert [piece for piece in pieces if "\n" in piece] == [".\n", "\n\n", "x\ny", "\n\n"]
    assert vocab.encode(text).tolist() == sp.encode(text)


def test_learned_pieces_that_span_line_ends_are_found():
    model = train([f"{i}.\n\n\n" * 20 for i in range(200)], vocab_size=290, split_digits=False)
    vocab, sp = Vocab(model), processor(model)
    assert any("\n" in sp.id_to_piece(i) for i in range(vocab.size)), (
        "the tokenizer does not test what it should"
    )
    text = "1.\n\n\n2.\n3.\n\n\n\n\n\n"
    assert check_lossless(vocab, text).tolist() == sp.encode(text)


def test_documents_end_with_eos_where_there_is_no_d_piece(vocabs):
    vocab = vocabs["eos"]
    assert vocab.eod_id == 2 == processor(vocab.model).eos_id()
    assert vocab.byte_lengths[2] == 0
    both = Vocab(train(eos_id=2))
    assert both.eod_id == processor(both.model).piece_to_id("<D>") != 2


def test_a_tokenizer_that_cannot_end_documents_is_refused():
    with pytest.raises(UserError) as error:
        Vocab(train(user_defined_symbols=""), "mine.model")
    assert (
        str(error.value)
        == "mine.model has neither a piece <D> nor an end-of-sentence id, so documents could not be"
        " told apart: train it with user_defined_symbols=<D>"
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"This is a text and no model.\n" * 9, bytes(50), "truncated"],
    ids=["empty", "one byte", "text", "zeros", "truncated"],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, model, content):
    path = tmp_path / "mine.model"
    path.write_bytes(model[: len(model) // 2] if content == "truncated" else content)
    with pytest.raises(
        UserError,
        match="mine.model is not a SentencePiece model: give the .model file of a trained",
    ):
        Vocab.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the tokenizer .*none.model: No such file"):
        Vocab.load(tmp_path / "none.model")


def test_fingerprint_depends_on_the_pieces_only(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    options = dict(
        TOKENIZER_OPTIONS,
        input=tmp_path / "text.txt",
        model_prefix=tmp_path / "other",
        minloglevel=2,
    )
    sentencepiece.SentencePieceTrainer.train(vocab_size=320, **options)
    first = Vocab(train())
    second = Vocab.load(tmp_path / "other.model")
    assert first.model != second.model, "the file embeds where it was trained"
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint == Vocab(first.model, "another name").fingerprint
    others = [
        train(vocab_size=321),
        train(SENTENCES[:9] * 9),
        train(user_defined_symbols="<E>", eos_id=2),
    ]
    assert len({first.fingerprint, *(Vocab(other).fingerprint for other in others)}) == 4


@pytest.mark.parametrize("count", [0, 1, 63, 64, 5000])
def test_text_of_many_tokens_is_that_of_each_on_end(vocabs, count):
    for vocab in vocabs.values():
        ids = np.random.default_rng(count).integers(0, vocab.size, count).astype(np.uint16)
        assert vocab.text_bytes(ids) == b"".join(map(vocab.bytes_of, ids.tolist()))
        special = np.full(count, vocab.eod_id)
        assert vocab.text_bytes(special) == b""


def test_an_empty_file_is_refused_without_a_word_of_sentencepieces(tmp_path, capfd):
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(UserError, match="empty.model is not a SentencePiece model"):
        Vocab.load(tmp_path / "empty.model")
    assert capfd.readouterr() == ("", "")


def test_pieces_that_are_no_text_are_no_tokenizer(model):
    """As a flipped bit leaves them, which SentencePiece itself takes."""
    for piece, damaged in ((b"<unk>", b"<\xffnk>"), (b"<0x41>", b"<0xzz>")):
        assert model.count(piece) == 1
        with pytest.raises(UserError, match="is not a SentencePiece model"):
            Vocab(model.replace(piece, damaged))

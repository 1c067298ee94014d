"""Tokenizers from elsewhere: the exact bytes of their tokens, and those that are refused."""

import hashlib

import numpy as np
import pytest
from small_tokenizers import NASTY

pytest.importorskip("tokenizers")

from foreign_tokenizers import END, byte_level, with_byte_pieces, with_prepended_blank
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from gpt.convert.foreign_tokenizer import ForeignTokenizer, byte_alphabet
from gpt.errors import UserError

LOSSLESS = {"byte-level": byte_level, "byte pieces": with_byte_pieces}
EOD = {"byte-level": 0, "byte pieces": 2}


def foreign(tokenizer, eod_id=0):
    return ForeignTokenizer(tokenizer, eod_id, "models/x")


@pytest.fixture(scope="module", params=LOSSLESS)
def lossless(request):
    return foreign(LOSSLESS[request.param](), EOD[request.param])


def test_the_alphabet_of_byte_level_bpe_is_that_of_the_package():
    alphabet = byte_alphabet()
    assert alphabet.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = [*map(chr, range(0x800)), "\ud7ff", "\ufffd", "\U0010ffff", "\U000fffff"]
    for text in texts:
        ((pieces, _),) = byte_level.pre_tokenize_str(text)
        assert bytes(alphabet[piece] for piece in pieces) == text.encode()


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_the_bytes_of_every_text_add_up(text, lossless):
    ids = lossless.encode(text, "a")
    assert lossless.byte_lengths[ids].sum() == len(text.encode())
    assert lossless.decode(ids) == text


def test_documents_follow_each_other_with_an_end_between(lossless):
    texts = {"a": "the fox", "b": "naïve 🦊", "c": "<|endoftext|></s>"}
    stream = lossless.stream(texts.items())
    ids = [lossless.encode(text, name) for name, text in texts.items()]
    expected = [token for document in ids for token in (*document, lossless.eod_id)]
    assert stream.tokens.tolist() == expected
    assert stream.doc_tokens.tolist() == [len(document) for document in ids]
    assert stream.doc_bytes.tolist() == [len(text.encode()) for text in texts.values()]
    digests = [hashlib.sha256(text.encode()).digest()[:16] for text in texts.values()]
    assert [row.tobytes() for row in stream.doc_hashes] == digests
    assert lossless.byte_lengths[lossless.eod_id] == 0
    assert lossless.eod_id not in np.concatenate(ids)


@pytest.mark.parametrize(
    "make, without",
    [
        (lambda: byte_level(add_prefix_space=True), byte_level),
        (lambda: with_byte_pieces("always"), with_byte_pieces),
        (lambda: with_byte_pieces("first"), with_byte_pieces),
        (with_prepended_blank, with_byte_pieces),
    ],
    ids=["byte-level", "always", "first", "prepended"],
)
def test_a_blank_that_is_put_before_each_text_is_left_out(make, without):
    tokenizer = foreign(make())
    plain = foreign(without())
    assert tokenizer.leaves_blank_out and not plain.leaves_blank_out
    for text in ("the fox", " the fox", "  ", "\nx", "▁x", "<|endoftext|>the"):
        assert tokenizer.encode(text, "a") == plain.encode(text, "a")
        assert tokenizer.byte_lengths[tokenizer.encode(text, "a")].sum() == len(text.encode())


def test_what_looks_like_a_special_token_is_text_and_an_added_word_has_its_bytes():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("qué", normalized=False), AddedToken("   ")])
    added = foreign(tokenizer)
    text = f"a{END}b qué   c"
    ids = added.encode(text, "a")
    assert added.eod_id not in ids and tokenizer.token_to_id("qué") in ids
    assert added.byte_lengths[tokenizer.token_to_id("qué")] == 4
    assert added.decode(ids) == text


def test_what_is_set_for_training_or_for_batches_changes_nothing():
    text = "the quick brown fox"
    expected = foreign(byte_level()).encode(text, "a")
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.model.dropout = 0.9
    assert foreign(tokenizer).encode(text, "a") == expected


def normalized(normalizer):
    tokenizer = byte_level()
    tokenizer.normalizer = normalizer
    return tokenizer


def of_words():
    """Unknown words become one id, and what stands between words is lost."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "fox": 2}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def without_bytes():
    """Byte-level BPE that lacks the piece of a byte."""
    return Tokenizer.from_str(byte_level(257).to_str().replace('"Ġ":', '"ġ":'))


LOSSY = {
    "lower-cases": (
        lambda: normalized(normalizers.Lowercase()),
        "The fox",
        "7 bytes, and its tokens stand for 7, as many, which differ from byte 0 on",
    ),
    "strips": (
        lambda: normalized(normalizers.Strip()),
        "the fox \n",
        "9 bytes, and its tokens stand for 7, 2 fewer, which differ from byte 7 on",
    ),
    "normalises": (
        lambda: normalized(normalizers.NFC()),
        "the cafe\u0301",
        "10 bytes, and its tokens stand for 9, 1 fewer, which differ from byte 7 on",
    ),
    "takes accents off": (
        lambda: normalized(normalizers.BertNormalizer()),
        "naïve",
        "6 bytes, and its tokens stand for 5, 1 fewer, which differ from byte 2 on",
    ),
    "prepends": (
        lambda: normalized(normalizers.Prepend("x")),
        "fox",
        "3 bytes, and its tokens stand for 4, 1 more, which differ from byte 0 on",
    ),
    "cuts into words": (
        of_words,
        "the fox",
        "7 bytes, and its tokens stand for 6, 1 fewer, which differ from byte 3 on",
    ),
    "knows no other word": (
        of_words,
        "dog",
        "3 bytes, and its tokens stand for 0, 3 fewer, which differ from byte 0 on",
    ),
    "lacks a byte": (
        without_bytes,
        "the fox",
        "7 bytes, and its tokens stand for 6, 1 fewer, which differ from byte 3 on",
    ),
}


@pytest.mark.parametrize("make, text, differing", LOSSY.values(), ids=LOSSY)
def test_a_tokenizer_that_changes_a_text_is_refused(make, text, differing):
    with pytest.raises(UserError) as error:
        foreign(make()).stream([("book 7", text), ("fine", "")])
    assert str(error.value) == (
        f"the tokenizer of models/x does not keep the text: 'book 7' has {differing}, so bits per"
        " byte would not be those of the text: take a model whose tokenizer is lossless, as"
        " byte-level BPE is"
    )

"""Exact encoding of documents of any size, several times as fast as SentencePiece on whole
documents.

A BPE model with the identity normalisation merges two neighbouring symbols only where the result is
a piece. So a cut between two characters that stand side by side in no piece changes no id: what is
left and right of it is encoded alike together and apart (Sennrich et al. 2016; merges are chosen by
score, then from the left, on either side for itself). Whether that holds where blanks follow a
word, and around line ends, is looked up in the vocabulary. Where it does, a document is cut into
words, and each word is encoded once and remembered; where it does not, into lines, or not at all.
"""

import re

from sentencepiece import sentencepiece_model_pb2

from gpt.data.manifests import token_dtype
from gpt.data.vocab import BLANK, END_OF_DOCUMENT, Vocab
from gpt.errors import UserError

CHUNK = 1 << 20  # characters that are encoded at a time
# characters without a harmless cut: SentencePiece takes about 150 bytes for each
LONGEST_RUN = 1 << 24
LONGEST_WORD = 64  # characters; longer ones seldom come again
MOST_WORDS = 1 << 19  # remembered, about 100 MB; then all are forgotten


class Encoder:
    """Encodes for one vocabulary. `unit` tells what it cuts texts into: words, lines or whole
    documents, `reason` why not words.

    ids are stored as `dtype`; `end` is the stored end-of-document id.
    """

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.dtype = token_dtype(vocab.size)
        self.end = vocab.eod_id.to_bytes(int(self.dtype[-1]), "little")
        self.reason, pairs = _pairs_within_pieces(vocab.model)
        self._pairs = pairs
        after_word = pairs is not None and not any(b == " " != a for a, b in pairs)
        at_line_end = pairs is not None and not any("\n" in pair for pair in pairs)
        if pairs is not None and not after_word:
            self.reason = "its pieces reach over the ends of words" + " and of lines" * (
                not at_line_end
            )
        self.unit = "words" if after_word else "lines" if at_line_end else "whole documents"
        pattern = {
            (True, True): r"\n| *[^ \n]+| +",
            (True, False): " *[^ ]+| +",
            (False, True): r"\n|[^\n]+",
        }
        self._units = re.compile(pattern.get((after_word, at_line_end), r"(?s:.+)")).findall
        self._ids = _Remembered(vocab, self.dtype)

    def encode(self, text: str) -> bytes:
        """Stored ids of a text, the end-of-document id left out. A literal "<D>" or U+2581 stays
        text.

        Raises Lossy where the tokens do not stand for the text, byte by byte.
        """
        ids = b"".join(map(self._ids.__getitem__, self._units(text)))
        if len(self._ids) > MOST_WORDS:
            self._ids.clear()
        return ids

    def chunks(self, blocks):
        """Join the blocks of a text, and cut them again where that changes no id: yields str, about
        CHUNK characters each.

        Raises UserError where LONGEST_RUN characters hold no such cut.
        """
        text = ""
        for block in blocks:
            seen, text = len(text), text + block
            if len(text) < CHUNK:
                continue
            cut = self._last_cut(text, seen if seen >= CHUNK else 0)
            if cut:
                yield text[:cut]
                text = text[cut:]
            elif len(text) > LONGEST_RUN:
                run = (
                    f"the run that begins {text[:20]!r} holds no two neighbours that no piece joins"
                )
                why = self.reason if self._pairs is None else run
                raise UserError(
                    f"more than {LONGEST_RUN:,} characters would have to be encoded at once "
                    f"({why}): cut the document up, or leave it out"
                )
        if text:
            yield text

    def _last_cut(self, text, first):
        """Last place, at or after `first`, at which a cut is harmless; 0 where there is none."""
        if self._pairs is None:
            return 0
        pairs = self._pairs
        return next(
            (
                i
                for i in range(len(text) - 1, max(first, 1) - 1, -1)
                if text[i - 1 : i + 1] not in pairs
            ),
            0,
        )


class Lossy(Exception):
    """The vocabulary does not encode a text without loss."""


class _Remembered(dict):
    """{text: stored ids}, encoded when first asked for. Ids are checked to stand for the text's own
    bytes."""

    def __init__(self, vocab, dtype):
        super().__init__()
        self._vocab = vocab
        self._dtype = dtype

    def __missing__(self, text):
        ids = self._vocab.encode(text)
        if self._vocab.text_bytes(ids) != text.encode():
            raise Lossy
        stored = ids.astype(self._dtype).tobytes()
        if len(text) <= LONGEST_WORD:
            self[text] = stored
        return stored


def _pairs_within_pieces(model: bytes):
    """(None, the pairs of characters that stand side by side in a piece), or (reason, None) where
    pieces do not tell."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer = proto.trainer_spec
    normalizer = proto.normalizer_spec
    if trainer.model_type != trainer.BPE:
        return f"it is a {trainer.ModelType.Name(trainer.model_type).lower()} model, not BPE", None
    if (
        normalizer.precompiled_charsmap
        or normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
    ):
        return "it normalises text", None
    kinds = proto.SentencePiece
    if (
        not normalizer.escape_whitespaces
        or sum(piece.type == kinds.BYTE for piece in proto.pieces) != 256
    ):
        return "it has no piece for every byte, or none for blanks", None
    texts = [
        piece.piece.replace(BLANK, " ")
        for piece in proto.pieces
        if piece.type in (kinds.NORMAL, kinds.USER_DEFINED, kinds.UNUSED)
    ]
    texts.append(END_OF_DOCUMENT)  # which is cut up where it is met in a text
    return None, {text[i : i + 2] for text in texts for i in range(len(text) - 1)}

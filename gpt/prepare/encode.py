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
from collections.abc import Iterable, Iterator

from sentencepiece import sentencepiece_model_pb2

from gpt.data.manifests import token_dtype
from gpt.data.vocab import BLANK, END_OF_DOCUMENT, Vocab
from gpt.errors import UserError

# Characters that are encoded at a time.
CHUNK = 1 << 20

# Characters without a harmless cut: SentencePiece takes about 150 bytes for each.
LONGEST_RUN = 1 << 24

# Characters of a word that is remembered; longer ones seldom come again.
LONGEST_WORD = 64

# Words that are remembered, about 100 MB; then all are forgotten.
MOST_WORDS = 1 << 19

# What each unit looks like in a text. A word takes the blanks before it along; where pieces reach
# over line ends, words do too.
WORDS = r"\n| *[^ \n]+| +"
WORDS_OVER_LINES = r" *[^ ]+| +"
LINES = r"\n|[^\n]+"
WHOLE_DOCUMENTS = r"(?s:.+)"


class Encoder:
    """Encodes for one vocabulary. `unit` tells what it cuts texts into: words, lines or whole
    documents, `reason` why not words.

    ids are stored as `dtype`; `end` is the stored end-of-document id.
    """

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.dtype = token_dtype(vocab.size)
        self.end = vocab.eod_id.to_bytes(int(self.dtype[-1]), "little")
        self.reason, self._pairs = _pairs_within_pieces(vocab.model)
        self.unit = "whole documents"
        pattern = WHOLE_DOCUMENTS
        if self._pairs is not None:
            cuts_at_lines = not any("\n" in pair for pair in self._pairs)
            if _ends_words_at_blanks(self._pairs):
                self.unit = "words"
                pattern = WORDS if cuts_at_lines else WORDS_OVER_LINES
            elif cuts_at_lines:
                self.unit = "lines"
                pattern = LINES
                self.reason = "its pieces reach over the ends of words"
            else:
                self.reason = "its pieces reach over the ends of words and of lines"
        self._units = re.compile(pattern).findall
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

    def chunks(self, blocks: Iterable[str]) -> Iterator[str]:
        """Join the blocks of a text, and cut them again where that changes no id: about CHUNK
        characters each.

        Raises UserError where LONGEST_RUN characters hold no such cut.
        """
        text = ""
        for block in blocks:
            searched = len(text) if len(text) >= CHUNK else 0
            text += block
            if len(text) < CHUNK:
                continue
            cut = self._last_cut(text, searched)
            if cut:
                yield text[:cut]
                text = text[cut:]
            elif len(text) > LONGEST_RUN:
                raise UserError(
                    f"more than {LONGEST_RUN:,} characters would have to be encoded at once "
                    f"({self._why_no_cut(text)})",
                    mend="cut the document up, or leave it out",
                )
        if text:
            yield text

    def _last_cut(self, text: str, first: int) -> int:
        """Last place, at or after `first`, at which a cut is harmless; 0 where there is none."""
        if self._pairs is None:
            return 0
        for place in range(len(text) - 1, max(first, 1) - 1, -1):
            if text[place - 1 : place + 1] not in self._pairs:
                return place
        return 0

    def _why_no_cut(self, text: str) -> str | None:
        if self._pairs is None:
            return self.reason
        return f"the run that begins {text[:20]!r} holds no two neighbours that no piece joins"


class Lossy(Exception):
    """The vocabulary does not encode a text without loss."""


class _Remembered(dict[str, bytes]):
    """{text: stored ids}, encoded when first asked for. Ids are checked to stand for the text's own
    bytes."""

    def __init__(self, vocab: Vocab, dtype: str):
        super().__init__()
        self._vocab = vocab
        self._dtype = dtype

    def __missing__(self, text: str) -> bytes:
        ids = self._vocab.encode(text)
        if self._vocab.text_bytes(ids) != text.encode():
            raise Lossy
        stored = ids.astype(self._dtype).tobytes()
        if len(text) <= LONGEST_WORD:
            self[text] = stored
        return stored


def _pairs_within_pieces(model: bytes) -> tuple[str | None, set[str] | None]:
    """(None, the pairs of characters that stand side by side in a piece), or (reason, None) where
    pieces do not tell."""
    # protobuf makes the class when its module is imported
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
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
    byte_pieces = sum(piece.type == kinds.BYTE for piece in proto.pieces)
    if not normalizer.escape_whitespaces or byte_pieces != 256:
        return "it has no piece for every byte, or none for blanks", None
    texts = [END_OF_DOCUMENT]  # which is cut up where it is met in a text
    for piece in proto.pieces:
        if piece.type in (kinds.NORMAL, kinds.USER_DEFINED, kinds.UNUSED):
            texts.append(piece.piece.replace(BLANK, " "))
    pairs: set[str] = set()
    for text in texts:
        pairs.update(text[i : i + 2] for i in range(len(text) - 1))
    return None, pairs


def _ends_words_at_blanks(pairs: set[str]) -> bool:
    """Whether no piece holds a blank behind another character."""
    return not any(pair[1] == " " and pair[0] != " " for pair in pairs)

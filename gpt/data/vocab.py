"""The SentencePiece vocabulary: lossless encoding, and the exact number of bytes that every token
stands for."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from gpt.errors import UserError
from gpt.reading import read_bytes

END_OF_DOCUMENT = "<D>"
# SentencePiece writes a blank as this character.
BLANK = "\u2581"

# Fewer are joined one by one, for which numpy would take longer.
FEW_TOKENS = 64


class Vocab:
    """A SentencePiece model and what the trainer needs to know of it.

    `size` ids; `eod_id` ends every document; `byte_lengths` (size,) int64 holds the UTF-8 bytes
    that each token stands for: 1 for a byte piece, 0 for control pieces, the end of a document and
    the unknown piece, else the length of the piece's text. Their sum over an encoded document is
    the document's size.
    """

    def __init__(self, model: bytes, name: str = "tokenizer.model"):
        self.model = model
        self.name = name
        self.size = 0
        try:
            if model:  # of none SentencePiece would print complaints of its own
                self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
                self.size = self._sp.vocab_size()
            if self.size:
                self.eod_id = self._find_eod()
                self._pieces = [self._sp.id_to_piece(i) for i in range(self.size)]
                self._bytes = [self._piece_bytes(i) for i in range(self.size)]
                byte_ids = [i for i in range(self.size) if self._sp.is_byte(i)]
                self._byte_ids = {self._byte_value(i): i for i in byte_ids}
        except (RuntimeError, ValueError):
            self.size = 0
        if not self.size:
            raise UserError(
                f"{name} is not a SentencePiece model",
                mend="give the .model file of a trained one",
            )
        self.byte_lengths = np.array([len(piece) for piece in self._bytes], np.int64)
        # all tokens' bytes on end, and where each token's begin
        self._table = np.frombuffer(b"".join(self._bytes), np.uint8)
        self._table_starts = np.cumsum(self.byte_lengths) - self.byte_lengths
        self._knows_all_bytes = len(self._byte_ids) == 256
        # A zero-width cut after the "<" keeps a literal "<D>" in a text from becoming the end of a
        # document.
        cut = f"(?<=<)(?={END_OF_DOCUMENT[1:]})"
        if self._knows_all_bytes:
            cut = f"({re.escape(BLANK)})|{cut}"
        self._cuts = re.compile(cut)

    @classmethod
    def load(cls, path: str | Path) -> "Vocab":
        """Read a .model file. Raises UserError."""
        try:
            return cls(read_bytes(path), str(path))
        except OSError as error:
            raise UserError(
                f"cannot read the tokenizer {path}: {error.strerror}; every dataset folder holds"
                " its own, and tools/prepare_data.py makes it"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the pieces and their kinds. The .model file's own hash also depends on how it
        was trained."""
        digest = hashlib.sha256()
        for i in range(self.size):
            if self._sp.is_byte(i):
                kind = "byte"
            elif self._sp.is_control(i):
                kind = "control"
            else:
                kind = "piece"
            digest.update(f"{i}\t{kind}\t{self._pieces[i]}\n".encode())
        return digest.hexdigest()

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the end of a document, of padding and of the unknown piece; -1 where the
        vocabulary has none."""
        return {"eod": self.eod_id, "pad": self._sp.pad_id(), "unk": self._sp.unk_id()}

    def _find_eod(self) -> int:
        i = self._sp.piece_to_id(END_OF_DOCUMENT)
        if i != self._sp.unk_id() and self._sp.id_to_piece(i) == END_OF_DOCUMENT:
            return i
        if self._sp.eos_id() >= 0:
            return self._sp.eos_id()
        raise UserError(
            f"{self.name} has neither a piece {END_OF_DOCUMENT} nor an end-of-sentence id, so"
            " documents could not be told apart",
            mend=f"train it with user_defined_symbols={END_OF_DOCUMENT}",
        )

    def _byte_value(self, token: int) -> int:
        return int(self._pieces[token][3:5], 16)  # "<0x0A>"

    def _piece_bytes(self, token: int) -> bytes:
        if token == self.eod_id or self._sp.is_control(token):
            return b""
        if self._sp.is_unknown(token) or self._sp.is_unused(token):
            return b""
        if self._sp.is_byte(token):
            return bytes([self._byte_value(token)])
        return self._pieces[token].replace(BLANK, " ").encode()

    def text_bytes(self, ids: np.ndarray) -> bytes:
        """The bytes that tokens stand for."""
        if len(ids) < FEW_TOKENS:
            return b"".join([self._bytes[i] for i in ids.tolist()])
        lengths = self.byte_lengths[ids]
        ends = np.cumsum(lengths)
        # for each byte, what to add to its place in the text for its place in the table
        to_table = np.repeat(self._table_starts[ids] - (ends - lengths), lengths)
        return self._table[to_table + np.arange(ends[-1])].tobytes()

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32, without the end-of-document id. A literal "<D>" or U+2581 in the
        text stays text.

        The text is taken as a whole; `gpt.prepare.encode.Encoder` finds the same ids several times
        as fast.
        """
        if BLANK in text or END_OF_DOCUMENT in text:
            return np.array(self._encode_cut(text), np.int32)
        return np.array(self._sp.encode(text), np.int32)

    def _encode_cut(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._cuts.split(text):
            if part == BLANK and self._knows_all_bytes:
                ids += [self._byte_ids[byte] for byte in BLANK.encode()]
            elif part:
                ids += self._sp.encode(part)
        return ids

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of tokens."""
        return self._sp.decode(np.asarray(ids).tolist())

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for, none for special ones; a character may be spread
        over several."""
        return self._bytes[token]

"""A tokenizer of transformers', by the exact bytes that its tokens stand for.

Nothing of it is taken on trust: a text is encoded, and the bytes of its tokens, one after another,
must be the text's own. So a tokenizer that lower-cases, strips or normalises is refused at the
first text that it changes, whatever its files say of it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt.data.manifests import HASH_BYTES
from gpt.data.vocab import BLANK
from gpt.errors import UserError
from gpt.prepare.in_memory import TextSplit

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_IDS = 1 << 24  # that are believed
# where the parts of a normalizer, a pre-tokenizer and a decoder stand in tokenizer.json
PARTS = ("normalizers", "pretokenizers", "decoders")


class ForeignTokenizer:
    """Ids of texts without special tokens, and their bytes.

    eod_id ends every document. byte_lengths: int64 (size,), the bytes of each token: none for
    special ones. leaves_blank_out: whether the tokenizer itself would put a blank before each text,
    which is no byte of it and is not put there here.
    """

    def __init__(self, tokenizer: "Tokenizer", eod_id: int, name: str):
        from tokenizers import Tokenizer

        self.name = name
        self.eod_id = eod_id
        largest = max(tokenizer.get_vocab().values(), default=-1)
        # before a file is written with all that lie below it
        if largest >= MOST_IDS:
            raise UserError(f"the tokenizer of {name} has the id {largest:,}", mend="give another")
        state = json.loads(tokenizer.to_str())
        self.leaves_blank_out = _leave_blank_out(state)
        # of training, or of batches
        state["truncation"] = None
        state["padding"] = None
        if "dropout" in state["model"]:
            state["model"]["dropout"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        # what looks like a special token in a text is text
        self._tokenizer.encode_special_tokens = True
        self._bytes = _table(self._tokenizer, state, eod_id)
        self.byte_lengths = np.array([len(piece) for piece in self._bytes], np.int64)
        self.size = len(self._bytes)

    @cached_property
    def _blank_character(self) -> list[int] | None:
        """Ids of U+2581 itself, which pieces have for a blank; None where there are none."""
        pieces = [f"<0x{byte:02X}>" for byte in BLANK.encode()]
        ids = [self._tokenizer.token_to_id(piece) for piece in pieces]
        known = [token for token in ids if token is not None]
        return known if self.decoded(known) == BLANK.encode() else None

    def encode(self, text: str, name: str) -> list[int]:
        """Ids of a text. name: of its document. Raises UserError where they are not lossless."""
        ids = self._ids_of(text)
        content = text.encode()
        decoded = self.decoded(ids)
        if decoded == content:
            return ids
        first = len(os.path.commonprefix([decoded, content]))
        raise UserError(
            f"the tokenizer of {self.name} does not keep the text: {name!r} has {len(content):,}"
            f" bytes, and its tokens stand for {len(decoded):,},"
            f" {_in_words(len(decoded) - len(content))}, which differ from byte {first:,} on, so"
            " bits per byte would not be those of the text",
            mend="take a model whose tokenizer is lossless, as byte-level BPE is",
        )

    def _ids_of(self, text: str) -> list[int]:
        if BLANK not in text or self._blank_character is None:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for index, part in enumerate(text.split(BLANK)):
            if index:
                ids += self._blank_character
            ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def decoded(self, ids: Iterable[int]) -> bytes:
        """The bytes that tokens stand for."""
        return b"".join([self._bytes[token] for token in ids])

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Their text; U+FFFD where the first or the last one cuts a character."""
        return self.decoded(np.asarray(ids).tolist()).decode("utf-8", "replace")

    def stream(self, documents: Iterable[tuple[str, str]]) -> TextSplit:
        """documents: name and text of each. Raises UserError as `encode` does."""
        tokens = []
        doc_tokens = []
        doc_bytes = []
        hashes = []
        for name, text in documents:
            ids = self.encode(text, name)
            content = text.encode()
            tokens.append(np.array([*ids, self.eod_id], np.int32))
            doc_tokens.append(len(ids))
            doc_bytes.append(len(content))
            hashes.append(hashlib.sha256(content).digest()[:HASH_BYTES])
        return TextSplit(
            np.concatenate(tokens),
            np.array(doc_tokens, np.int64),
            np.array(doc_bytes, np.int64),
            np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES),
        )


def _in_words(surplus: int) -> str:
    if not surplus:
        return "as many"
    return f"{abs(surplus):,} {'more' if surplus > 0 else 'fewer'}"


def _components(part: Any) -> Iterator[dict]:
    """A normalizer, pre-tokenizer or decoder of tokenizer.json, and all that it is made of."""
    if isinstance(part, dict):
        yield part
        for key in PARTS:
            for inner in part.get(key, []):
                yield from _components(inner)


def _leave_blank_out(state: dict) -> bool:
    """Change a tokenizer.json such that no blank is put before a text. Returns whether one was."""
    changed = False
    for part in _components(state["normalizer"]):
        if part["type"] == "Prepend" and part["prepend"] in (BLANK, " "):
            part["prepend"] = ""
            changed = True
    for part in _components(state["pre_tokenizer"]):
        if part["type"] == "Metaspace" and part["prepend_scheme"] != "never":
            part["prepend_scheme"] = "never"
            changed = True
        elif part["type"] == "ByteLevel" and part["add_prefix_space"]:
            part["add_prefix_space"] = False
            changed = True
    return changed


def _table(tokenizer: "Tokenizer", state: dict, eod_id: int) -> list[bytes]:
    """The bytes that each id stands for."""
    parts = [state["normalizer"], state["pre_tokenizer"], state["decoder"]]
    kinds = {component["type"] for part in parts for component in _components(part)}
    is_byte_level = "ByteLevel" in kinds
    has_byte_pieces = bool(state["model"].get("byte_fallback"))
    alphabet = byte_alphabet()
    ids = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(ids.values(), default=-1) + 1)
    for piece, token in ids.items():
        if is_byte_level and alphabet.keys() >= set(piece):
            table[token] = bytes([alphabet[character] for character in piece])
        elif has_byte_pieces and len(piece) == 6 and piece.startswith("<0x"):
            table[token] = bytes([int(piece[3:5], 16)])
        elif not is_byte_level:
            table[token] = piece.replace(BLANK, " ").encode()
    for token, added in tokenizer.get_added_tokens_decoder().items():
        table[token] = b"" if added.special else added.content.encode()
    table[eod_id] = b""
    return table


def byte_alphabet() -> dict[str, int]:
    """{character: byte} of byte-level BPE: the bytes that are printable in Latin-1 stand for
    themselves, the others for the characters from U+0100 on, in their order (openai/gpt-2,
    encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return alphabet

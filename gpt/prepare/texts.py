"""A document's text, read once, in blocks.

What is done to every text: a byte order mark at its beginning is left out, CRLF becomes LF, and
bytes that are not UTF-8 are refused, unless `Reading.bad_utf8` asks for U+FFFD in their place or
for the document to be skipped. NULs stay.
"""

import codecs
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.prepare.packing import opened

# Bytes that are read at a time.
BLOCK = 1 << 20

# Bytes of a row, which takes several times as many in memory.
LARGEST_ROW = 1 << 28

# What a document is looked through for, and counted in the manifest by.
ODDITIES = ("byte_order_mark", "crlf", "nul", "bad_utf8")


@dataclass(frozen=True)
class Reading:
    """How texts are taken out of files."""

    text_field: str = "text"
    """The field, or column, of a row that holds its text."""
    id_field: str = "id"
    """The field that names a row; rows without it are named FILE:ROW, from 1."""
    bad_utf8: str = "refuse"
    """refuse, replace or skip."""
    cut_documents: int | None = None
    """Bytes of the documents that larger text files are cut into; None leaves them whole."""

    largest_row: int = LARGEST_ROW
    """Bytes of a row of JSON, or of a row's text in a table; text files may be of any size."""

    def __post_init__(self) -> None:
        are_texts = isinstance(self.text_field, str) and isinstance(self.id_field, str)
        is_size = self.cut_documents is None or type(self.cut_documents) is int
        if not are_texts or not is_size or self.bad_utf8 not in ("refuse", "replace", "skip"):
            raise ValueError("these are no options of reading")

    def facts(self) -> dict[str, Any]:
        """All that the texts depend on."""
        facts = asdict(self)
        del facts["largest_row"]
        return facts

    @property
    def replaces_bad_bytes(self) -> bool:
        return self.bad_utf8 == "replace"


class NotUTF8(UserError):
    """A document has no UTF-8. document: how a mistake names it. escaped: it was JSON, whose bytes
    are UTF-8, and holds an escape such as \\ud83d without the other half of its pair."""

    def __init__(self, document: str, byte: int, escaped: bool = False):
        what = f"{document} is not UTF-8 at byte {byte}"
        mend = "convert it, for example with `iconv -t UTF-8`, take it out"
        if escaped:
            what = f"{document} has the escape of half a surrogate pair at byte {byte} of its text"
            mend = "write the character whole, for example as \\ud83d\\ude00, take the row out"
        super().__init__(what, f"{mend}, or give --bad_utf8 replace or skip")
        self.document = document
        self.byte = byte
        self.escaped = escaped

    def __reduce__(self):
        return type(self), (self.document, self.byte, self.escaped)


class Document:
    """A document by name. `blocks()` yields its text; `oddities` then holds what was found in it,
    of ODDITIES.

    source: a file, or the text itself, as str or bytes. where: how a mistake names it.
    replace_bad_bytes: with U+FFFD. oddities: those found on the way to the text. span: of a file,
    the document's first byte and the one behind its last; all of it by default.
    """

    def __init__(
        self,
        name: str,
        source: Path | str | bytes,
        where: str | None = None,
        replace_bad_bytes: bool = False,
        oddities: Collection[str] = (),
        span: tuple[int, int] | None = None,
    ):
        self.name = name
        self.oddities: set[str] = set()
        self.source = source
        self._replace_bad_bytes = replace_bad_bytes
        self._known_oddities = oddities
        self._span = span
        self._where = where or str(source if isinstance(source, Path) else name)

    def read(self) -> str:
        """The whole text. Raises NotUTF8."""
        return "".join(self.blocks())

    def blocks(self) -> Iterator[str]:
        """The text, piece by piece. Raises NotUTF8."""
        self.oddities = set(self._known_oddities)
        held_back = ""  # a CR whose LF may come next
        at_beginning = True
        for decoded in self._decoded():
            text = held_back + decoded
            held_back = ""
            if at_beginning and text.startswith("\ufeff"):
                self.oddities.add("byte_order_mark")
                text = text[1:]
            at_beginning = False
            if text.endswith("\r"):
                text = text[:-1]
                held_back = "\r"
            if "\r\n" in text:
                self.oddities.add("crlf")
                text = text.replace("\r\n", "\n")
            if "\0" in text:
                self.oddities.add("nul")
            yield text
        yield held_back

    def _decoded(self) -> Iterator[str]:
        undecoded = b""  # the beginning of a character that the next block ends
        position = self._span[0] if self._span else 0
        for block in self._raw():
            at_end = block is None
            content = undecoded + (block or b"")
            try:
                text, used = codecs.utf_8_decode(content, "strict", at_end)
            except UnicodeDecodeError as error:
                if not self._replace_bad_bytes:
                    escaped = isinstance(self.source, str)
                    raise NotUTF8(self._where, position + error.start, escaped) from error
                self.oddities.add("bad_utf8")
                text, used = codecs.utf_8_decode(content, "replace", at_end)
            if text:
                yield text
            undecoded = content[used:]
            position += used

    def _raw(self) -> Iterator[bytes | None]:
        """Blocks of bytes; None after the last one."""
        if isinstance(self.source, Path):
            first, end = self._span or (0, sys.maxsize)
            with opened(self.source) as file:
                if first:
                    file.seek(first)
                left = end - first
                while block := file.read(min(BLOCK, left)):
                    left -= len(block)
                    yield block
        elif isinstance(self.source, bytes):
            yield self.source
        else:
            yield self.source.encode("utf-8", "surrogatepass")
        yield None

"""Large text files cut into documents, at the ends of paragraphs or of lines."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from gpt.errors import UserError
from gpt.prepare.documents import Input, holds_rows
from gpt.prepare.packing import opened, packing_of
from gpt.prepare.rows import Part

# Bytes of the documents that a file is cut into.
SMALLEST = 1000

# Bytes that are looked through, at most, for a paragraph's or a line's end.
LOOKED_THROUGH = 1 << 16

# A line's end and an empty line.
PARAGRAPH_ENDS = (b"\n\n", b"\n\r\n")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def cut(inputs: Iterable[Input], size: int | None) -> list[Input]:
    """The inputs, with each text file of more than about `size` bytes as the documents FILE#1,
    FILE#2, … of about so many; None cuts nothing.

    The documents of a file are together its bytes, none of them twice. Raises UserError.
    """
    if size is None:
        return list(inputs)
    if size < SMALLEST:
        raise UserError(
            f"--cut_documents {size} is too small", mend=f"give {SMALLEST} bytes or more"
        )
    documents = []
    for entry in inputs:
        count = (entry.size + size // 2) // size
        if count < 2 or holds_rows(entry) or not isinstance(entry.source, Path):
            documents.append(entry)
        elif packing_of(entry.source):
            raise UserError(
                f"{entry.source} is packed, and --cut_documents cuts plain files alone",
                mend="unpack it",
            )
        else:
            documents += _documents_of(entry, entry.source, count)
    return documents


def _documents_of(entry: Input, path: Path, count: int) -> list[Input]:
    """`count` documents of about the same size."""
    ends = []
    with opened(path) as file:
        for number in range(1, count):
            ends.append(_cut_after(file, entry.size * number // count, entry.size // count // 2))
    ends.append(entry.size)
    documents = []
    first = 0
    for number, end in enumerate(ends, 1):
        part = Part(first, end, 0)
        name = f"{entry.name}#{number}"
        documents.append(replace(entry, name=name, part=part, size=end - first))
        first = end
    return documents


def _cut_after(file: BinaryIO, place: int, most: int) -> int:
    """Where to cut a file at or after `place`, within `most` bytes: behind a paragraph, else behind
    a line, else between two characters."""
    begin = place - 3  # the first byte of the character that `place` may be inside of
    file.seek(begin)
    content = file.read(3 + min(most, LOOKED_THROUGH))
    cuts = []
    for end in PARAGRAPH_ENDS:
        place_of_end = content.find(end, 3)
        if place_of_end >= 0:
            cuts.append(place_of_end + len(end))
    line_end = content.find(b"\n", 3)
    if cuts:
        position = min(cuts)
    elif line_end >= 0:
        position = line_end + 1
    else:
        position = 3
        while position and content[position] & 0xC0 == 0x80:  # inside of a character
            position -= 1
    # which would be left out at the beginning of a document
    while content.startswith(BYTE_ORDER_MARK, position):
        position += len(BYTE_ORDER_MARK)
    return begin + position

"""Sums of an evaluation for each document of a split, kept as lines of JSON or as Parquet.

A line, or row, for each document of the split in its order:

    hash          beginning of the sha256 of its text, hexadecimal, as the dataset knows it
    nats          over all of its tokens, the end of the document included; null for no number
    tokens
    text_nats     over the tokens that carry bytes
    text_tokens   those
    bytes         of its text
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config.keys import LARGEST, block_of
from gpt.data.manifests import HASH_BYTES
from gpt.errors import UserError, in_brief
from gpt.files import write_atomically
from gpt.metrics.events import finite
from gpt.parsing import parse_json
from gpt.prepare.packing import need
from gpt.quantities import TOLERANCE, is_number
from gpt.reading import open_regular

JSON_LINES = ".jsonl"
PARQUET = ".parquet"
FLOATS = ("nats", "text_nats")
COUNTS = ("tokens", "text_tokens", "bytes")
SUMS = ("nats", "tokens", "text_nats", "text_tokens", "bytes")
FIELDS = ("hash", *SUMS)
HASH = re.compile(rf"[0-9a-f]{{{2 * HASH_BYTES}}}")
MOST_BYTES = 4 << 30
MOST_BYTES_OF_LINE = 1 << 10
MOST_DOCUMENTS = 20_000_000
MEND = "make it anew with `python gpt/eval.py --per_document`"


@dataclass(frozen=True)
class DocumentSums:
    """Row i is document i of the split. hashes: the first gpt.data.manifests.HASH_BYTES bytes of
    the sha256 of each text, hexadecimal; arrays (documents,): nats, text_nats float64, the others
    int64."""

    hashes: tuple[str, ...]
    nats: np.ndarray
    tokens: np.ndarray
    text_nats: np.ndarray
    text_tokens: np.ndarray
    bytes: np.ndarray

    def totals(self) -> dict[str, Any]:
        """{"nats", "tokens", "text_nats", "text_tokens", "bytes"} of all documents together."""
        return {name: getattr(self, name).sum().item() for name in SUMS}


def require_writable(path: Path) -> None:
    """Raise UserError where `write` could not write a file of this name."""
    if path.suffix == PARQUET:
        need("pyarrow.parquet", path)
    elif path.suffix != JSON_LINES:
        raise UserError(
            f"{path} is neither a {JSON_LINES} nor a {PARQUET} file",
            mend="let its name end in one of them",
        )


def write(path: Path, sums: DocumentSums) -> None:
    """By the path's suffix: .jsonl or .parquet. Raises UserError for another, and where it cannot
    be written."""
    require_writable(path)
    content = _as_parquet(path, sums) if path.suffix == PARQUET else _as_lines(sums)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror})",
            mend="make room, or give the name of a file in another folder",
        ) from error


def _as_lines(sums: DocumentSums) -> bytes:
    columns = [sums.hashes, *(getattr(sums, name).tolist() for name in SUMS)]
    lines = []
    for values in zip(*columns):
        lines.append(json.dumps(finite(dict(zip(FIELDS, values))), allow_nan=False))
    return "".join(f"{line}\n" for line in lines).encode()


def _as_parquet(path: Path, sums: DocumentSums) -> bytes:
    pyarrow = need("pyarrow", path)
    parquet = need("pyarrow.parquet", path)
    columns = {"hash": pyarrow.array(sums.hashes, pyarrow.string())}
    for name in SUMS:
        columns[name] = pyarrow.array(getattr(sums, name))
    output = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), output)
    return output.getvalue().to_pybytes()


def read(path: Path) -> DocumentSums:
    """Raises UserError where it holds something else, or sums that no document has."""
    if path.suffix not in (JSON_LINES, PARQUET):
        require_writable(path)
    try:
        columns = _parquet_columns(path) if path.suffix == PARQUET else _columns_of_lines(path)
    except OSError as error:
        raise UserError(in_brief(error, path), mend=MEND) from error
    if not columns["hash"]:
        raise UserError(f"{path} holds no documents", mend=MEND)
    floats = {name: np.array(columns[name], np.float64) for name in FLOATS}
    counts = {name: np.array(columns[name], np.int64) for name in COUNTS}
    sums = DocumentSums(tuple(columns["hash"]), **floats, **counts)
    _require_possible(path, sums)
    return sums


def _columns_of_lines(path: Path) -> dict[str, list]:
    columns: dict[str, list] = {name: [] for name in FIELDS}
    block = partial(block_of, place=str(path))
    with open_regular(path, MOST_BYTES) as file:
        number = 0
        while line := file.readline(MOST_BYTES_OF_LINE):
            number += 1
            problem = "there are more documents than a split can have"
            document = None
            if number <= MOST_DOCUMENTS:
                document, problem = _document(line, block)
            if document is None:
                raise UserError(f"{path}:{number}: {problem}", mend=MEND)
            for name, values in columns.items():
                values.append(document[name])
    return columns


def _document(line: bytes, block: Callable) -> tuple[Mapping[str, Any] | None, str]:
    """(the fields of a line, or None; what is wrong with it). block: makes a block of JSON."""
    if not line.endswith(b"\n"):
        return None, "the line is cut off"
    try:
        document = parse_json(line, block)
    except ValueError:
        return None, "the line is no JSON"
    if not isinstance(document, dict) or document.keys() != set(FIELDS):
        return None, f"the line is no block of {', '.join(FIELDS)}"
    if not isinstance(document["hash"], str) or not HASH.fullmatch(document["hash"]):
        return None, f"hash must be {2 * HASH_BYTES} hexadecimal digits"
    for name in COUNTS:
        if type(document[name]) is not int or not 0 <= document[name] <= LARGEST:
            return None, f"{name} must be a whole number"
    for name in FLOATS:
        if document[name] is None:
            document[name] = math.nan
        elif not is_number(document[name]):
            return None, f"{name} must be a number"
    return document, ""


def _parquet_columns(path: Path) -> dict[str, list]:
    pyarrow = need("pyarrow", path)
    parquet = need("pyarrow.parquet", path)
    kinds = {
        "hash": pyarrow.string(),
        **dict.fromkeys(FLOATS, pyarrow.float64()),
        **dict.fromkeys(COUNTS, pyarrow.int64()),
    }
    try:
        with open_regular(path, MOST_BYTES) as content, parquet.ParquetFile(content) as file:
            schema = file.schema_arrow
            if {field.name: field.type for field in schema} != kinds or len(schema) != len(kinds):
                raise UserError(f"{path} has other columns than {', '.join(FIELDS)}", mend=MEND)
            _require_bounded(path, file.metadata)
            table = file.read()
            table.validate(full=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # of the file, which could not be opened
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no whole Parquet file ({reason})", mend=MEND) from error
    if any(table[name].null_count for name in FIELDS):
        raise UserError(f"{path} has rows without a value", mend=MEND)
    hashes = table["hash"].to_pylist()
    for number, text in enumerate(hashes, 1):
        if not HASH.fullmatch(text):
            problem = f"hash must be {2 * HASH_BYTES} hexadecimal digits"
            raise UserError(f"{path}:{number}: {problem}", mend=MEND)
    return {"hash": hashes, **{name: table[name].to_numpy() for name in SUMS}}


def _require_bounded(path: Path, metadata: Any) -> None:
    """Raise UserError where a Parquet file's own facts tell of more than can be meant."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if metadata.num_rows > MOST_DOCUMENTS or size > MOST_BYTES:
        raise UserError(f"{path}: there are more documents than a split can have", mend=MEND)


def _require_possible(path: Path, sums: DocumentSums) -> None:
    """Raise UserError where sums of a document contradict each other."""
    for is_wrong, problem in _contradictions(sums):
        if is_wrong.any():
            number = int(is_wrong.argmax()) + 1
            raise UserError(f"{path}:{number}: {problem}", mend=MEND)
    for name in COUNTS:
        if getattr(sums, name).sum(dtype=np.float64) > LARGEST:
            raise UserError(f"{path}: {name} sum up to more than {LARGEST}", mend=MEND)


def _contradictions(sums: DocumentSums) -> Iterator[tuple[np.ndarray, str]]:
    """(bool (documents,) of where it is so, what is wrong)"""
    for name in SUMS:
        yield getattr(sums, name) < 0, f"{name} is below 0"
    for name in FLOATS:
        yield np.isinf(getattr(sums, name)), f"{name} is infinite"
    yield sums.tokens == 0, "no token of it was scored"
    yield sums.text_tokens > sums.tokens, "text_tokens are more than tokens"
    yield sums.text_tokens > sums.bytes, "text_tokens are more than bytes"
    yield sums.text_nats > sums.nats * (1 + TOLERANCE), "text_nats are more than nats"

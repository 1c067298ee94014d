"""Files of rows of all kinds."""

import bz2
import gzip
import json
import lzma

import pyarrow
from pyarrow import ipc, parquet

# What rows hold, and which texts a dataset of them holds.
ROWS = [
    {"text": "the whale", "id": "moby"},
    {"text": "the ship\r\n\r\nand sea", "id": "ship"},
    {"text": "", "id": "none"},
    {"text": "\ufeffcaptain \0", "id": 4},
    {"text": "the whale", "id": "again"},
    {"text": None, "id": "null"},
]
TEXTS = {
    "moby": "the whale",
    "ship": "the ship\n\nand sea",
    "4": "captain \0",
    "again": "the whale",
}


def json_lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows):
    columns = {}
    for key in ("text", "id"):
        if any(key in row for row in rows):
            columns[key] = [row.get(key) for row in rows]
    return pyarrow.table(columns)


def write_rows(path, rows):
    """Write rows as the file's ending says; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".parquet", ".arrow"):
        rows = [{**row, "id": str(row["id"])} if "id" in row else row for row in rows]
        write_table(path, table(rows))
    else:
        path.write_bytes(pack(path.suffix.lower(), json_lines(rows)))
    return path


def write_table(path, content):
    if path.suffix == ".parquet":
        parquet.write_table(content, path, row_group_size=2)
        return
    # a stream, as Hugging Face's `datasets` saves it, or a file of Arrow's
    new = ipc.new_file if path.name.endswith(".file.arrow") else ipc.new_stream
    with new(path, content.schema) as out:
        out.write_table(content, max_chunksize=2)


def pack(suffix, content):
    """Compress as a file's ending says."""
    # in two frames, as tools that append or compress in parallel leave them
    if suffix == ".zst":
        halves = content[: len(content) // 2], content[len(content) // 2 :]
        return b"".join(pyarrow.compress(half, "zstd", asbytes=True) for half in halves)
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    return packers[suffix](content) if suffix in packers else content

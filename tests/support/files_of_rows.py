"""Files of rows of all kinds."""

import gzip
import json

import pyarrow
from pyarrow import parquet

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
    return pyarrow.table(
        {
            key: [row.get(key) for row in rows]
            for key in ("text", "id")
            if any(key in row for row in rows)
        }
    )


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        rows = [{**row, "id": str(row["id"])} if "id" in row else row for row in rows]
        parquet.write_table(table(rows), path, row_group_size=2)
    else:
        path.write_bytes(pack(path.suffix, json_lines(rows)))
    return path


def pack(suffix, content):
    # in two frames, as tools that append or compress in parallel leave them
    if suffix == ".zst":
        halves = content[: len(content) // 2], content[len(content) // 2 :]
        return b"".join(pyarrow.compress(half, "zstd", asbytes=True) for half in halves)
    return gzip.compress(content) if suffix == ".gz" else content

"""Rows of JSON lines and Parquet files."""

import gzip
import json

import pyarrow
import pytest
from files_of_rows import ROWS, TEXTS, json_lines, pack, write_rows
from pyarrow import parquet
from small_corpora import (
    BOOKS,
    build,
    check_split,
    every,
    files_of,
    in_order,
    write_texts,
)

from gpt.errors import UserError
from gpt.prepare import documents, units
from gpt.prepare.documents import Input
from gpt.prepare.inputs import find_inputs
from gpt.prepare.texts import Reading


@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_rows_are_documents_named_by_their_ids(tmp_path, vocab, file):
    write_rows(tmp_path / "in" / "train" / "deep" / file, ROWS)
    out = build(tmp_path / "in", tmp_path / "out", vocab)
    check_split(out, "train", in_order(TEXTS))
    entry = json.loads((out / "manifest.json").read_text())["splits"]["train"]
    assert entry["left_out"] == {"empty": 2, "bad_utf8": 0, "duplicate": 0}
    assert entry["found"] == {
        "byte_order_mark": 1,
        "crlf": 1,
        "nul": 1,
        "bad_utf8": 0,
        "duplicate": 1,
        "also_held_out": 0,
    }


@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_rows_without_ids_are_numbered_and_trained_on_where_they_are_not_held_out(
    tmp_path, file, monkeypatch
):
    monkeypatch.setattr("gpt.prepare.texts.BLOCK", 1000)
    path = write_rows(tmp_path / file, [{"text": text} for text in BOOKS.values()])
    out = build(path, tmp_path / "out", 300, test_every=4)
    for split, texts in every(
        {f"{file}:{i}": text for i, text in enumerate(BOOKS.values(), 1)}, 4
    ).items():
        check_split(out, split, texts)


def test_files_of_all_kinds_beside_each_other_make_the_same_splits_as_text_files(tmp_path, vocab):
    texts = write_texts(
        tmp_path / "texts", {name.replace("/", " "): text for name, text in BOOKS.items()}
    )
    rows = [{"text": text, "id": name.replace("/", " ")} for name, text in BOOKS.items()]
    for i, file in enumerate(["a.jsonl", "b/b.parquet", "c.jsonl.zst"]):
        write_rows(tmp_path / "mixed" / file, rows[i:12:3])
    write_texts(tmp_path / "mixed", {row["id"]: row["text"] for row in rows[12:]})
    assert files_of(build(texts, tmp_path / "a", vocab, test_every=4)) == files_of(
        build(tmp_path / "mixed", tmp_path / "b", vocab, test_every=4)
    )


def test_rows_that_are_not_utf8(tmp_path, vocab):
    lines = b'{"text": "a\xff"}\n{"text": "b\\ud800"}\n{"text": "sea"}\n'
    write_texts(tmp_path / "in", {"train/a.jsonl": lines})
    with pytest.raises(
        UserError, match="train/a.jsonl:1 is not UTF-8 at byte 11.*the next: .*a.jsonl:2"
    ):
        build(tmp_path / "in", tmp_path / "out", vocab)
    out = build(tmp_path / "in", tmp_path / "skipped", vocab, bad_utf8="skip")
    check_split(out, "train", {"a.jsonl:3": "sea"})
    out = build(tmp_path / "in", tmp_path / "replaced", vocab, bad_utf8="replace")
    check_split(
        out,
        "train",
        in_order({"a.jsonl:1": "a\ufffd", "a.jsonl:2": "b\ufffd\ufffd\ufffd", "a.jsonl:3": "sea"}),
    )
    assert (
        json.loads((out / "manifest.json").read_text())["splits"]["train"]["found"]["bad_utf8"] == 2
    )


def test_a_byte_order_mark_before_the_first_row_is_left_out(tmp_path, vocab):
    write_texts(
        tmp_path / "in",
        {
            "train/a.jsonl": (
                "\ufeff".encode() + json_lines([{"text": "sea"}]).replace(b"\n", b"\r\n")
            )
        },
    )
    check_split(build(tmp_path / "in", tmp_path / "out", vocab), "train", {"a.jsonl:1": "sea"})


ROW = [{"text": "a"}]


BAD_INPUTS = {
    "not JSON": (
        {"a.jsonl": b'{"text": "a"}\n{"text": \n'},
        {},
        "a.jsonl:2 is not JSON .*: mend it, or take it out",
    ),
    "no object": (
        {"a.jsonl": b"[1]\n"},
        {},
        "a.jsonl:1 holds no JSON object: every line must be one",
    ),
    "no text": (
        {"a.jsonl": b'\n{"body": "a", "b": 1}\n'},
        {},
        (
            "a.jsonl:2 has no field 'text': it has 'body', 'b'; name the one that holds the text"
            " with --text_field"
        ),
    ),
    "a number": (
        {"a.jsonl": b'{"text": 5}'},
        {},
        "a.jsonl:1: the field 'text' holds int, not text: name another",
    ),
    "an odd id": (
        {"a.jsonl": b'{"text": "a", "id": [1]}'},
        {},
        r"a.jsonl:1 has an id that is no name \(\[1\]\).* --id_field",
    ),
    "twice the same id": (
        {"a.jsonl": json_lines([{"text": "a", "id": "x"}] * 2)},
        {},
        "two documents are called 'x': rename one, or, .*--id_field",
    ),
    "gzip cut off": (
        {"a.jsonl.gz": gzip.compress(json_lines(BOOKS.items()))[:-9]},
        {},
        "a.jsonl.gz is damaged or cut off",
    ),
    "no gzip": (
        {"a.jsonl.gz": b"text"},
        {},
        "a.jsonl.gz is damaged or cut off .*: copy it again, or take it out",
    ),
    "zstd cut off": (
        {"a.jsonl.zst": pack(".zst", json_lines([{"text": "a" * 99}] * 99))[:-9]},
        {},
        "zst is damaged or cut off",
    ),
    "no zstd": ({"a.jsonl.zst": b"text"}, {}, "a.jsonl.zst is damaged or cut off"),
    "no parquet": (
        {"a.parquet": b"text"},
        {},
        "a.parquet is no whole Parquet file .*: copy it again, or take it out",
    ),
    "no row": (
        {"a.jsonl": b"\n", "../test/b.txt": b"sea"},
        {},
        "nothing is left to train on: all 1 documents are held out",
    ),
    "other text field": (
        {"a.jsonl": json_lines(ROW)},
        {"text_field": "body"},
        "a.jsonl:1 has no field 'body': it has 'text'",
    ),
}


@pytest.mark.parametrize("files, reading, message", BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input(tmp_path, vocab, files, reading, message):
    write_texts(tmp_path / "in" / "train", files)
    with pytest.raises(UserError, match=message):
        build(tmp_path / "in", tmp_path / "out", vocab, **reading)
    assert not (tmp_path / "out").exists()


def test_parquet_without_the_column_or_with_numbers(tmp_path, vocab):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), path)
    with pytest.raises(
        UserError, match="a.parquet has no field 'text': it has 'body', 'n'; name the one"
    ):
        build(path, tmp_path / "out", vocab, test_every=2)
    with pytest.raises(
        UserError,
        match="a.parquet: the column 'n' holds int64, not text: name another with --text_field",
    ):
        build(path, tmp_path / "out", vocab, test_every=2, text_field="n")


@pytest.mark.parametrize("file", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("size", [1, 100, 700])
def test_large_files_of_rows_are_read_in_parts(tmp_path, file, size, monkeypatch):
    monkeypatch.setattr("gpt.prepare.texts.BLOCK", 64)
    path = write_rows(tmp_path / file, [{"text": text} for text in BOOKS.values()])
    if file == "a.jsonl":
        # a blank line, and no end of the last
        path.write_bytes(b"\n" + path.read_bytes().rstrip(b"\n"))
    (entry,) = find_inputs(path, False)
    parts = documents.divide(entry, size)
    reading = Reading()
    assert len(parts) > 2 and all(part.size > 0 for part in parts)
    rows = [
        [(row.name, row.read()) for row in documents.documents(part, reading)] for part in parts
    ]
    assert sum(rows, []) == [(row.name, row.read()) for row in documents.documents(entry, reading)]
    assert [text for _, text in sum(rows, [])] == list(BOOKS.values())


def test_units_depend_on_the_inputs_only(monkeypatch):
    from gpt.prepare.units import units_of

    monkeypatch.setattr(units, "SMALLEST_UNIT", 10)
    inputs = [Input(str(i), "", None, size) for i, size in enumerate([4, 4, 4, 30, 0, 2, 9])]
    assert [[entry.size for entry in unit] for unit in units_of(inputs)] == [
        [4, 4, 4],
        [30],
        [0, 2, 9],
    ]

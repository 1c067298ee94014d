"""Rows of JSON lines and Parquet files."""

import gzip
import json
import tracemalloc
import zlib

import files_of_rows
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
    names_of,
    write_texts,
)

from gpt.errors import UserError
from gpt.prepare import documents, packing, units
from gpt.prepare.documents import Input
from gpt.prepare.inputs import find_inputs
from gpt.prepare.texts import Reading

FILES = [
    "a.jsonl",
    "a.jsonl.gz",
    "a.jsonl.zst",
    "a.jsonl.bz2",
    "a.JSONL.XZ",
    "a.ndjson",
    "a.jsonlines",
    "a.json.gz",
    "a.parquet",
    "a.arrow",
    "a.file.arrow",
]


@pytest.mark.parametrize("file", FILES)
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


def test_texts_that_are_packed_are_the_same_documents(tmp_path, vocab):
    texts = {
        "a.txt": "the whale\r\n" * 300,
        "b.txt": "Ünder",
        "c.txt": "\ufeffsea",
        "d.txt": "ship",
    }
    packed = {}
    for name, ending in zip(texts, (".gz", ".zst", ".bz2", ".XZ")):
        packed[f"train/{name.upper()}{ending}"] = pack(ending.lower(), texts[name].encode())
    write_texts(tmp_path / "in", packed)
    out = build(tmp_path / "in", tmp_path / "out", vocab)
    expected = {
        f"{name.upper()}{ending}": texts[name].replace("\r", "").lstrip("\ufeff")
        for name, ending in zip(texts, (".gz", ".zst", ".bz2", ".XZ"))
    }
    check_split(out, "train", in_order(expected))
    # a named file of another ending is text, packed or not
    path = tmp_path / "enwik8.gz"
    path.write_bytes(gzip.compress(b"the sea"))
    (document,) = documents.documents(find_inputs_of_file(path), Reading())
    assert document.read() == "the sea"


def find_inputs_of_file(path):
    (entry,) = find_inputs(path, False)
    return entry


LARGE = [{"text": "sea", "id": "a"}, {"text": "whale " * 100, "id": "b"}, {"text": "ship"}]


@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_a_row_without_end_is_refused_before_it_fills_the_memory(
    tmp_path, vocab, file, monkeypatch
):
    monkeypatch.setattr("gpt.prepare.texts.BLOCK", 64)
    rows = [{"id": str(i), **row} for i, row in enumerate(LARGE)]
    path = write_rows(tmp_path / "in" / "train" / file, rows)
    with pytest.raises(UserError) as error:
        build(tmp_path / "in", tmp_path / "out", vocab, largest_row=300)
    assert str(error.value) == (
        f"{path}:2 has more than 300 bytes, and a row is held in memory: cut it up, take it out, or"
        " give --largest_row BYTES"
    )
    out = build(tmp_path / "in", tmp_path / "out", vocab, largest_row=700)
    assert sorted(names_of(out, "train")) == ["2", "a", "b"]


def test_a_bomb_takes_no_more_memory_than_a_row_may_have(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (64 << 20)))
    tracemalloc.start()
    with pytest.raises(UserError, match="a.jsonl.gz:1 has more than 1,000,000 bytes"):
        list(documents.documents(find_inputs_of_file(path), Reading(largest_row=10**6)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 << 20


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("column", ["text", "id"])
def test_rows_that_share_a_large_value_are_not_in_memory_together(tmp_path, ending, column):
    large = pyarrow.DictionaryArray.from_arrays([0] * 2000, ["x" * (4 << 20)])
    small = pyarrow.array([str(i) for i in range(2000)])
    columns = {"text": small, "id": small, column: large}
    path = tmp_path / f"a{ending}"
    files_of_rows.write_table(path, pyarrow.table(columns))
    before = pyarrow.total_allocated_bytes()
    (entry,) = find_inputs(path, False)
    rows = documents.documents(entry, Reading(largest_row=10**6))
    with pytest.raises(UserError, match=f"a{ending}:1 has more than 1,000,000 bytes"):
        next(rows)
    assert pyarrow.total_allocated_bytes() - before < 200 << 20


ROW = [{"text": "a"}]


def with_largest_dictionary(packed):
    """A file of xz whose header claims that unpacking takes 4 GiB (the .xz format, 3.1 and
    5.3.1)."""
    header = bytearray(packed[12 : 12 + 4 * (packed[12] + 1)])
    header[4] = 40
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    return packed[:12] + header + packed[12 + len(header) :]


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
        "two documents are called 'x', rows of a.jsonl: name another field with --id_field, or one"
        r" that no row has \(--id_field none\), by which rows are called FILE:ROW",
    ),
    "ids that begin anew": (
        {"a.jsonl": json_lines([{"text": "a", "id": 0}]), "b/b.jsonl": b'{"text": "b", "id": 0}'},
        {},
        "two documents are called '0', rows of a.jsonl and b/b.jsonl: name another field",
    ),
    "an id that is a file's name": (
        {"a.jsonl": json_lines([{"text": "a", "id": "b.txt"}]), "b.txt": "b"},
        {},
        "two documents are called 'b.txt', rows of a.jsonl: name another field",
    ),
    "a field within a field": (
        {"a.jsonl": b'{"doc": {"text": "a"}}'},
        {"text_field": "doc.text"},
        "a.jsonl:1 has no field 'doc.text', and fields within 'doc' are not looked into: write the",
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
    "an empty gzip": (
        {"a.jsonl.gz": b"", "b.txt": "sea"},
        {},
        r"a.jsonl.gz is damaged or cut off \(it is empty\): copy it again",
    ),
    "an empty bzip2": ({"a.jsonl.bz2": b"", "b.txt": "sea"}, {}, "a.jsonl.bz2 is damaged or cut"),
    "an empty text": ({"a.txt.gz": b"", "b.txt": "sea"}, {}, "a.txt.gz is damaged or cut off"),
    "xz cut off": (
        {"a.txt.xz": pack(".xz", b"the sea" * 99)[:-9]},
        {},
        "a.txt.xz is damaged or cut off",
    ),
    "xz of 4 GiB of memory": (
        {"a.txt.xz": with_largest_dictionary(pack(".xz", b"the sea"))},
        {},
        "a.txt.xz takes more than 1,024 MiB of memory to be unpacked: pack it again, with `xz -9`",
    ),
    "no bzip2": ({"a.txt.bz2": b"text"}, {}, "a.txt.bz2 is damaged or cut off"),
    "no arrow": ({"a.arrow": b"text"}, {}, "a.arrow is no whole Arrow file .*: copy it again"),
    "deep": (
        {"a.jsonl": b'{"text": "a", "b": ' + b"[" * 2000 + b"]" * 2000 + b"}"},
        {},
        "a.jsonl:1 is not JSON .blocks within blocks, more than 500 deep",
    ),
    "a number of many digits": (
        {"a.jsonl": b'{"text": "a", "b": ' + b"9" * 5000 + b"}"},
        {},
        "a.jsonl:1 is not JSON .a number of 5000 digits",
    ),
    "an empty zstd": ({"a.jsonl.zst": b"", "b.txt": "sea"}, {}, "a.jsonl.zst is damaged or cut"),
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
    twice = pyarrow.Table.from_arrays([["a"], ["b"]], ["text", "text"])
    parquet.write_table(twice, path)
    with pytest.raises(UserError, match="a.parquet has 2 columns 'text': rename all but one"):
        build(path, tmp_path / "out", vocab, test_every=2)
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    path.write_bytes(path.read_bytes().replace(b"text", b"\xff" * 4))
    with pytest.raises(UserError, match="a.parquet is no whole Parquet file .*: copy it again"):
        build(path, tmp_path / "out", vocab, test_every=2)
    nested = pyarrow.array([{"text": "a"}])
    parquet.write_table(pyarrow.table({"doc": nested}), path)
    with pytest.raises(UserError, match="the column 'doc' holds struct<text: string>, not text"):
        build(path, tmp_path / "out", vocab, test_every=2, text_field="doc")
    with pytest.raises(UserError, match="has no field 'doc.text', and fields within 'doc' are not"):
        build(path, tmp_path / "out", vocab, test_every=2, text_field="doc.text")


def test_ids_that_begin_anew_are_left_aside_by_a_field_that_no_row_has(tmp_path, vocab):
    rows = json_lines([{"text": "sea", "id": 0}, {"text": "ship", "id": 1}])
    folder = write_texts(tmp_path / "in", {"train/a.jsonl": rows, "train/b.jsonl": rows})
    with pytest.raises(UserError, match="--id_field none"):
        build(folder, tmp_path / "out", vocab)
    out = build(folder, tmp_path / "out", vocab, id_field="none")
    assert sorted(names_of(out, "train")) == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:2"]


def test_an_escape_of_half_a_surrogate_pair(tmp_path, vocab):
    rows = b'{"text": "hello \\ud83d world"}\n{"text": "whole \\ud83d\\ude00"}\n'
    folder = write_texts(tmp_path / "in", {"train/a.jsonl": rows})
    with pytest.raises(UserError) as error:
        build(folder, tmp_path / "out", vocab)
    assert str(error.value) == (
        f"{folder}/train/a.jsonl:1 has the escape of half a surrogate pair at byte 6 of its"
        " text: write the character whole, for example as \\ud83d\\ude00, take the row out, or give"
        " --bad_utf8 replace or skip"
    )
    out = build(folder, tmp_path / "replaced", vocab, bad_utf8="replace")
    texts = {"a.jsonl:1": "hello \ufffd\ufffd\ufffd world", "a.jsonl:2": "whole \U0001f600"}
    check_split(out, "train", in_order(texts))


TEXT_COLUMNS = {
    "categories": lambda texts: pyarrow.array(texts).dictionary_encode(),
    "categories of large texts": lambda texts: pyarrow.array(
        texts, pyarrow.large_string()
    ).dictionary_encode(),
    "views": lambda texts: pyarrow.array(texts, pyarrow.string_view()),
    "large texts": lambda texts: pyarrow.array(texts, pyarrow.large_string()),
    "bytes": lambda texts: pyarrow.array([text.encode() for text in texts]),
}


@pytest.mark.parametrize("column", TEXT_COLUMNS.values(), ids=TEXT_COLUMNS.keys())
def test_parquet_columns_of_all_types_of_text(tmp_path, vocab, column):
    texts = ["the whale", "sea\r\n", "the whale", "Ünder"]
    ids = pyarrow.array(["d", "c", "b", "a"]).dictionary_encode()
    path = tmp_path / "in" / "train" / "a.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"text": column(texts), "id": ids}), path)
    out = build(tmp_path / "in", tmp_path / "out", vocab)
    expected = dict(zip("dcba", ["the whale", "sea\n", "the whale", "Ünder"]))
    check_split(out, "train", in_order(expected))


def test_a_package_that_cannot_be_imported(tmp_path, vocab, monkeypatch):
    path = write_rows(tmp_path / "a.parquet", ROW)
    reasons = {
        ModuleNotFoundError(
            "No module named 'pyarrow'"
        ): "which is not installed: run `pip install",
        ImportError("numpy.core failed\nmore"): (
            r"which cannot be imported \(numpy.core failed\): run `pip install .*, or install"
            " versions of it and of numpy that belong together"
        ),
    }
    for reason, message in reasons.items():

        def fail(name, reason=reason):
            raise reason

        monkeypatch.setattr(packing.importlib, "import_module", fail)
        with pytest.raises(UserError, match=f"a.parquet needs the package `pyarrow`, {message}"):
            build(path, tmp_path / "out", vocab, test_every=2)
        monkeypatch.undo()


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

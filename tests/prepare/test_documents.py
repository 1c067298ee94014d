"""Texts as they are found: rows of JSON lines and Parquet, lists of files, bad bytes, duplicates,
splits by list."""

import gzip
import io
import json
import os
import random

import pyarrow
import pytest
from pyarrow import parquet
from test_pipeline import (
    BOOKS,
    build,
    check_split,
    every,
    files_of,
    in_order,
    names_of,
    write_texts,
)

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.prepare import documents
from gpt.prepare.documents import Input
from gpt.prepare.inputs import find_inputs
from gpt.prepare.splits import Rule, read_lists
from gpt.prepare.texts import Document, NotUTF8, Reading

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


@pytest.fixture(scope="module")
def vocab(sample):
    return Vocab.load(sample / "tokenizer.model")


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


def test_a_list_of_paths_on_standard_input(tmp_path, vocab, monkeypatch):
    write_texts(tmp_path, {"b/one.md": "the whale", "two.txt": "the ship"})
    monkeypatch.chdir(tmp_path)
    inputs = find_inputs("-", False, ["two.txt\n", "\n", "b/one.md\n", "two.txt\n"])
    assert [(entry.name, entry.size) for entry in inputs] == [("b/one.md", 9), ("two.txt", 8)]


def test_splits_by_list(books_lists, tmp_path, vocab):
    folder, lists, expected = books_lists
    out = build(folder, tmp_path / "out", vocab, lists=read_lists(lists))
    for split, names in expected.items():
        check_split(out, split, in_order({name: BOOKS[name] for name in names}))


@pytest.fixture
def books_lists(tmp_path):
    names = list(BOOKS)
    write_texts(
        tmp_path,
        {
            "held.txt": "\ufeff" + "\n".join(names[:3]) + "\n\n",
            "wood.txt": f"{names[5]}\n{names[5]}",
        },
    )
    lists = [f"test={tmp_path / 'held.txt'}", f"wood={tmp_path / 'wood.txt'}"]
    folder = write_texts(tmp_path / "books", BOOKS)
    return folder, lists, {"train": names[3:5] + names[6:], "test": names[:3], "wood": [names[5]]}


def test_bytes_that_are_not_utf8(tmp_path, vocab):
    raw = {
        "train/a.txt": b"the whale",
        "train/bad.txt": b"ship\xff\xe9sea\r\n",
        "train/c.txt": b"cut \xe2\x82",
    }
    folder = write_texts(tmp_path / "in", raw)
    with pytest.raises(UserError) as error:
        build(folder, tmp_path / "out", vocab)
    assert (
        str(error.value)
        == f"{folder}/train/bad.txt is not UTF-8 at byte 4: convert it, for example with `iconv -t"
        " UTF-8`, take it out, or give --bad_utf8 replace or skip (2 documents are not, the"
        f" next: {folder}/train/c.txt)"
    )
    assert not (tmp_path / "out").exists()
    out = build(folder, tmp_path / "replaced", vocab, bad_utf8="replace")
    check_split(
        out,
        "train",
        in_order({"a.txt": "the whale", "bad.txt": "ship\ufffd\ufffdsea\n", "c.txt": "cut \ufffd"}),
    )
    assert (
        json.loads((out / "manifest.json").read_text())["splits"]["train"]["found"]["bad_utf8"] == 2
    )
    out = build(folder, tmp_path / "skipped", vocab, bad_utf8="skip")
    check_split(out, "train", {"a.txt": "the whale"})
    assert (
        json.loads((out / "manifest.json").read_text())["splits"]["train"]["left_out"]["bad_utf8"]
        == 2
    )


def test_a_tokenizer_is_trained_on_what_is_left(tmp_path):
    folder = write_texts(tmp_path / "in" / "train", {**BOOKS, "bad.txt": b"ship\xff"}).parent
    with pytest.raises(UserError, match="bad.txt is not UTF-8 at byte 4"):
        build(folder, tmp_path / "out", 300)
    out = build(folder, tmp_path / "out", 300, bad_utf8="skip")
    check_split(out, "train", in_order(BOOKS))
    (folder / "train" / "bad.txt").unlink()
    assert (build(folder, tmp_path / "good", 300) / "tokenizer.model").read_bytes() == (
        out / "tokenizer.model"
    ).read_bytes()


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


NOT_TO_BE_READ = {
    "a link to a folder": (
        lambda path: path.symlink_to("/tmp"),
        "is a link to a folder, and it is not followed: take it out, or give",
    ),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "No such file or directory"),
    "a pipe": (os.mkfifo, "is no ordinary file: take it out of the input"),
}


@pytest.mark.parametrize("make, message", NOT_TO_BE_READ.values(), ids=NOT_TO_BE_READ.keys())
def test_nothing_in_a_folder_is_passed_over(tmp_path, make, message):
    write_texts(tmp_path / "in", {"train/deep/a.txt": "sea"})
    make(tmp_path / "in" / "train" / "deep" / "b.txt")
    with pytest.raises((UserError, OSError)) as error:
        find_inputs(tmp_path / "in", True)
    assert f"{tmp_path}/in/train/deep/b.txt" in str(error.value) and message in str(error.value)


def test_names_that_are_not_utf8(tmp_path, vocab, run_command):
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / os.fsdecode(b"caf\xe9 %d.txt" % i)).write_text(f"sea {i}")
    listed = b"\n".join(os.fsencode(path) for path in (tmp_path / "in").iterdir())
    by_list = {entry.name: entry.source for entry in find_inputs("-", False, io.BytesIO(listed))}
    assert by_list == {str(path): path for path in (tmp_path / "in").iterdir()}
    out = build(tmp_path / "in", tmp_path / "out", vocab, test_every=2)
    for split, texts in every(
        {os.fsdecode(b"caf\xe9 %d.txt" % i): f"sea {i}" for i in range(4)}, 2
    ).items():
        check_split(out, split, texts)


def test_a_text_is_the_same_wherever_its_blocks_end(tmp_path, monkeypatch):
    """Against the same rules on the whole file."""
    rng, path = random.Random(0), tmp_path / "a.txt"
    for _ in range(300):
        parts = [
            b"\xef\xbb\xbf",
            b"\r",
            b"\n",
            b"\r\n",
            b"a",
            "é".encode(),
            "😀".encode(),
            b"\xff",
            b"\xe2\x82",
            b"\0",
        ]
        raw = b"".join(rng.choices(parts, k=rng.randrange(12)))
        path.write_bytes(raw)
        monkeypatch.setattr("gpt.prepare.texts.BLOCK", rng.randrange(1, 5))
        expected = raw.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
        assert Document("a", path, replace_bad_bytes=True).read() == expected, raw
        try:
            raw.decode()
            assert Document("a", path).read() == expected
        except UnicodeDecodeError as error:
            with pytest.raises(NotUTF8, match=f"at byte {error.start}:"):
                Document("a", path).read()


def test_duplicates_are_counted_or_dropped_and_those_held_out_are_told(tmp_path, vocab):
    texts = {
        "train/a.txt": "the whale",
        "train/b.txt": "the whale",
        "train/c.txt": "ship",
        "train/d.txt": "sea\r\n",
        "test/x.txt": "sea\n",
        "test/y.txt": "sea\n",
        "test/z.txt": "captain",
    }
    folder, said = write_texts(tmp_path / "in", texts), []
    kept = build(folder, tmp_path / "kept", vocab, say=said.append)
    assert len(names_of(kept, "train")) == 4 and len(names_of(kept, "test")) == 3
    assert any(
        line.startswith(
            "WARNING: 1 document(s) of train are held out too, under other names: kept;"
            " --duplicates drop leaves them out of train ('d.txt' in test)"
        )
        for line in said
    )
    found = json.loads((kept / "manifest.json").read_text())["splits"]
    assert (
        found["train"]["found"]["duplicate"] == 1 and found["train"]["found"]["also_held_out"] == 1
    )
    assert found["test"]["found"]["duplicate"] == 1
    dropped = build(folder, tmp_path / "dropped", vocab, duplicates="drop")
    first = names_of(kept, "train").index("a.txt") < names_of(kept, "train").index("b.txt")
    check_split(
        dropped, "train", in_order({"c.txt": "ship", "a.txt" if first else "b.txt": "the whale"})
    )
    assert len(names_of(dropped, "test")) == 2
    assert (
        json.loads((dropped / "manifest.json").read_text())["splits"]["train"]["left_out"][
            "duplicate"
        ]
        == 2
    )


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


BAD_LISTS = {
    "no file": ("test", "--split_list test: give SPLIT=FILE"),
    "no such name": (
        "test={}/none",
        "1 of the 1 documents listed for the split 'test' are not in the input, the first is 'x'",
    ),
    "empty": ("test={}/empty", "empty lists no document"),
    "all of them": ("test={}/all", "nothing is left to train on: all 14 documents are held out"),
    "a path": ("a/b={}/none", "a split cannot be called 'a/b'"),
    "train": (
        "train={}/none",
        "--split_list train=…: `train` is all that no list names: list what is held out",
    ),
    "a file of the dataset": ("manifest.json={}/none", "a split cannot be called 'manifest.json'"),
}


@pytest.mark.parametrize("option, message", BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_bad_split_list(tmp_path, vocab, option, message):
    write_texts(tmp_path, {"none": "x", "empty": "\n", "all": "\n".join(BOOKS)})
    folder = write_texts(tmp_path / "in", BOOKS)
    with pytest.raises(UserError, match=message):
        build(folder, tmp_path / "out", vocab, lists=read_lists([option.format(tmp_path)]))


@pytest.mark.parametrize("rule", [Rule(lists=(("test", ("x",)),)), Rule(2)])
def test_a_name_twice_where_one_would_be_held_out_and_one_trained_on(rule):
    with pytest.raises(UserError, match="two documents are called 'x': rename one"):
        rule.share_out(["a", "x", "b", "x", "c"], [None] * 5)


def test_a_name_in_two_lists_and_lists_beside_a_rule():
    with pytest.raises(
        UserError, match="'a' is listed for the splits 'test' and 'wood': take it out of one list"
    ):
        Rule(lists=(("test", ("a",)), ("wood", ("a",)))).share_out(["a", "b"], [None, None])
    with pytest.raises(UserError, match="two ways to choose what is held out: give one of them"):
        Rule(3, (("test", ("a",)),))


def test_a_list_of_paths_with_a_mistake(tmp_path):
    with pytest.raises(UserError, match="none.txt is not a file: --input - reads one path"):
        find_inputs("-", False, [f"{tmp_path}/none.txt"])
    with pytest.raises(UserError, match="--input - got no path"):
        find_inputs("-", False, ["\n"])


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
    from gpt.prepare import units
    from gpt.prepare.units import units_of

    monkeypatch.setattr(units, "SMALLEST_UNIT", 10)
    inputs = [Input(str(i), "", None, size) for i, size in enumerate([4, 4, 4, 30, 0, 2, 9])]
    assert [[entry.size for entry in unit] for unit in units_of(inputs)] == [
        [4, 4, 4],
        [30],
        [0, 2, 9],
    ]

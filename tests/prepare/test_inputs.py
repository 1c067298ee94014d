"""The files that a user names: folders, lists, and what is said of bad ones."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from small_corpora import BOOKS, build, check_split, every, write_texts

from gpt.errors import UserError
from gpt.prepare.inputs import endings_in_words, find_inputs, passed_over

COMMAND = [sys.executable, Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"]


def test_a_list_of_paths_on_standard_input(tmp_path, vocab, monkeypatch):
    write_texts(tmp_path, {"b/one.md": "the whale", "two.txt": "the ship"})
    monkeypatch.chdir(tmp_path)
    inputs = find_inputs("-", False, ["two.txt\n", "\n", "b/one.md\n", "two.txt\n"])
    assert [(entry.name, entry.size) for entry in inputs] == [("b/one.md", 9), ("two.txt", 8)]


def test_a_list_of_paths_with_a_mistake(tmp_path):
    with pytest.raises(UserError, match="none.txt is not a file: --input - reads one path"):
        find_inputs("-", False, [f"{tmp_path}/none.txt"])
    with pytest.raises(UserError, match="--input - got no path"):
        find_inputs("-", False, ["\n"])


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


NO_TEXTS = (
    "a.tar.gz b.tar.gz sub/B.PDF c.json d.npy e.md f.csv g.html i.docx j.zip"
    " k.parquet.gz l.feather noext .hidden .git/config"
)


def test_files_that_are_passed_over_are_counted_and_kept_on_record(tmp_path, sample, run_command):
    write_texts(tmp_path / "in", {**BOOKS, **dict.fromkeys(NO_TEXTS.split(), "text")})
    options = "--input in --test_every 4 --out out --text_field body --tokenizer"
    done = run_command([*COMMAND, *options.split(), sample / "tokenizer.model"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "passed over 13 files: 2 .tar.gz, 1 .PDF, 1 .csv, 1 .docx, 1 .feather, 1 .html, 1 .json,"
        " 1 .md, others"
    )
    assert done.stdout.splitlines()[1] == (
        "notice: --text_field changes nothing: no input holds rows"
    )
    provenance = json.loads((tmp_path / "out" / "manifest.json").read_text())["provenance"]
    assert provenance["passed_over"][".tar.gz"] == 2
    assert sum(provenance["passed_over"].values()) == 13
    assert passed_over(write_texts(tmp_path / "only", BOOKS)) == {}
    assert endings_in_words({".md": 1}) == "1 file: 1 .md"
    assert (
        endings_in_words({".md": 1200, "without ending": 1})
        == "1201 files: 1,200 .md, 1 without ending"
    )


def test_a_named_file_of_another_ending_is_text(tmp_path):
    folder = write_texts(tmp_path, {"enwik8": "the sea", "a.tar.gz": "x", "d.ZIP": "x"})
    (entry,) = find_inputs(folder / "enwik8", False)
    assert (entry.name, entry.size) == ("enwik8", 7)
    for file in ("a.tar.gz", "d.ZIP"):
        message = f"{file} is an archive, and is not unpacked: unpack it"
        with pytest.raises(UserError, match=message):
            find_inputs(folder / file, False)
        with pytest.raises(UserError, match=message):
            find_inputs("-", False, [f"{folder}/{file}\n"])


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


BAD_FOLDERS = {
    "empty folder": ({}, {"test_every": 2}, "in (holds, at any depth, no|is not a folder)"),
    "no texts": (
        {"x.csv": "x", "y.tar.gz": "y"},
        {"test_every": 2},
        "in holds, at any depth, no .txt, .jsonl, .jsonlines, .ndjson, .parquet, .arrow file, nor"
        " one of .txt, .jsonl, .jsonlines, .ndjson, .json packed as .gz, .zst, .bz2, .xz, but 2"
        " files: 1 .csv, 1 .tar.gz: unpack what is compressed, rename or convert the others",
    ),
    "the hub's layout": (
        {"train-00000-of-00001.parquet": "a", "test-00000-of-00001.parquet": "b", "README.md": "c"},
        {},
        "in holds test-00000-of-00001.parquet beside no rule to hold some documents out for"
        r" testing: make a sub-folder per split: `mkdir test train && mv test\[-.\]\* test/ && mv"
        r" train\[-.\]\* train/`",
    ),
    "no train": ({"test/a.txt": "a", "wood/b.txt": "b"}, {}, "no sub-folder `train`"),
    "texts beside train": ({"train/a.txt": "a", "b.txt": "b"}, {}, "--test_every N"),
    "an empty split": (
        {"train/a.txt": "a", "wood/x.md": "b"},
        {},
        "the split 'wood' is empty: .*in/wood holds no",
    ),
    "a split of empty files": (
        {"train/a.txt": "a", "wood/b.txt": "", "wood/c.txt": ""},
        {},
        "'wood' is empty.* 2 .*2 empty",
    ),
    "only empty files": ({f"{i}.txt": "" for i in range(4)}, {"test_every": 2}, "'train' is empty"),
    "each one held out": (
        BOOKS,
        {"test_every": 1},
        "--test_every 1 would leave nothing to train on",
    ),
    "rule of -1": (BOOKS, {"test_every": -1}, "--test_every -1"),
    "more than documents": (
        BOOKS,
        {"test_every": 15},
        "no test document out of 14: lower it or add",
    ),
    "not UTF-8": (
        {"train/a.txt": "a", "train/b/bad.txt": b"ab\n\xe9t"},
        {},
        "train/b/bad.txt is not UTF-8 at byte 3",
    ),
    "not UTF-8 in a test": (
        {"train/a.txt": "a", "test/bad.txt": b"\xc3"},
        {},
        "test/bad.txt is not UTF-8 at byte 0",
    ),
    "a split named as a file": (
        {"train/a.txt": "a", "tokenizer.model/b.txt": "b"},
        {},
        "tokenizer.model",
    ),
}


@pytest.mark.parametrize("texts, options, message", BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys())
def test_bad_folder(tmp_path, vocab, texts, options, message):
    write_texts(tmp_path / "in", texts)
    (tmp_path / "place").mkdir()
    with pytest.raises(UserError, match=message):
        build(tmp_path / "in", tmp_path / "place" / "out", vocab, **options)
    assert not (tmp_path / "place" / "out").exists()

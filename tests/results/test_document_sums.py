"""Files of the sums of each document: what is written is read again, and what is none is named."""

import json
import math

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.results import document_sums
from gpt.results.document_sums import DocumentSums

HASHES = ("0" * 32, "ab" * 16)
SUMS = DocumentSums(
    HASHES,
    np.array([3.1000000000000005, math.nan]),
    np.array([4, 2]),
    np.array([3.1, math.nan]),
    np.array([3, 1]),
    np.array([12, 1]),
)
DOCUMENT = {
    "hash": "0" * 32,
    "nats": 3.5,
    "tokens": 4,
    "text_nats": 3.25,
    "text_tokens": 3,
    "bytes": 12,
}
MEND = ": make it anew with `python gpt/eval.py --per_document`"


def test_lines_are_what_a_person_would_read(tmp_path):
    document_sums.write(tmp_path / "a.jsonl", SUMS)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {**DOCUMENT, "nats": 3.1000000000000005, "text_nats": 3.1},
        {
            "hash": "ab" * 16,
            "nats": None,
            "tokens": 2,
            "text_nats": None,
            "text_tokens": 1,
            "bytes": 1,
        },
    ]


def test_a_table_is_read_by_other_programs(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    document_sums.write(tmp_path / "a.parquet", SUMS)
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert list(table) == list(DOCUMENT) and table["hash"] == list(HASHES)
    assert table["nats"][0] == 3.1000000000000005 and table["bytes"] == [12, 1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_was_written_is_read(name, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    document_sums.write(tmp_path / name, SUMS)
    again = document_sums.read(tmp_path / name)
    assert again.hashes == HASHES
    for column in document_sums.SUMS:
        values = getattr(again, column)
        assert values.dtype == (np.float64 if "nats" in column else np.int64)
        np.testing.assert_array_equal(values, getattr(SUMS, column))
    assert again.totals()["bytes"] == 13 and type(again.totals()["tokens"]) is int


BAD_LINES = [
    ({"tokens": 4.0}, "tokens must be a whole number"),
    ({"tokens": True}, "tokens must be a whole number"),
    ({"bytes": -1}, "bytes must be a whole number"),
    ({"bytes": 2**60}, "bytes must be a whole number"),
    ({"bytes": None}, "bytes must be a whole number"),
    ({"nats": "3"}, "nats must be a number"),
    ({"nats": math.inf}, "nats must be a number"),
    ({"nats": -1.0, "text_nats": -2.0}, "nats is below 0"),
    ({"text_nats": 4.0}, "text_nats are more than nats"),
    ({"text_tokens": 5}, "text_tokens are more than tokens"),
    ({"bytes": 2}, "text_tokens are more than bytes"),
    ({"tokens": 0, "text_tokens": 0}, "no token of it was scored"),
    ({"hash": "0" * 64}, "hash must be 32 hexadecimal digits"),
    ({"hash": None}, "hash must be 32 hexadecimal digits"),
    ({"name": "a"}, "the line is no block of hash, nats, tokens, text_nats, text_tokens, bytes"),
]


@pytest.mark.parametrize("change, problem", BAD_LINES, ids=[str(line[0]) for line in BAD_LINES])
def test_a_line_that_is_no_documents(change, problem, tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(DOCUMENT), json.dumps({**DOCUMENT, **change})]
    path.write_text("".join(f"{line}\n" for line in lines))
    assert mistake(path) == f"{path}:2: {problem}{MEND}"


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", " holds no documents"),
        (b"[]\n", ":1: the line is no block of hash, nats, tokens, text_nats, text_tokens, bytes"),
        (json.dumps(DOCUMENT).encode(), ":1: the line is cut off"),
        (b"x" * 5000 + b"\n", ":1: the line is cut off"),
        (b"\xff\n", ":1: the line is no JSON"),
        (b'{"hash": 1' + b"0" * 900 + b"}\n", ":1: the line is no JSON"),
    ],
)
def test_a_file_of_other_things(content, problem, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert mistake(path) == f"{path}{problem}{MEND}"


def test_a_key_that_stands_twice(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(DOCUMENT).replace("{", '{"nats": 1.0, ') + "\n")
    assert mistake(path) == f"{path}: the key 'nats' stands twice in one block"


def test_a_table_of_other_things(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    assert mistake(path).startswith(f"{path} is no whole Parquet file (")
    row = {name: [value] for name, value in DOCUMENT.items()}
    parquet.write_table(pyarrow.table(row), path, compression="none")
    whole = path.read_bytes()
    for text in (b"0" * 32, b"text_nats"):  # a value, and the name of a column
        path.write_bytes(whole.replace(text, b"\xff" * len(text)))
        assert mistake(path).startswith(f"{path} is no whole Parquet file (")
    for change, problem in (
        ({"tokens": [4.0]}, " has other columns than hash, nats, tokens, text_nats, text_tokens,"),
        ({"name": ["a"]}, " has other columns than hash, nats, tokens, text_nats, text_tokens,"),
        ({"bytes": pyarrow.array([None], pyarrow.int64())}, " has rows without a value"),
        ({"hash": ["x"]}, ":1: hash must be 32 hexadecimal digits"),
        ({"bytes": [-1]}, ":1: bytes is below 0"),
        ({"nats": [math.inf]}, ":1: nats is infinite"),
        ({name: [] for name in row}, " has other columns than hash,"),
    ):
        parquet.write_table(pyarrow.table({**row, **change}), path)
        assert mistake(path).startswith(f"{path}{problem}")
    many = {name: value * 2000 for name, value in {**row, "bytes": [2**53]}.items()}
    parquet.write_table(pyarrow.table(many), path)
    assert mistake(path) == f"{path}: bytes sum up to more than {2**53}{MEND}"


def test_files_that_cannot_be_read_or_written(tmp_path):
    assert mistake(tmp_path / "a.jsonl") == f"{tmp_path}/a.jsonl: No such file or directory{MEND}"
    assert mistake(tmp_path) == (
        f"{tmp_path} is neither a .jsonl nor a .parquet file: let its name end in one of them"
    )
    for path, words in (
        (tmp_path / "a.csv", "is neither a .jsonl nor a .parquet file: let its name end in one of"),
        (tmp_path / "no" / "a.jsonl", "cannot be written (No such file or directory): make room,"),
    ):
        with pytest.raises(UserError) as error:
            document_sums.write(path, SUMS)
        assert str(error.value).startswith(f"{path} {words}")
    assert not list(tmp_path.iterdir())


def mistake(path):
    with pytest.raises(UserError) as error:
        document_sums.read(path)
    return str(error.value)

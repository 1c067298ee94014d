"""Which splits eval.py takes, and its tables."""

import pytest
from conftest import ROOT, load_module

from gpt.corpus import Dataset
from gpt.errors import UserError


@pytest.fixture(scope="module")
def evaluator():
    return load_module(ROOT / "gpt/eval.py")


@pytest.mark.parametrize("asked, names", [("test", ["test"]), ("all", ["test", "python"]), ("python,test", ["python", "test"]),
                                          ("test, train,test", ["test", "train"])])  # fmt: skip
def test_splits_by_name(asked, names, sample, evaluator):
    assert evaluator.chosen(asked, Dataset(sample)) == names


@pytest.mark.parametrize("asked, wrong", [("java", "'java'"), ("test,java", "'java'"), ("test,", "''"), ("", "''"), ("all,test", "'all'")])
def test_splits_that_are_not_there(asked, wrong, sample, evaluator):
    with pytest.raises(UserError, match=f"has no split {wrong}: it has train, test, python"):
        evaluator.chosen(asked, Dataset(sample))


def result(split, value):
    names = ("normalised_ppl", "bits_per_byte", "loss", "ppl", "top1", "top10")
    return {"split": split, "checkpoint": "w", "dataset": "d", "seq_len": 8, "last_n": 4, **dict.fromkeys(names, value),
            "tokens": 1234, "bytes": 5678, "languini": {"normalised_ppl": value + 1}}  # fmt: skip


def test_tables(evaluator, capsys):
    results = [result("test", 2.0), result("java", float("nan"))]
    assert evaluator.markdown(results).splitlines()[4:] == [
        "| test | 2.0000 | 2.0000 | 2.0000 | 2.00 | 2.0000 | 2.0000 | 1,234 | 5,678 | 3.0000 |",
        "| java | nan | nan | nan | nan | nan | nan | 1,234 | 5,678 | nan |",
    ]
    evaluator.show_table(results)
    head, first, second = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[:3] == ["split", "normalised", "ppl"] and first.split() == ["test", *["2.0000"] * 3, "2.00", "2.0000", "2.0000",
                                                                                   "1,234", "5,678", "3.0000"]  # fmt: skip
    assert len(head) == len(first) == len(second)


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_files_that_cannot_be_written_are_told_first(option, evaluator, tmp_path, monkeypatch):
    for file in (tmp_path, tmp_path / "no" / "file"):
        monkeypatch.setattr("sys.argv", ["eval.py", "--checkpoint_file", "x", option, str(file)])
        with pytest.raises(UserError, match=f"{option} {file}: give the name of a file in a folder that exists"):
            evaluator.main()

"""Which split a document belongs to: by a rule, by lists."""

import pytest
from small_corpora import BOOKS, build, check_split, in_order, write_texts

from gpt.errors import UserError
from gpt.prepare.splits import Rule, read_lists


def test_a_new_document_moves_no_other():
    names = list(BOOKS)
    fewer = [name for name in reversed(names) if name != "b/book 1.txt"]
    order = [names[i] for i in Rule(lists=()).share_out(names, ["train"] * len(names))["train"]]
    assert [name for name in order if name != "b/book 1.txt"] == [
        fewer[i] for i in Rule(lists=()).share_out(fewer, ["train"] * len(fewer))["train"]
    ]


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


def test_splits_by_list(books_lists, tmp_path, vocab):
    folder, lists, expected = books_lists
    out = build(folder, tmp_path / "out", vocab, lists=read_lists(lists))
    for split, names in expected.items():
        check_split(out, split, in_order({name: BOOKS[name] for name in names}))


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

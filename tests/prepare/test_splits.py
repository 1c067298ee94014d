"""Which split a document belongs to: by a rule, by lists."""

import os

import pytest
from small_corpora import BOOKS, build, check_split, in_order, names_of, write_texts

from gpt.data.datasets import Dataset
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
    "all": ("all={}/none", "a split cannot be called 'all': it becomes a folder of the"),
    "a comma": ("a,b={}/none", "a split cannot be called 'a,b'"),
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


def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "list")
    with pytest.raises(OSError, match="a pipe or a device, not a file"):
        read_lists([f"test={tmp_path / 'list'}"])


@pytest.mark.parametrize("rule", [Rule(lists=(("test", ("x",)),)), Rule(2)])
def test_a_name_twice_where_one_would_be_held_out_and_one_trained_on(rule):
    with pytest.raises(UserError, match="two documents are called 'x': rename one"):
        rule.share_out(["a", "x", "b", "x", "c"], [None] * 5)


def test_two_splits_by_rule_beside_a_list(books_lists, tmp_path, vocab):
    folder, (test_list, wood_list), _ = books_lists
    out = build(folder, tmp_path / "a", vocab, 4, read_lists([wood_list]), valid_every=3)
    listed = list(BOOKS)[5]
    texts = in_order(BOOKS)
    del texts[listed]
    test = list(texts)[3::4]
    valid = [name for name in texts if name not in test][2::3]
    train = [name for name in texts if name not in [*test, *valid]]
    expected = {"train": train, "test": test, "valid": valid, "wood": [listed]}
    for split, names in expected.items():
        check_split(out, split, {name: BOOKS[name] for name in names})
    assert Dataset(out).split_names == list(expected)
    # a second split that is held out changes nothing about the first
    without = build(folder, tmp_path / "b", vocab, 4, read_lists([wood_list]))
    assert names_of(without, "test") == test
    only_valid = build(folder, tmp_path / "c", vocab, valid_every=7)
    assert Dataset(only_valid).split_names == ["train", "valid"]


def test_bad_rules():
    with pytest.raises(UserError, match="--valid_every 1 would leave nothing to train on: give 2"):
        Rule(5, valid_every=1)
    names = [f"{number}" for number in range(6)]
    message = "--valid_every 5 leaves no valid document out of 4: lower it or add documents"
    with pytest.raises(UserError, match=message):
        Rule(3, valid_every=5).share_out(names, [None] * 6)


def test_a_name_in_two_lists_and_a_split_of_a_list_and_a_rule():
    with pytest.raises(
        UserError, match="'a' is listed for the splits 'test' and 'wood': take it out of one list"
    ):
        Rule(lists=(("test", ("a",)), ("wood", ("a",)))).share_out(["a", "b"], [None, None])
    message = "--test_every and --split_list test=… both make the split 'test': give one of them"
    with pytest.raises(UserError, match=message):
        Rule(3, (("test", ("a",)),))


def test_a_line_of_a_list_ends_where_a_line_ends(tmp_path):
    (tmp_path / "list").write_bytes("\ufeffa\u2028b.txt\r\n\nc\x85\x0bd.txt".encode())
    ((split, names),) = read_lists([f"test={tmp_path}/list"])
    assert (split, names) == ("test", ("a\u2028b.txt", "c\x85\x0bd.txt"))

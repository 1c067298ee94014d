"""The folder of the work: what others put there, what was edited, what was copied badly."""

import hashlib
import json
import os
import shutil

import pytest
from small_corpora import BOOKS, files_of, write_texts

from gpt.errors import UserError
from gpt.prepare import pipeline
from gpt.prepare.inputs import inputs_of_folder
from gpt.prepare.splits import Rule
from gpt.prepare.staging import Job

RULE = Rule(4, (("valid", ("book 0.txt",)),))


def prepare(folder, out, vocab, shard=(1, 1)):
    inputs = inputs_of_folder(folder)
    pipeline.prepare(inputs, out, Job(RULE), vocab, shard=shard, say=lambda text: None)


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "in", BOOKS)


@pytest.fixture
def shards(texts, vocab, tmp_path):
    """The folders of two shards, one of which has a unit."""
    for part in (1, 2):
        prepare(texts, tmp_path / "out", vocab, (part, 2))
    return [tmp_path / f"out.shard-{part}-of-2" for part in (1, 2)]


def merge(shards):
    pipeline.merge(shards, shards[0].with_name("out"), say=lambda text: None)


def edit_plan(shard, change):
    plan = json.loads((shard / "plan.json").read_text())
    change(plan)
    (shard / "plan.json").write_text(json.dumps(plan))


BAD_PLANS = {
    "a split elsewhere": (
        lambda plan: plan["rule"]["lists"].append(["../../evil", ["book 1.txt"]]),
        "a split cannot be called '../../evil'",
    ),
    "an absolute split": (
        lambda plan: plan["rule"]["lists"].append(["/tmp/evil", ["book 1.txt"]]),
        "a split cannot be called '/tmp/evil'",
    ),
    "a split with a NUL": (
        lambda plan: plan["rule"]["lists"].append(["a\0b", ["book 1.txt"]]),
        r"a split cannot be called 'a\x00b'",
    ),
    "a list of no names": (lambda plan: plan["rule"]["lists"].append(["x", [5]]), "is not as this"),
    "a list of one text": (
        lambda plan: plan["rule"]["lists"].append(["x", "abc"]),
        "is not as this",
    ),
    "half a document": (lambda plan: plan["rule"].update(test_every=2.5), "is not as this version"),
    "another rule of bytes": (
        lambda plan: plan["reading"].update(bad_utf8="eat"),
        "is not as this version",
    ),
    "no end of units": (lambda plan: plan.update(units=10**9), "is not done yet"),
    "units in words": (lambda plan: plan.update(units="two"), "is not as this version writes it"),
    "shards without end": (
        lambda plan: plan.update(shard=[1, 10**12]),
        "is not as this version writes it",
    ),
    "shard 0": (lambda plan: plan.update(shard=[0, 2]), "is not as this version writes it"),
    "no pair": (lambda plan: plan.update(shard=[1]), "is not as this version writes it"),
    "another version": (
        lambda plan: plan.update(rule={"test_every": 3}),
        "is not as this version writes it: remove its folder, and encode the texts again, with one"
        " version on all hosts",
    ),
    "units of an earlier version": (
        lambda plan: plan.pop("format"),
        "is not as this version writes it: remove its folder, and encode the texts again, with one",
    ),
    "a field more": (lambda plan: plan.update(more=1), "is not as this version writes it"),
    "a field less": (lambda plan: plan.pop("duplicates"), "is not as this version writes it"),
}


@pytest.mark.parametrize("change, sentence", BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_plan_that_was_edited_writes_nowhere(change, sentence, shards, tmp_path):
    for shard in shards:
        edit_plan(shard, change)
    before = files_of(tmp_path)
    with pytest.raises(UserError) as error:
        merge(shards)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert files_of(tmp_path) == before


def reseal(unit, change):
    """Change the rows of a unit's records, and its hashes with them."""
    first, *lines = unit.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    change(rows)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    facts = {**json.loads(first), "records": hashlib.sha256(content.encode()).hexdigest()}
    unit.write_text(json.dumps(facts) + "\n" + content)


BAD_RECORDS = {
    "a split elsewhere": lambda rows: rows[0].__setitem__(1, "../evil"),
    "tokens in words": lambda rows: rows[0].__setitem__(2, "many"),
    "fewer than none": lambda rows: rows[0].__setitem__(2, -1),
    "more than there are": lambda rows: rows[0].__setitem__(2, 10**15),
    "a hash of another kind": lambda rows: rows[0].__setitem__(4, "xyz"),
    "another reason": lambda rows: rows[0].__setitem__(5, "tired"),
    "another oddity": lambda rows: rows[0].__setitem__(6, ["odd"]),
    "no row": lambda rows: rows.append(7),
    "a value less": lambda rows: rows[0].pop(),
    "a document less": lambda rows: rows.pop(),
}


@pytest.mark.parametrize("change", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_records_that_were_edited_are_refused(change, shards):
    reseal(shards[0] / "000000.jsonl", change)
    with pytest.raises(UserError, match="000000.jsonl are not as they were written: remove both"):
        merge(shards)
    assert not shards[0].with_name("out").exists()


def other_tokens(unit):
    path = unit.with_suffix(".tokens")
    content = path.read_bytes()
    path.write_bytes(content[:50] + content[250:450] + content[250:])


def other_name(unit):
    path = unit.with_suffix(".jsonl")
    path.write_text(path.read_text().replace("book 1.txt", "book X.txt"))


def cut(unit):
    path = unit.with_suffix(".jsonl")
    path.write_bytes(path.read_bytes()[:-30])


def a_pipe(unit):
    unit.with_suffix(".jsonl").unlink()
    os.mkfifo(unit.with_suffix(".jsonl"))


@pytest.mark.parametrize("damage", [other_tokens, other_name, cut, a_pipe])
def test_units_that_were_copied_badly_are_refused(damage, shards):
    damage(shards[0] / "000000")
    with pytest.raises(UserError, match="000000.jsonl are not as they were written: remove both"):
        merge(shards)


def test_a_folder_called_like_ours_keeps_what_others_put_into_it(texts, vocab, tmp_path):
    place = tmp_path / "out.preparing"
    for name in ("dataset/mine.txt", "mine.new", "000000.tokens", "plan.json.new"):
        write_texts(place, {name: "precious"})
        with pytest.raises(UserError, match="out.preparing is where the dataset would be made, an"):
            prepare(texts, tmp_path / "out", vocab)
        assert (place / name).read_text() == "precious"
        shutil.rmtree(place)


def test_files_that_are_put_beside_the_work_outlive_it(texts, vocab, tmp_path, monkeypatch):
    place = tmp_path / "out.preparing"

    def fail(*arguments):
        write_texts(place, {"notes.txt": "precious", "000000 (copy).jsonl": "x", "a.new": "y"})
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "assemble", fail)
        with pytest.raises(UserError, match="no room is left"):
            prepare(texts, tmp_path / "out", vocab)
    prepare(texts, tmp_path / "out", vocab)
    assert (tmp_path / "out" / "manifest.json").exists()
    assert sorted(os.listdir(place)) == [".lock", "000000 (copy).jsonl", "a.new", "notes.txt"]


@pytest.mark.parametrize("name", ["000000.tokens", "000000.jsonl", "tokenizer.model", "dataset"])
def test_links_in_the_folder_of_the_work_lead_nowhere(name, texts, vocab, tmp_path, monkeypatch):
    place = tmp_path / "out.preparing"
    write_texts(tmp_path / "victim", {"thesis": "precious"})
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "assemble", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(texts, tmp_path / "out", vocab)
    for path in (place / name, place / "000000.jsonl"):
        if path.exists():
            path.unlink()
    (place / name).unlink(missing_ok=True)
    target = tmp_path / "victim" if name == "dataset" else tmp_path / "victim" / "thesis"
    (place / name).symlink_to(target)
    try:
        prepare(texts, tmp_path / "out", vocab)
    except UserError as error:
        assert "\n" not in str(error)
    assert files_of(tmp_path / "victim") == {"thesis": b"precious"}

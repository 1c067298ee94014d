"""starts.jsonl: what is appended, and that whatever was changed in it is refused."""

import hashlib
import json

import pytest
from conftest import tiny_run

from gpt.errors import UserError
from gpt.referee import entry as entries
from gpt.referee import starts
from gpt.referee.entry import Claim, Entry, Tuning

BASELINE = ("runs/baseline-seed0", "baseline", 0)
CONTENDER = ("runs/contender-seed0", "contender", 0)


@pytest.fixture
def entry(tmp_path):
    claim = Claim("tiny", "tiny", "tokens", "better")
    entry = Entry(tmp_path, "rope", "", claim, (0, 1), Tuning((0.5, 1.0), 1000))
    entry.write()
    for side, gpt in (("baseline", {}), ("contender", {"model_file": "rope.py"})):
        entry.config_file(side).write_text(json.dumps(tiny_run(gpt=gpt)))
    (tmp_path / "rope.py").write_text("import part\n")
    (tmp_path / "part.py").write_text("x = 1\n")
    return entries.read(tmp_path)


@pytest.fixture
def started(entry):
    """A run that ended, one that was abandoned, and went on."""
    starts.begin(entry, *BASELINE, 0)
    starts.end(entry, *BASELINE, 6, 0, "finished")
    starts.begin(entry, *CONTENDER, 0)
    starts.begin(entry, *CONTENDER, 4)
    starts.end(entry, *CONTENDER, 4, 1, "failed")
    return entry


def lines(entry):
    return entry.starts.read_bytes().splitlines()


def test_each_line_is_chained_to_the_one_before_it(started):
    previous = 64 * "0"
    for line in lines(started):
        assert json.loads(line)["previous"] == previous
        previous = hashlib.sha256(line).hexdigest()
    assert len(lines(started)) == 5


def test_starts_are_read_with_their_ends(started):
    first, abandoned, last = starts.read(started)
    assert (first.run, first.side, first.seed, first.step) == (*BASELINE, 0)
    assert (first.last_step, first.exit_code, first.status) == (6, 0, "finished")
    assert abandoned.is_abandoned and abandoned.step == 0
    assert (last.step, last.exit_code, last.is_abandoned) == (4, 1, False)
    assert first.declaration == started.declaration
    assert set(first.files) == {
        "entry.json",
        "baseline.json",
        "contender.json",
        "rope.py",
        "part.py",
    }


def test_a_trial_is_a_declared_run_too(entry):
    starts.begin(entry, "tuning/contender-x0.5-seed1000", "contender", 1000, 0)
    assert starts.read(entry)[0].run == "tuning/contender-x0.5-seed1000"


def edited(entry, number, **changes):
    """The file's lines with fields of one changed; None takes one out."""
    content = [json.loads(line) for line in lines(entry)]
    content[number].update(changes)
    content[number] = {name: value for name, value in content[number].items() if value is not None}
    return [json.dumps(fields).encode() for fields in content]


def chained(content):
    """The same lines with the chain made anew, as whoever edits them can."""
    previous = 64 * "0"
    result = []
    for line in content:
        line = json.dumps({**json.loads(line), "previous": previous}).encode()
        previous = hashlib.sha256(line).hexdigest()
        result.append(line)
    return result


TAMPERED = {
    "an edited line": (lambda e: edited(e, 3, step=2), ":5 is not chained to the line before it"),
    "a removed line": (lambda e: lines(e)[:2] + lines(e)[3:], ":3 is not chained"),
    "the first removed": (lambda e: lines(e)[1:], ":1 is not chained"),
    "another order": (lambda e: lines(e)[2:4] + lines(e)[:2] + lines(e)[4:], ":1 is not chained"),
    "a line twice": (lambda e: [*lines(e), lines(e)[-1]], ":6 is not chained"),
    "no JSON": (lambda e: [b"x", *lines(e)], ":1 is neither a start nor an end"),
    "a list": (lambda e: [b"[1]", *lines(e)], ":1 is neither a start nor an end"),
    "a key twice": (
        lambda e: [lines(e)[0].replace(b'"step": 0', b'"step": 0, "step": 5')],
        ":1 is neither a start nor an end",
    ),
    "an empty line": (lambda e: [b"", *lines(e)], ":1 is neither a start nor an end"),
    "no side": (lambda e: edited(e, 0, side=None), ":1 has other fields than such a line"),
    "a field more": (lambda e: edited(e, 0, more=1), ":1 has other fields than such a line"),
    "a step of text": (lambda e: edited(e, 0, step="0"), ":1 has a step that is no whole number"),
    "a step of truth": (lambda e: edited(e, 0, step=True), ":1 has a step that is no whole"),
    "a time that is none": (lambda e: edited(e, 0, time="now"), ":1 has a field of another type"),
    "an unknown status": (lambda e: edited(e, 1, status="fine"), ":2 has a field of another type"),
    "a hidden seed": (
        lambda e: chained(edited(e, 0, seed=7, run="runs/baseline-seed7")),
        ":1 is of runs/baseline-seed7, which the entry does not declare",
    ),
    "the other side": (
        lambda e: chained(edited(e, 0, side="contender")),
        ":1 has another side or seed than runs/baseline-seed0",
    ),
    "an end without its start": (
        lambda e: chained(lines(e)[1:]),
        ":1 ends a run that the line before it did not start",
    ),
    "an end of another run": (
        lambda e: chained(edited(e, 1, run="runs/baseline-seed1", seed=1)),
        ":2 ends a run that the line before it did not start",
    ),
}


@pytest.mark.parametrize("change, sentence", TAMPERED.values(), ids=list(TAMPERED))
def test_a_record_that_was_changed_is_refused(started, change, sentence):
    changed = b"".join(line + b"\n" for line in change(started))
    started.starts.write_bytes(changed)
    for use in (starts.read, lambda entry: starts.begin(entry, *BASELINE, 6)):
        with pytest.raises(UserError) as caught:
            use(started)
        assert f"starts.jsonl{sentence}" in str(caught.value)
    assert started.starts.read_bytes() == changed


def test_a_line_that_is_cut_is_named(started):
    started.starts.write_bytes(started.starts.read_bytes()[:-9])
    with pytest.raises(UserError, match="ends in the middle of a line: remove that half line"):
        starts.read(started)


def test_what_is_no_file_of_ours_is_not_appended_to(entry, tmp_path):
    (tmp_path / "other").write_text("")
    entry.starts.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="a link, where a file of ours should be"):
        starts.begin(entry, *BASELINE, 0)
    assert (tmp_path / "other").read_text() == ""


def change_seeds(folder):
    tree = json.loads((folder / "entry.json").read_text())
    (folder / "entry.json").write_text(json.dumps({**tree, "seeds": [0, 1, 2]}))


def measure(folder):
    (folder / "measured.json").write_text("{}")


def change_text(name):
    def change(folder):
        with open(folder / name, "a") as file:
            file.write("\n")

    return change


@pytest.mark.parametrize(
    "change, name",
    [
        (change_seeds, "entry.json"),
        (change_text("baseline.json"), "baseline.json"),
        (change_text("contender.json"), "contender.json"),
        (change_text("rope.py"), "rope.py"),
        (change_text("part.py"), "part.py"),
        (measure, "measured.json"),
    ],
)
def test_what_changed_since_training_began_is_named(started, change, name):
    change(started.path)
    now = entries.read(started.path)
    with pytest.raises(UserError) as caught:
        starts.require_unchanged(now, starts.read(now))
    assert f"{started.path}: {name} changed since runs/baseline-seed0 was started" in str(
        caught.value
    )
    assert "move starts.jsonl, tuning and runs away to begin anew" in str(caught.value)


def test_an_entry_that_was_moved_is_as_it_was_declared(started, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("moved") / "entry"
    started.path.rename(elsewhere)
    moved = entries.read(elsewhere)
    starts.require_unchanged(moved, starts.read(moved))

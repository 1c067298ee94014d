"""pack.json comes from outside: what it may hold, and what a pack's folder may hold beside it."""

import copy
import hashlib
import json
import os

import pytest

from gpt.errors import UserError
from gpt.packs import seal

CONTENT = b"a line\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WEIGHTS = hashlib.sha256(b"weights").hexdigest()
RUN = {
    "side": "baseline",
    "seed": 0,
    "step": 4,
    "sums": {"nats": 6.5, "tokens": 3, "text_nats": 6.0, "text_tokens": 2, "bytes": 5},
    "documents": "d" * 64,
    "weights_sha256": WEIGHTS,
    "curve": "c" * 12,
    "chain": "a" * 16,
}
TREE = {
    "format": 1,
    "entry": "rope",
    "made": 1.7e9,
    "trainer": {"code": "c" * 12, "commit": None, "dirty": None},
    "runs": {"baseline-seed0": RUN},
    "judgement": {"verdict": "better"},
    "environment": {},
    "files": {
        "entry.json": {"size": len(CONTENT), "sha256": SHA256},
        "runs/baseline-seed0/metrics.jsonl": {"size": len(CONTENT), "sha256": SHA256},
    },
}
ABSENT = object()


def write(folder, tree=TREE):
    for name in TREE["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CONTENT)
    content = tree if isinstance(tree, str) else json.dumps(tree)
    (folder / "pack.json").write_text(content)


def altered(place, value):
    """TREE with another value at a place, or without it."""
    tree = copy.deepcopy(TREE)
    block = tree
    for name in place[:-1]:
        block = block[name]
    if value is ABSENT:
        del block[place[-1]]
    else:
        block[place[-1]] = value
    return tree


def test_what_is_sealed_is_read(tmp_path):
    write(tmp_path)
    pack = seal.read(tmp_path)
    assert pack.runs["baseline-seed0"].sums == RUN["sums"]
    assert pack.files == TREE["files"] and pack.judgement == {"verdict": "better"}
    assert seal.problems(pack) == []
    seal.require_whole(pack)


RUNS = ("runs", "baseline-seed0")
FACTS = {"size": len(CONTENT), "sha256": SHA256}
MISTAKES = {
    "another format": (altered(["format"], 2), "format must be 1, which this version reads"),
    "no name": (altered(["entry"], "../x"), "entry must be a name of letters, digits, -, _ and ."),
    "no time": (altered(["made"], True), "made must be seconds since 1970"),
    "a list of runs": (altered(["runs"], [RUN]), "runs must be a block"),
    "a part that lacks": (altered(["judgement"], ABSENT), "judgement is missing"),
    "a part too many": (altered(["more"], 1), "more is nothing that a pack tells"),
    "a run's name": (altered(["runs", "a/b"], RUN), "runs.a/b is no name of a run"),
    "a run that is none": (altered(RUNS, 1), "runs.baseline-seed0 is not a block"),
    "another side": (
        altered([*RUNS, "side"], "left"),
        "runs.baseline-seed0.side must be baseline or contender",
    ),
    "half a step": (
        altered([*RUNS, "step"], 0.5),
        "runs.baseline-seed0.step must be a whole number",
    ),
    "a sum that is none": (
        altered([*RUNS, "sums", "nats"], "1"),
        "runs.baseline-seed0.sums.nats must be a number that is not below 0",
    ),
    "a sum below 0": (
        altered([*RUNS, "sums", "text_nats"], -1.0),
        "runs.baseline-seed0.sums.text_nats must be a number that is not below 0",
    ),
    "no number": (
        altered([*RUNS, "sums", "nats"], float("nan")),
        "runs.baseline-seed0.sums.nats must be a number that is not below 0",
    ),
    "a sum that lacks": (
        altered([*RUNS, "sums", "bytes"], ABSENT),
        "runs.baseline-seed0.sums.bytes is missing",
    ),
    "a chain": (
        altered([*RUNS, "chain"], "x"),
        "runs.baseline-seed0.chain must be 16 hexadecimal digits",
    ),
    "a hash": (
        altered([*RUNS, "weights_sha256"], "A" * 64),
        "runs.baseline-seed0.weights_sha256 must be a sha256",
    ),
    "a file above the pack": (
        altered(["files", "../x"], FACTS),
        "files has '../x', which is no path of a file below the pack",
    ),
    "a file elsewhere": (
        altered(["files", "/etc/passwd"], FACTS),
        "files has '/etc/passwd', which is no path of a file below the pack",
    ),
    "a file with a line end": (
        altered(["files", "a\nb"], FACTS),
        "files has 'a\\nb', which is no path of a file below the pack",
    ),
    "itself": (
        altered(["files", "pack.json"], FACTS),
        "files has 'pack.json', which is no path of a file below the pack",
    ),
    "a file without a size": (
        altered(["files", "entry.json"], {"sha256": SHA256}),
        "files.entry.json.size is missing",
    ),
    "a list": ("[]", "it is not a block of names and values"),
    "no JSON": ("{", "JSONDecodeError: "),
    "a key twice": ('{"format": 1, "format": 1}', "the key 'format' stands twice in one block"),
    "too deep": ('{"format": ' + "[" * 30 + "]" * 30 + "}", "ParseError: blocks within blocks"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_no_pack_says_of_itself(what, tmp_path):
    tree, problem = MISTAKES[what]
    write(tmp_path, tree)
    with pytest.raises(UserError) as error:
        seal.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/pack.json: {problem}")


def test_a_run_that_diverged_has_no_sums_and_no_weights(tmp_path):
    tree = altered([*RUNS, "sums"], {})
    tree["runs"]["baseline-seed0"].update(documents=None, weights_sha256=None)
    write(tmp_path, tree)
    assert seal.read(tmp_path).runs["baseline-seed0"].sums == {}


def test_what_is_no_pack(tmp_path):
    with pytest.raises(UserError) as error:
        seal.read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds no pack (no pack.json): make one with `python tools/referee.py pack"
        " ENTRY --out FOLDER`"
    )


def replace(path, how):
    path.unlink()
    how(path)


LOG = "runs/baseline-seed0/metrics.jsonl"
# {what is done: (how, to the pack's folder; the sentence)}
CHANGES = {
    "another byte": (
        lambda pack: (pack / LOG).write_bytes(b"another"),
        f"{{pack}}/{LOG} is not as it was when the pack was made",
    ),
    "a longer file": (
        lambda pack: (pack / LOG).write_bytes(CONTENT * 2),
        f"{{pack}}/{LOG} is not as it was when the pack was made",
    ),
    "a file less": (lambda pack: (pack / LOG).unlink(), f"{{pack}}/{LOG} is missing"),
    "a file more": (
        lambda pack: (pack / "runs/notes").write_text("mine"),
        "{pack}/runs/notes was added since the pack was made",
    ),
    "a link to the same": (
        lambda pack: replace(pack / "entry.json", lambda path: path.symlink_to(pack / LOG)),
        "{pack}/entry.json is a link or no file, and a pack holds files alone",
    ),
    "a folder's link": (
        lambda pack: (pack / "more").symlink_to(pack / "runs"),
        "{pack}/more is a link or no file, and a pack holds files alone",
    ),
    "a pipe": (
        lambda pack: replace(pack / "entry.json", os.mkfifo),
        "{pack}/entry.json is a link or no file, and a pack holds files alone",
    ),
    "other weights": (
        lambda pack: weights_of(pack).write_bytes(b"others"),
        "{pack}/runs/baseline-seed0/export/model.safetensors is not as it was when the pack was"
        " made",
    ),
}


def weights_of(pack):
    path = pack / "runs/baseline-seed0/export/model.safetensors"
    path.parent.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("what", CHANGES)
def test_a_pack_that_was_changed(what, tmp_path):
    change, sentence = CHANGES[what]
    write(tmp_path)
    change(tmp_path)
    pack = seal.read(tmp_path)
    assert seal.problems(pack) == [sentence.format(pack=tmp_path)]
    with pytest.raises(UserError, match="get the pack anew"):
        seal.require_whole(pack)


def test_weights_that_were_left_out_may_come_later(tmp_path):
    write(tmp_path)
    weights_of(tmp_path).write_bytes(b"weights")
    assert seal.problems(seal.read(tmp_path)) == []

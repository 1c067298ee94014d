"""One folder that anyone can check: what is in it, and what is never packed."""

import hashlib
import json
import os
import shutil

import pytest
from entry_runs import in_this_process, new_entry, small_dataset
from synthetic_runs import chain_anew

from gpt.errors import UserError
from gpt.metrics import chain
from gpt.packs import pack, seal
from gpt.referee import entry as entries
from gpt.referee import judgement, runs, scores


@pytest.fixture
def entry(trained_entry, tmp_path):
    shutil.copytree(trained_entry, tmp_path / "entry")
    return tmp_path / "entry"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pack_is_an_entry_without_checkpoints(pack_of_entry, trained_entry):
    out, words = pack_of_entry
    of_a_run = {
        "config.yaml",
        "metrics.jsonl",
        "evaluations/test-step4.json",
        "evaluations/test-step4.documents.jsonl",
        "export/checkpoint.json",
        "export/config.yaml",
        "export/model.safetensors",
        "export/tokenizer.model",
    }
    expected = {
        "entry.json",
        "baseline.json",
        "contender.json",
        "own.py",
        "starts.jsonl",
        "judgement.json",
        "README.md",
        "pack.json",
    }
    for seed in (0, 1):
        for side in ("baseline", "contender"):
            expected |= {f"runs/{side}-seed{seed}/{name}" for name in of_a_run}
        own = {"code/own.py", "export/own.py"}
        expected |= {f"runs/contender-seed{seed}/{name}" for name in own}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == expected
    for name in files - {"judgement.json", "README.md", "pack.json"}:
        assert sha256(out / name) == sha256(trained_entry / name), name
    assert entries.read(out).declaration == entries.read(trained_entry).declaration
    assert judgement.as_dict(judgement.of_paths([out])) == json.loads(
        (out / "judgement.json").read_text()
    )
    assert words.splitlines()[0].startswith(f"{out}: {len(files) - 1} files, ")
    assert sha256(out / "pack.json") in words
    assert "names of hosts, the command lines and the paths" in words


def test_pack_json_seals_sums_weights_logs_and_files(pack_of_entry, trained_entry):
    out, _ = pack_of_entry
    sealed = seal.read(out)
    assert seal.problems(sealed) == []
    assert sealed.entry == entries.read(trained_entry).name
    run = sealed.runs["contender-seed1"]
    folder = out / "runs/contender-seed1"
    evaluation = json.loads((folder / "evaluations/test-step4.json").read_text())
    assert (run.side, run.seed, run.step) == ("contender", 1, 4)
    assert run.sums == {
        "nats": evaluation["total_loss"],
        "tokens": evaluation["tokens"],
        "text_nats": evaluation["text_nats"],
        "text_tokens": evaluation["text_tokens"],
        "bytes": evaluation["bytes"],
    }
    assert run.documents == evaluation["documents"]
    assert run.weights_sha256 == sha256(folder / "export/model.safetensors")
    assert run.chain == chain.head(folder / "metrics.jsonl")
    assert sealed.environment["runs"]["contender-seed1"]["versions"]["torch"]
    assert set(sealed.files) == {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and path.name != "pack.json"
    }


def test_what_its_readme_says(pack_of_entry):
    out, _ = pack_of_entry
    text = (out / "README.md").read_text()
    assert json.loads((out / "judgement.json").read_text())["verdict"] in text
    assert "\n- 4 starts of 4 runs: 0 failed, 0 abandoned\n" in text
    command = "python tools/referee.py verify PACK --data_root DATASET --replay 50"
    assert f"{command} --trust_model_file" in text and "Read own.py before" in text
    assert "The names of hosts, the command lines and the paths" in text


def test_a_pack_without_weights_knows_their_hashes_and_takes_them_later(
    entry, pack_of_entry, tmp_path
):
    out = tmp_path / "light"
    pack.write(entry, out, with_weights=False)
    assert not list(out.rglob("model.safetensors"))
    sealed = seal.read(out)
    assert sealed.runs["baseline-seed0"].weights_sha256 == sha256(
        entry / "runs/baseline-seed0/export/model.safetensors"
    )
    assert seal.problems(sealed) == []
    place = out / "runs/baseline-seed0/export/model.safetensors"
    shutil.copyfile(pack_of_entry[0] / "runs/baseline-seed0/export/model.safetensors", place)
    assert seal.problems(sealed) == []
    shutil.copyfile(pack_of_entry[0] / "runs/baseline-seed1/export/model.safetensors", place)
    assert seal.problems(sealed) == [f"{place} is not as it was when the pack was made"]


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def damage(path):
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def copied(entry, source, target):
    shutil.rmtree(entry / target, ignore_errors=True)
    shutil.copytree(entry / source, entry / target)


def unchain(path):
    """As an earlier version wrote it."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["chain"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def as_link(path):
    elsewhere = path.parents[1] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


RUN = "runs/contender-seed1"
# {what is wrong: (what is done to the entry, words of the sentence)}
MISTAKES = {
    "a seed that is not trained": (
        lambda entry: remove(entry / RUN),
        "{entry}: contender-seed1 is declared, and not finished and evaluated: `python"
        " tools/referee.py run {entry}` goes on",
    ),
    "a seed that is not evaluated": (
        lambda entry: remove(entry / RUN / "evaluations"),
        "{entry}: contender-seed1 is declared, and not finished and evaluated: `python"
        " tools/referee.py run {entry}` goes on",
    ),
    "no sums of documents": (
        lambda entry: remove(entry / RUN / "evaluations/test-step4.documents.jsonl"),
        "{run}/evaluations/test-step4.documents.jsonl is missing, the sums of each document:"
        " `python tools/referee.py run` evaluates again",
    ),
    "no export": (
        lambda entry: remove(entry / RUN / "export"),
        "{run}/export holds no weights: remove the run's folders export and evaluations, and"
        " `python tools/referee.py run` makes them again",
    ),
    "damaged weights": (
        lambda entry: damage(entry / RUN / "export/model.safetensors"),
        "{run}/export/model.safetensors is not as it was exported: remove the run's folders"
        " export and evaluations, and `python tools/referee.py run` makes them again",
    ),
    "weights of another run": (
        lambda entry: copied(entry, "runs/contender-seed0/export", f"{RUN}/export"),
        "{run}/evaluations/test-step4.json is of other weights than {run}/export: remove",
    ),
    "a run that is not declared": (
        lambda entry: copied(entry, RUN, "runs/contender-seed7"),
        "{entry}/runs/contender-seed7 is of no seed that {entry}/entry.json declares: a run more is"
        " no verdict: move it out of the entry",
    ),
    "no record of starts": (
        lambda entry: remove(entry / "starts.jsonl"),
        "{entry}/starts.jsonl has no start of runs/baseline-seed0, so nothing tells that its seed"
        " was declared before training: train it with `python tools/referee.py run`",
    ),
    "an edited record of starts": (
        lambda entry: edit(entry / "starts.jsonl", '"exit_code": 0', '"exit_code": 1'),
        "{entry}/starts.jsonl:3 is not chained to the line before it: the record of starts was"
        " changed: bring the file back as it was written",
    ),
    "a declaration that changed": (
        lambda entry: edit(entry / "entry.json", '"author": ""', '"author": "me"'),
        "{entry}: entry.json changed since runs/baseline-seed0 was started, and what is declared"
        " stands before training",
    ),
    "an edited log": (
        lambda entry: edit(entry / RUN / "metrics.jsonl", '"grad_norm": ', '"grad_norm": 1'),
        "{run}/metrics.jsonl:3 does not follow from the line before it: a line was changed, added"
        " or removed: bring back the file that training wrote",
    ),
    "a log of an earlier version": (
        lambda entry: unchain(entry / RUN / "metrics.jsonl"),
        "{run}/metrics.jsonl:1 is damaged, or not chained to the line before it, and a pack holds"
        " unbroken logs alone: bring back the file that training wrote, or move the run away and"
        " train it again",
    ),
    "a log that is a link": (
        lambda entry: as_link(entry / RUN / "metrics.jsonl"),
        "{run}/metrics.jsonl is a link, and what it leads to may change: put the file itself there",
    ),
    "a run that is a link": (
        lambda entry: as_link(entry / RUN),
        "{run} is a link, and what it leads to may change: put the file itself there",
    ),
    "a pack": (
        lambda entry: (entry / "pack.json").write_text("{}"),
        "{entry} is a pack already: copy it, or pack an entry",
    ),
    "no entry": (
        lambda entry: remove(entry / "entry.json"),
        "{entry} holds no entry (no entry.json)",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_is_not_packed(what, entry, tmp_path):
    spoil, sentence = MISTAKES[what]
    spoil(entry)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        pack.write(entry, tmp_path / "pack", with_weights=True)
    assert sentence.format(entry=entry, run=entry / RUN) in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_written_over(entry, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/notes").write_text("mine")
    with pytest.raises(UserError, match="pack exists already: remove it first, or name another"):
        pack.write(entry, tmp_path / "pack", with_weights=True)
    assert os.listdir(tmp_path / "pack") == ["notes"]


def test_a_log_that_is_chained_anew_ends_otherwise(pack_of_entry, tmp_path):
    """Which shows against a pack.json that was published."""
    out = tmp_path / "pack"
    shutil.copytree(pack_of_entry[0], out)
    log = out / "runs/baseline-seed0/metrics.jsonl"
    edit(log, '"grad_norm": ', '"grad_norm": 1')
    chain_anew(log)
    assert chain.first_break(log) is None
    assert chain.head(log) != seal.read(out).runs["baseline-seed0"].chain
    assert seal.problems(seal.read(out)) == [f"{log} is not as it was when the pack was made"]


def test_trials_measured_throughputs_and_the_ladder_come_along(tmp_path, monkeypatch):
    new_entry(tmp_path, small_dataset(tmp_path), seeds=[0], factors=[1.0, 2.0])
    entry = tmp_path / "entry"
    (entry / "measured.json").write_text("{}")
    with in_this_process():
        runs.train(entry, None, None)
    shutil.copytree(entry / "runs/baseline-seed0", entry / "ladder/12h base")
    # a ladder of one scale tells no worth
    monkeypatch.setattr(
        judgement,
        "of_paths",
        lambda paths: judgement.judge(scores.of_entry(entries.read(paths[0]))),
    )
    pack.write(entry, tmp_path / "pack", with_weights=True)
    files = seal.read(tmp_path / "pack").files
    assert "measured.json" in files
    trials = {name for name in files if name.startswith("tuning/")}
    assert trials == {
        f"tuning/{side}-x{factor}-seed1000/{name}"
        for side in ("baseline", "contender")
        for factor in (1.0, 2.0)
        for name in ("config.yaml", "metrics.jsonl")
    }
    assert {name for name in files if name.startswith("ladder/")} == {
        f"ladder/12h base/{name}"
        for name in ("config.yaml", "metrics.jsonl", "evaluations/test-step4.json")
    }
    shutil.rmtree(entry / "tuning/baseline-x2.0-seed1000")
    with pytest.raises(UserError) as error:
        pack.write(entry, tmp_path / "other", with_weights=True)
    assert str(error.value) == (
        f"{entry}/tuning/baseline-x2.0-seed1000/metrics.jsonl: No such file or directory: bring"
        " the log back"
    )


def test_a_pack_inside_of_its_entry(trained_entry):
    """Where judge would take it for a run."""
    out = trained_entry / "runs" / "pack"
    with pytest.raises(UserError) as caught:
        pack.write(trained_entry, out, with_weights=True)
    assert str(caught.value).startswith(f"--out {out} is inside of the entry {trained_entry}")
    assert not out.exists()

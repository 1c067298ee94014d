"""verify: an honest pack passes, what cannot be looked at is left out, and damage of every kind is
told in a sentence."""

import os
import shutil

import pytest
from entry_runs import VOCAB
from small_corpora import BOOKS, build, write_texts

from gpt.errors import UserError
from gpt.packs import check_figures, verify
from gpt.packs.evidence import Evidence

RUN = "runs/contender-seed0"


def test_an_honest_pack_passes(pack_of_entry, capsys):
    assert verify.report(pack_of_entry[0], None, 0, trusted=True) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    states = {line.split()[-1] if not line else line[:10].strip() for line in lines}
    assert states == {"ok", "left out"}
    assert last == "all 18 checks passed, 1 left out (replay)"
    assert [line for line in lines if line.startswith("left out")] == [
        "left out  replay       --replay N trains the first N steps of every run again"
    ]


def test_code_of_a_pack_is_run_only_where_it_is_trusted(packed, capsys):
    marker = packed.parent / "was run"
    for file in packed.rglob("own.py"):
        file.write_text(file.read_text() + f"\nopen({str(marker)!r}, 'w')\n")
    assert verify.report(packed, None, 2, trusted=False) == 2
    out = capsys.readouterr().out
    assert not marker.exists()
    for name in ("probe", "evaluation", "replay"):
        (line,) = [line for line in out.splitlines() if line.startswith(f"left out  {name}")]
        assert "own.py" in line and "--trust_model_file" in line


def test_a_configuration_cannot_smuggle_code_in(packed, tmp_path):
    """A config.yaml that names a file of code and tells nothing of it."""
    import yaml

    path = packed / RUN / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["model_file"]
    config["run"]["gpt"]["model_file"] = str(tmp_path / "evil.py")
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    results = _results(packed, ("replay",), trusted=False, steps=1)
    assert results["replay"].lines == [
        f"{path} does not tell the name and the hash of run.gpt.model_file: use the file that"
        " training wrote"
    ]


def test_without_the_dataset_what_needs_it_is_left_out(packed):
    assert _results(packed, ("dataset",))["dataset"].state == verify.OK
    for path in packed.rglob("config.yaml"):
        path.write_text(path.read_text().replace("/books", "/elsewhere"))
    results = _results(packed, ("dataset", "replay"), steps=1)
    assert {result.state for result in results.values()} == {verify.LEFT_OUT}
    assert all("name it by --data_root" in result.lines[0] for result in results.values())


def test_another_dataset_is_named(packed, tmp_path):
    texts = write_texts(tmp_path / "texts", BOOKS)
    other = build(texts, tmp_path / "other", VOCAB + 20, test_every=4)
    results = _results(packed, ("dataset",), data_root=other)
    assert results["dataset"].state == verify.FAILED
    assert (
        "has another tokenizer than baseline-seed0 was trained with" in results["dataset"].lines[0]
    )


def test_a_pack_without_weights_is_judged_by_the_rest(packed):
    for file in packed.rglob("model.safetensors"):
        file.unlink()
    names = ("weights", "probe", "evaluation", "sums", "judgement")
    results = _results(packed, names)
    assert [results[name].state for name in names] == [
        *[verify.LEFT_OUT] * 3,
        *[verify.OK] * 2,
    ]


def _results(pack, names, data_root=None, trusted=True, steps=0):
    checks = verify.checks(steps)
    evidence = Evidence(pack, data_root, trusted)
    results = verify.make(evidence, {name: checks[name] for name in names}, lambda result: None)
    return {result.name: result for result in results}


CHEAP = [name for name in verify.checks(0) if name not in ("probe", "evaluation")]
FILES = (
    "pack.json",
    "entry.json",
    "contender.json",
    "starts.jsonl",
    "judgement.json",
    "own.py",
    f"{RUN}/config.yaml",
    f"{RUN}/metrics.jsonl",
    f"{RUN}/evaluations/test-step4.json",
    f"{RUN}/evaluations/test-step4.documents.jsonl",
    f"{RUN}/export/checkpoint.json",
    f"{RUN}/export/config.yaml",
    f"{RUN}/export/tokenizer.model",
    f"{RUN}/export/model.safetensors",
    f"{RUN}/code/own.py",
)


def _remove(path):
    path.unlink()


def _garble(path):
    path.write_bytes(bytes(range(256)) * 8)


def _nest(path):
    path.write_text("[" * 1000 + "]" * 1000)


def _become_a_folder(path):
    path.unlink()
    path.mkdir()


def _become_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = (_remove, _garble, _nest, _become_a_folder, _become_a_pipe)


def _cases():
    """Every damage of every file; one of every other file is quick."""
    for number, name in enumerate(FILES):
        for place, damage in enumerate(DAMAGES):
            is_quick = number % 10 == 2 * place
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param(name, damage, marks=marks, id=f"{name}-{damage.__name__}")


@pytest.mark.parametrize(("name", "damage"), [*_cases()])
def test_damage_is_told_and_hides_no_other_check(packed, name, damage):
    damage(packed / name)
    results = _results(packed, CHEAP)
    failed = [result for result in results.values() if result.state == verify.FAILED]
    assert failed
    assert len(results) == len(CHEAP)
    assert any(name.rpartition("/")[2] in line for line in failed[0].lines)


@pytest.mark.parametrize("name", ["runs", "runs/baseline-seed0", "runs/baseline-seed0/export"])
def test_a_folder_that_is_gone_is_told(packed, name):
    shutil.rmtree(packed / name)
    results = _results(packed, CHEAP)
    assert len(results) == len(CHEAP)
    assert results["seal"].state == verify.FAILED
    assert all(result.lines for result in results.values())


def test_steps_below_none_are_refused(pack_of_entry):
    with pytest.raises(UserError, match="--replay -1: give a number of steps"):
        verify.report(pack_of_entry[0], None, -1, trusted=False)


def test_a_folder_without_a_pack_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no pack .no pack.json.: make one with"):
        verify.report(tmp_path, None, 0, trusted=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"verdict": "better"}, ".verdict is better, and the sums make it not shown"),
        ({"per": [1.0, 2.5]}, ".per[1] is 2.5, and the sums make it 2.0"),
        ({"p": {"value": 0.2}}, ".p.value is 0.2, and the sums make it 0.1"),
        ({"more": 1}, ".more is 1, and the sums make it None"),
        ({"p": {"value": 0.1 + 1e-12}}, None),
        ({"per": [1, 2.0]}, None),
    ],
)
def test_a_judgement_is_held_against_its_sums(change, sentence):
    made = {"verdict": "not shown", "per": [1.0, 2.0], "p": {"value": 0.1}}
    assert check_figures.contradiction_of({**made, **change}, made) == sentence


def test_the_last_line_counts():
    results = [
        verify.Result("seal", verify.OK, ["fine"]),
        verify.Result("sums", verify.FAILED, ["no"]),
        verify.Result("replay", verify.LEFT_OUT, ["why"]),
    ]
    assert verify.in_brief(results) == "1 of 2 checks failed: sums, 1 left out (replay)"
    assert verify.in_brief(results[:1]) == "all 1 check passed"

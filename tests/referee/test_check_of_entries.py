"""Whether an entry is a fair comparison: a line for each check, and what differs."""

import json
import shutil

import pytest

pytest.importorskip("torch")

from entry_runs import new_entry, small_dataset
from model_files import LAST, changed
from small_corpora import BOOKS, build, write_texts

from gpt.contract import checks
from gpt.data import manifests
from gpt.data.streams import Streams
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.referee import check, fairness, runs, starts
from gpt.referee import entry as entries

NAMES = [
    "budget",
    "data",
    "tokenizer",
    "split",
    "scoring",
    "one pass",
    "schedule",
    "first weights",
    "precision",
    "kernels",
    "tuning",
    "declaration",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("books"))


@pytest.fixture(scope="module")
def others(tmp_path_factory, dataset):
    """Datasets that are not that one: {name: folder}."""
    folder = tmp_path_factory.mktemp("others")
    texts = write_texts(folder / "other", {**BOOKS, "book 0.txt": BOOKS["book 0.txt"] + " more"})
    same = write_texts(folder / "same", BOOKS)
    return {
        "other text": build(texts, folder / "other text", 300, test_every=4),
        "two tokenizers": build(same, folder / "two tokenizers", 320, test_every=4),
    }


def set_values(entry, side, **values):
    """Edit a side's JSON: {block__key: value}."""
    tree = entry.tree(side)
    for name, value in values.items():
        *blocks, key = name.split("__")
        block = tree
        for part in blocks:
            block = block.setdefault(part, {})
        block[key] = value
    entry.config_file(side).write_text(json.dumps(tree))


def report(entry, capsys, **options):
    """(exit code, {name of a check: its line}, what differs)."""
    capsys.readouterr()
    code = check.report(entry.path, with_runs=False, **options)
    checks, _, differences = capsys.readouterr().out.partition("what differs")
    lines = {line[6:21].strip(): line for line in checks.splitlines() if line[4:6] == "  "}
    return code, lines, differences


def test_a_fair_entry_gets_a_line_for_each_check(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset, "--max_lr", 0.1, "--optimizer.type", "AdamW")
    code, lines, differences = report(entry, capsys)
    assert code == 0
    assert list(lines) == NAMES and all(line.startswith("ok  ") for line in lines.values())
    assert lines["budget"].endswith(
        "equal tokens are the steps 4 of the baseline and 4 of the contender"
    )
    assert "both read the same 11 documents" in lines["data"]
    assert "last_n 16, the whole split after the last step" in lines["scoring"]
    assert lines["tuning"].endswith("nothing is tried: max_lr is 0.003 and 0.1, as the files say")
    assert differences.splitlines()[1:] == [
        "  scheduler.params.max_lr: 0.003 -> 0.1",
        "  optimizer.type: Adam -> AdamW",
    ]


def test_a_null_entry_differs_in_nothing(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset)
    code, _, differences = report(entry, capsys)
    assert code == 0 and differences.splitlines()[1:] == ["  nothing: a null entry"]


def test_what_slows_one_side_alone_is_told(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset, "--activation_checkpointing", "true")
    _, _, differences = report(entry, capsys)
    assert differences.splitlines()[1:] == [
        "  nothing: a null entry",
        "and what makes no other curve, but another speed:",
        "  gpt.activation_checkpointing: False -> True",
    ]


BF16 = {"bf16__enabled": True, "zero_optimization__stage": 1}
UNFAIR = {
    "steps": ("one pass", {"gpt__max_train_steps": 100}, "its 100 steps are ", "both"),
    "last_n": ("scoring", {"gpt__last_n": 8}, "last_n is 16 for the baseline and 8 for the"),
    "a part": ("scoring", {"gpt__max_eval_steps": 1}, "max_eval_steps is 2 for the baseline and 1"),
    "no end": ("scoring", {"gpt__final_eval": False}, "the contender does not score the whole"),
    "no start": ("scoring", {"gpt__eval_every": 0}, "the contender is never evaluated before"),
    "split": ("split", {"gpt__eval_data_split": "train"}, "scored on 'test' and the contender on"),
    "train": (
        "split",
        {"gpt__eval_data_split": "train"},
        "both are scored on 'train', the very text that they are trained on: set",
        "both",
    ),
    "warm": ("first weights", {"gpt__init_from": "x"}, "one side begins with more training"),
    "bf16": ("precision", BF16, "trains in fp32 and the contender in bf16"),
    "kernels": ("kernels", {"gpt__kernels": "torch"}, "kernels is auto for the baseline and torch"),
    "graph": (
        "kernels",
        {"gpt__cuda_graph": True, "zero_optimization__stage": 1},
        "cuda_graph is False for the baseline and True for the contender: kernels are measured",
    ),
    "compiled": ("kernels", {"gpt__compile": "default"}, "kernels are measured apart from methods"),
}


@pytest.mark.parametrize("case", UNFAIR.values(), ids=list(UNFAIR))
def test_what_is_unfair_fails_and_is_not_trained(dataset, tmp_path, capsys, case):
    name, values, sentence, *sides = case
    entry = new_entry(tmp_path, dataset)
    for side in entries.SIDES if sides else ["contender"]:
        set_values(entry, side, **values)
    code, lines, _ = report(entry, capsys)
    assert code == 2
    assert lines[name].startswith("FAIL") and sentence in lines[name]
    assert [line for line in lines.values() if line.startswith("FAIL")] == [lines[name]]
    with pytest.raises(UserError) as caught:
        runs.train(entry.path, None, None)
    assert str(caught.value).startswith(f"{entry.path} is no fair comparison: {name}: ")
    assert not entry.starts.exists() and not entry.runs.exists()


def test_one_pass_is_one_pass_to_the_step(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset)
    side = fairness.settle(entry).baseline
    batch = side.config.batch.train_batch_size
    streams = Streams(side.dataset.split("train"), batch, side.config.model.seq_len)
    for steps, state in ((streams.first_repeat, "ok"), (streams.first_repeat + 1, "FAIL")):
        for name in entries.SIDES:
            set_values(entry, name, gpt__max_train_steps=steps)
        _, lines, _ = report(entries.read(entry.path), capsys)
        assert lines["one pass"].startswith(state), lines["one pass"]


def test_other_text_is_unfair(dataset, others, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset)
    set_values(entry, "contender", gpt__data_root=str(others["other text"]))
    code, lines, _ = report(entry, capsys)
    assert code == 2 and "hold other training documents" in lines["data"]


def test_other_tokens_of_the_same_text_are_unfair(dataset, tmp_path, capsys):
    forged = tmp_path / "forged"
    shutil.copytree(dataset, forged)
    tokens = forged / "train" / manifests.TOKENS
    content = bytearray(tokens.read_bytes())
    content[:2], content[2:4] = content[2:4], content[:2]
    tokens.write_bytes(content)
    manifest = manifests.read(forged)
    manifest["splits"]["train"]["files"][manifests.TOKENS] = hash_file(tokens)
    manifests.write(forged, manifest)
    entry = new_entry(tmp_path, dataset)
    set_values(entry, "contender", gpt__data_root=str(forged))
    code, lines, _ = report(entry, capsys)
    assert code == 2 and "hold other tokens of 'train', of the same documents" in lines["tokenizer"]


@pytest.mark.parametrize("name", ["../my.py", "/tmp/my.py"])
def test_code_outside_of_the_entry_is_refused(dataset, tmp_path, capsys, name):
    entry = new_entry(tmp_path, dataset)
    set_values(entry, "contender", gpt__model_file=name)
    code, lines, _ = report(entry, capsys)
    assert (
        code == 2
        and f"gpt.model_file is {name}, which is not in the entry's folder"
        in (lines["configuration"])
    )


def test_another_tokenizer_of_the_same_bytes_is_fair(dataset, others, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset)
    set_values(
        entry, "contender", gpt__data_root=str(others["two tokenizers"]), gpt__vocab_size=320
    )
    code, lines, differences = report(entry, capsys)
    assert code == 0, lines
    assert (
        "two, of 300 and 320 ids, of documents that are the same to the byte" in lines["tokenizer"]
    )
    assert "model.vocab_size: 300 -> 320" in differences


def test_a_baseline_that_is_not_the_run_of_its_name_is_told(dataset, tmp_path, capsys, monkeypatch):
    entry = new_entry(tmp_path, dataset)
    monkeypatch.setattr(fairness, "CLASSES", tmp_path)
    code, lines, _ = report(entry, capsys)
    assert code == 0 and lines["baseline"].endswith("as ds_configs/tiny.json has it")
    set_values(entry, "baseline", scheduler__params__max_lr=1e-5)
    code, lines, _ = report(entry, capsys)
    assert code == 0 and lines["baseline"] == (
        "note  baseline       is not ds_configs/tiny.json, but another run:"
        " scheduler.params.max_lr 0.003 -> 1e-05"
    )


def test_mistakes_of_a_side_end_the_check(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset)
    set_values(entry, "contender", gpt__seq_len="long")
    code, lines, differences = report(entry, capsys)
    assert code == 2 and list(lines) == ["configuration"] and differences == ""
    assert "contender.json:" in lines["configuration"]


def test_a_budget_that_cannot_be_is_told_once(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset, "--max_lr", 0.1)
    set_values(entry, "baseline", gpt__max_train_steps=1, scheduler__params__decay_steps=1)
    set_values(entry, "baseline", scheduler__params__warmup_steps=0)
    code, lines, _ = report(entry, capsys)
    assert code == 2 and "warmup_steps is 2, more than" in lines["budget"]
    assert "configuration" not in lines


def test_throughputs_that_are_not_measured_are_told(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset, over="hours")
    code, lines, _ = report(entry, capsys)
    assert code == 0
    assert lines["budget"].startswith("note") and "referee.py measure" in lines["budget"]
    assert "with the steps of the files" in lines["one pass"]


def test_a_declaration_that_changed_fails(dataset, tmp_path, capsys):
    entry = new_entry(tmp_path, dataset)
    starts.begin(entry, "runs/baseline-seed0", "baseline", 0, 0)
    assert (
        "unchanged since the first of 1 starts (1 abandoned)"
        in report(entry, capsys)[1]["declaration"]
    )
    set_values(entry, "baseline", scheduler__params__max_lr=1e-5)
    code, lines, _ = report(entry, capsys)
    assert code == 2 and "baseline.json changed since runs/baseline-seed0" in lines["declaration"]
    with pytest.raises(UserError, match="baseline.json changed since"):
        runs.train(entry.path, None, None)


def model_entry(folder, dataset, text):
    folder.mkdir(exist_ok=True)
    (folder / "my.py").write_text(text)
    return new_entry(folder, dataset, model_file=str(folder / "my.py"))


def test_a_model_file_is_held_to_its_contract(dataset, tmp_path, capsys, monkeypatch):
    quick = [each for each in checks.CHECKS if each.name in ("imports", "builds", "causal")]
    monkeypatch.setattr(checks, "CHECKS", quick)
    entry = model_entry(tmp_path, dataset, changed())
    code, lines, differences = report(entry, capsys)
    assert code == 0 and lines["causal"].startswith("ok  ")
    assert "(--skip_runs)" in lines["model file"]
    assert "  model_file: - -> my.py " in differences
    (entry.path / "my.py").write_text(changed((LAST, "x = x - x.mean(1, keepdim=True)")))
    code, lines, _ = report(entry, capsys)
    assert code == 2 and "the model sees the future" in lines["causal"]


def test_an_optimizer_that_ignores_its_rate_fails(dataset, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef build(parameters):\n"
        "    return torch.optim.SGD([p for _, p in parameters], lr=1.0)\n"
    )
    entry = new_entry(tmp_path, dataset, optimizer_file=str(tmp_path / "mine.py"))
    code, lines, _ = report(entry, capsys)
    assert code == 0 and "of the contender steps, and keeps its state" in lines["optimizer file"]
    (entry.path / "mine.py").write_text("def build(parameters):\n    return 3\n")
    code, lines, _ = report(entry, capsys)
    assert code == 2 and lines["optimizer file"].startswith("FAIL")

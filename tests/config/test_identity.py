"""What a run is: what makes two runs seeds of each other, and what does not."""

import copy
import hashlib
import shutil

import pytest
from conftest import ROOT, tiny_run

from gpt.config.code import PARTS, code_of
from gpt.config.identity import (
    change,
    change_in_words,
    differences_of,
    differing,
    digest,
    identity,
    is_free,
    sequences_until,
)
from gpt.config.own_code import hash_of
from gpt.config.resolve import resolve
from gpt.config.saved import saved_config

DATASET = {
    "root": "data/books",
    "fingerprint": "f" * 64,
    "tokenizer": "t" * 64,
    "train": {"split": "train", "documents": "d1", "count": 9, "tokens": 900, "bytes": 3000},
    "scored": {"split": "test", "documents": "d2", "count": 2, "tokens": 90, "bytes": 300},
}
CODE = {"hash": "c0", "commit": "1f", "dirty": False, "parts": dict.fromkeys(PARTS, "0")}


def saved(**options):
    """config.yaml of a tiny run. options: of tiny_run."""
    config = resolve(tiny_run(**options), "tiny")
    return saved_config(config, copy.deepcopy(DATASET), copy.deepcopy(CODE), 1000, "torch")


def with_value(config, path, value):
    """A copy of a config.yaml with another value at a dotted path."""
    changed = copy.deepcopy(config)
    block = changed
    *parents, last = path.split(".")
    for name in parents:
        block = block[name]
    block[last] = value
    return changed


def test_seeds_of_each_other_have_one_identity():
    first, second = saved(gpt={"seed": 0}), saved(gpt={"seed": 7})
    assert digest(first) == digest(second)
    assert differing([identity(first), identity(second)]) == []


@pytest.mark.parametrize(
    "one, other",
    [
        ({"gradient_clipping": 1}, {"gradient_clipping": 1.0}),
        ({}, {"gradient_predivide_factor": 1.0, "prescale_gradients": False}),
        ({}, {"data_types": {"grad_accum_dtype": "fp32"}}),
        ({}, {"communication_data_type": "fp32"}),
        ({"optimizer": {"type": "Adam"}}, {}),
        ({"gpt": {"final_eval": True}}, {}),
        (
            {"optimizer": {"type": "Adam", "params": {"adam_w_mode": True, "amsgrad": False}}},
            {"optimizer": {"type": "Adam"}},
        ),
        (
            {"bf16": {"enabled": True}, "gradient_accumulation_steps": 1},
            {"bf16": {"enabled": True}, "gradient_accumulation_steps": 2},
        ),
    ],
)
def test_the_same_settings_spelt_otherwise_are_the_same(one, other):
    first, second = saved(**one), saved(**other)
    assert differing([identity(first), identity(second)]) == []
    assert digest(first) == digest(second)
    assert differences_of(first, second) == {}


@pytest.mark.parametrize(
    "options, path",
    [
        ({"communication_data_type": "bf16"}, "communication_data_type"),
        (
            {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}},
            "optimizer.params.adam_w_mode",
        ),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            "zero_optimization.zero_quantized_weights",
        ),
    ],
)
def test_what_rounds_or_decays_otherwise_is_another_run(options, path):
    plain, other = (
        saved(optimizer={"type": "Adam"}),
        saved(**{"optimizer": {"type": "Adam"}, **options}),
    )
    assert differing([identity(plain), identity(other)]) == [path]
    assert list(differences_of(plain, other)) == [path]


def test_where_it_ran_and_what_it_told_is_not_what_it_is():
    elsewhere = saved(
        gpt={"run_dir": "runs/x", "log_terminal_every": 7, "comment": "x", "logger_type": "tb"},
        zero_optimization={"stage": 2},
    )
    elsewhere = with_value(elsewhere, "dataset.root", "/mnt/data/books")
    elsewhere = with_value(elsewhere, "dataset.fingerprint", "e" * 64)
    elsewhere = with_value(elsewhere, "code.commit", "2e")
    assert differing([identity(saved()), identity(elsewhere)]) == []


@pytest.mark.parametrize(
    "path, value, told_as",
    [
        ("code.parts.model", "1", "code.model"),
        ("code.parts.kernels", "1", "code.kernels"),
        ("parameters", 999, "parameters"),
        ("kernels", "triton", "kernels"),
        ("precision", "bf16", "precision"),
        ("model.h_dim", 64, "model.h_dim"),
        ("dataset.tokenizer", "u", "dataset.tokenizer"),
        ("dataset.train.documents", "d9", "dataset.train"),
        ("dataset.scored.documents", "d9", "dataset.scored"),
        ("run.train_batch_size", 64, "train_batch_size"),
        ("run.optimizer.params.weight_decay", 0.1, "optimizer.params.weight_decay"),
        ("run.scheduler.params.max_lr", 0.1, "scheduler.params.max_lr"),
        ("run.gpt.max_train_steps", 999, "max_train_steps"),
        ("run.gpt.variant", "rope", "variant"),
        ("run.gpt.last_n", 3, "last_n"),
    ],
)
def test_what_makes_a_run_another(path, value, told_as):
    first = saved()
    second = with_value(first, path, value)
    assert differing([identity(first), identity(second)]) == [told_as]
    assert digest(first) != digest(second)


def with_model_file(config, name="rope.py", text="a", helper="h", **arguments):
    """A copy of a config.yaml whose model is of a file, with a file beside it."""
    changed = copy.deepcopy(config)
    files = {name: sha256(text), "rotation.py": sha256(helper)}
    changed["model_file"] = {"name": name, "hash": hash_of(name, files), "files": files}
    changed["run"]["gpt"] |= {"model_file": f"mine/{name}", "model_options": arguments or None}
    return changed


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_that_is_called_otherwise_is_the_same_model():
    first = with_model_file(saved())
    second = with_model_file(saved(), name="rotary.py")
    assert differing([identity(first), identity(second)]) == []
    assert differences_of(first, second) == {}


@pytest.mark.parametrize(
    "other, paths",
    [
        ({"text": "b"}, ["model_file"]),
        ({"helper": "b"}, ["model_file"]),
        ({"base": 500}, ["model_options.base"]),
        ({"qk_norm": False}, ["model_options.qk_norm"]),
    ],
)
def test_a_file_that_was_changed_or_has_other_arguments_is_another_model(other, paths):
    first, second = with_model_file(saved()), with_model_file(saved(), **other)
    assert differing([identity(first), identity(second)]) == paths
    assert list(differences_of(first, second)) == paths
    assert not any(is_free(path) for path in paths)


def test_on_resuming_another_file_is_told_by_name_and_hash():
    plain, own = saved(), with_model_file(saved())
    was, now = differences_of(plain, own)["model_file"]
    assert was is None and now == f"rope.py {own['model_file']['hash']}"


def test_a_run_that_was_changed_on_resuming_is_no_seed_of_an_undisturbed_one():
    undisturbed = saved()
    entry = change(40, "scheduler.params.decay_steps", 28, 50)
    disturbed = with_value(undisturbed, "changes", [entry])
    paths = differing([identity(undisturbed), identity(disturbed)])
    assert paths == ["changes"]
    words = "scheduler.params.decay_steps 28 -> 50 at step 40"
    assert change_in_words(entry) == words == identity(disturbed)["changes"]


def test_versions_that_count_as_one():
    first = saved()
    second = with_value(with_value(first, "code.parts.model", "1"), "code.hash", "c1")
    on_the_way = with_value(second, "changes", [change(7, "code", "c0", "c1")])
    assert differing([identity(first), identity(second)]) == ["code.model"]
    assert differing([identity(second), identity(on_the_way)]) == ["changes"]
    equal = frozenset({"c0", "c1"})
    assert differing([identity(run, equal) for run in (first, second, on_the_way)]) == []
    third = with_value(first, "changes", [change(7, "code", "c9", "c0")])
    assert differing([identity(first, equal), identity(third, equal)]) == ["changes"]


def test_first_weights_are_known_by_what_they_are_not_by_their_folder():
    here, there = saved(gpt={"init_from": "a"}), saved(gpt={"init_from": "b"})
    assert differing([identity(here), identity(there)]) == ["init_from"]
    for config in (here, there):
        config["began_from"] = {"folder": "x", "step": 1, "sha256": "5"}
    assert differing([identity(here), identity(there)]) == []


def test_what_an_earlier_version_did_not_tell_is_no_difference_on_resuming():
    now = saved()
    earlier = copy.deepcopy(now)
    for block in ("code", "parameters", "kernels", "changes"):
        del earlier[block]
    del earlier["dataset"]["train"], earlier["dataset"]["scored"]
    # but for its code, which may have been another
    code = {"code": ("unknown", "c0")}
    assert differences_of(earlier, now) == code and is_free("code")
    earlier["dataset"]["fingerprint"] = "e" * 64
    assert differences_of(earlier, now) == {**code, "dataset": ("e" * 64, "f" * 64)}


def test_code_may_change_on_resuming_and_is_told_and_settings_need_leave():
    first = saved()
    second = with_value(with_value(first, "code.parts.model", "1"), "code.hash", "c1")
    differences = differences_of(first, second)
    assert differences == {"code": ("c0", "c1")}
    assert all(is_free(path) for path in differences)
    assert not is_free("train_batch_size") and not is_free("dataset.train")


# by hand: 50 steps of 16, then of 32; 50 of 16, 10 of 32, then of 8
@pytest.mark.parametrize(
    "step, batches, sequences",
    [
        (50, [(50, 16, 32)], 800),
        (51, [(50, 16, 32)], 832),
        (60, [(50, 16, 32)], 1120),
        (10, [(50, 16, 32)], 160),
        (60, [(50, 16, 32), (60, 32, 8)], 1120),
        (65, [(50, 16, 32), (60, 32, 8)], 1160),
        (7, [], 56),
        (9, [(5, 4, 8), (5, 8, 2)], 28),
    ],
)
def test_sequences_of_a_run_whose_batch_was_changed(step, batches, sequences):
    changes = [change(at, "train_batch_size", was, now) for at, was, now in batches]
    changes.insert(0, change(3, "seed", 1, 2))
    present = batches[-1][2] if batches else 8
    assert sequences_until(step, present, changes) == sequences


@pytest.fixture
def package(tmp_path):
    """A copy of the package."""
    copied = tmp_path / "gpt"
    shutil.copytree(ROOT / "gpt", copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


@pytest.mark.parametrize(
    "file, part",
    [
        ("model.py", "model"),
        ("kernels/gelu.py", "kernels"),
        ("engine/boundary.py", "engine"),
        ("data/streams.py", "data"),
        ("training/loop.py", "training"),
        ("config/schedule.py", "schedule"),
        ("evaluation.py", "evaluation"),
        ("quantities.py", "evaluation"),
        ("cluster/world.py", "training"),
    ],
)
def test_a_change_of_what_makes_a_curve_is_another_code(package, file, part):
    before = code_of(package)
    with open(package / file, "a") as source:
        source.write("\n# another line\n")
    after = code_of(package)
    assert after["hash"] != before["hash"]
    changed = [name for name in PARTS if before["parts"][name] != after["parts"][name]]
    assert changed == [part]


def test_reports_and_figures_are_no_part_of_the_code(package):
    before = code_of(package)
    for file in ("results/figures.py", "training/reports.py", "metrics/sinks.py", "wording.py"):
        with open(package / file, "a") as source:
            source.write("\n# another line\n")
    assert code_of(package) == before == {**code_of(), "commit": None, "dirty": None}


def test_other_ends_of_lines_and_an_editors_copies_are_no_other_code(package):
    before = code_of(package)
    model = package / "model.py"
    model.write_bytes(model.read_bytes().replace(b"\n", b"\r\n"))
    copies = package / "engine" / ".ipynb_checkpoints"
    copies.mkdir()
    (copies / "boundary-checkpoint.py").write_text("")
    assert code_of(package) == before


def test_a_module_that_is_added_or_renamed_is_another_code(package):
    before = code_of(package)
    (package / "kernels" / "rope.py").write_text("")
    added = code_of(package)
    (package / "kernels" / "rope.py").rename(package / "kernels" / "relu.py")
    hashes = {before["hash"], added["hash"], code_of(package)["hash"]}
    assert len(hashes) == 3


def test_git_tells_the_commit_and_whether_files_differ_from_it(package, run_command):
    def git(*arguments):
        identity_options = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = run_command(["git", *identity_options, *arguments], package)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    code = code_of(package)
    assert code["commit"] == git("rev-parse", "HEAD")[:12] and code["dirty"] is False
    (package / "model.py").write_text("")
    assert code_of(package)["dirty"] is True

"""Whatever the files of a run hold, what compares runs ends with a sentence, or says what it left
out."""

import copy
import json
import math
import sys

import pytest
import yaml
from conftest import load_command
from synthetic_runs import (
    amend,
    evaluation,
    give_own_code,
    identified_run,
    synthetic_run,
    train,
    write_lines,
)

from gpt.config.well_formed import require_all_of_a_run, require_well_formed
from gpt.errors import UserError
from gpt.metrics import lines, runs
from gpt.quantities import contradiction, quantities
from gpt.results import evaluations, figures, power_law

HOSTILE = (None, -1, 0, "x", "", [], {}, [[1]], {"a": {"b": [1]}}, True, 10**400, 1e308, math.nan)
# of the files that are accepted, every so many are read by all commands
SAMPLED = 71
SAMPLED_EVALUATIONS = 11
CHANGE = {"step": 5, "setting": "train_batch_size", "was": 8, "is": 16}
STRANGE_CHANGES = (
    {**CHANGE, "step": "5"},
    {**CHANGE, "step": -5},
    {**CHANGE, "was": "8"},
    {**CHANGE, "was": None},
    {**CHANGE, "setting": ["x"]},
    {**CHANGE, "setting": "code", "was": [1]},
    {"step": 5},
    5,
)
MORE_FACTS = {
    "code/commit": "0123456",
    "began_from": {"sha256": "3" * 64},
    "run/gpt/variant": "rope",
    "sources/gpt.seed": "command line",
    "batch/micro_size": 2,
    "parameters": 10_000,
    "changes": [{"step": 5, "setting": "scheduler.params.max_lr", "was": 1e-3, "is": 2e-3}],
}
NORMS = {"weight": {"a": 1.0}, "gradient": {"a": 1.0}, "update": {"a": 1e-3}}
EVENTS = (
    {"event": "start", "step": 0, "device": "cpu", "versions": {"torch": "2"}, "command": "train"},
    {"event": "start", "step": 12, "code": {"hash": "a", "commit": "b"}, "host": "here"},
    {"event": "resume", "step": 12, "changed": [CHANGE]},
    {"event": "norms", "step": 12, **NORMS},
    {"event": "activations", "step": 12, "rms": {"ln_f.stream": 1.0}, "max_abs": {"a": 2.0}},
    {"event": "checkpoint", "step": 12, "seconds": 0.5},
    {"event": "spike", "step": 12, "loss": 9.0, "zscore": 10.0, "documents": ["a"]},
    {"event": "rewind", "step": 12, "to": 12, "batches": [3, 4], "documents": [["a"], ["b"]]},
    {"event": "overflow", "step": 12, "loss_scale": 2.0, "in_a_row": 1},
    {"event": "failed", "step": 12, "reason": "no number", "documents": ["a"]},
    {"event": "stopped", "step": 12, "reason": "SIGTERM", "seconds": None},
)


class Reader:
    """compare.py, report.py and plot.py in this process, on a good run and a forged one."""

    def __init__(self, folder, monkeypatch):
        self.good = identified_run(folder / "good", tokens_per_second=1000.0)
        self.run = identified_run(folder / "forged", tokens_per_second=1000.0, seed=1)
        amend(self.run, MORE_FACTS)
        give_own_code(self.run, "a", base=500)
        give_own_code(self.run, "b", "optimizer_file", "sign.py")
        self._out = folder / "out"
        self._monkeypatch = monkeypatch
        good_config = runs.read_run_config(self.good / "config.yaml")
        self._read_config = lambda path: copy.deepcopy(good_config)
        self._tools = {name: load_command(name) for name in ("compare", "report", "plot")}
        # what draws is not at issue, what is drawn is
        for name in ("law_figure", "training", "inside", "curves"):
            monkeypatch.setattr(figures, name, lambda *arguments: [])
        monkeypatch.setattr(power_law, "fit", lambda compute, losses: float(sum(losses)))
        monkeypatch.setattr(power_law, "describe", lambda laws, unit: [])

    def config(self):
        return yaml.safe_load((self.run / "config.yaml").read_text(encoding="utf-8"))

    def read_config_as(self, config):
        """Have the forged run's config.yaml read as this tree."""
        read = self._read_config
        self._monkeypatch.setattr(
            runs, "read_run_config", lambda path: config if path.parent == self.run else read(path)
        )

    def read(self, where):
        """Raises AssertionError where a command ends with anything but a UserError."""
        for name, *options in (
            ("compare",),
            ("report", "--out", f"{self._out}.html"),
            ("plot", "--out", str(self._out), "--scaling"),
        ):
            argv = [f"{name}.py", str(self.good), str(self.run), *options]
            self._monkeypatch.setattr(sys, "argv", argv)
            try:
                self._tools[name].main()
            except UserError:
                pass
            except Exception as error:
                raise AssertionError(f"{name}.py: {where[:200]}") from error


@pytest.fixture
def reader(tmp_path, monkeypatch, capsys):
    return Reader(tmp_path, monkeypatch)


def places_in(tree, above=()):
    """The paths of all blocks and values of a tree."""
    for name, value in tree.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from places_in(value, (*above, name))


def altered(tree, place, value):
    """A copy with another value; without it where it is the ellipsis."""
    copied = copy.deepcopy(tree)
    block = copied
    for name in place[:-1]:
        block = block[name]
    if value is ...:
        del block[place[-1]]
    else:
        block[place[-1]] = value
    return copied


def test_a_config_that_holds_anything(reader):
    tree = reader.config()
    cases = []
    for place in places_in(tree):
        cases += [(place, value) for value in (..., *HOSTILE)]
    cases += [(("changes",), [change]) for change in STRANGE_CHANGES]
    accepted = []
    for place, value in cases:
        config = altered(tree, place, value)
        try:
            require_well_formed(reader.run, config)
            require_all_of_a_run(reader.run, config)
        except UserError:
            continue  # and left out with a notice
        accepted.append((config, f"{'.'.join(place)} = {value}"))
    assert len(accepted) < len(cases) * 0.7
    for config, where in accepted[::SAMPLED]:
        reader.read_config_as(config)
        reader.read(where)


def test_events_that_hold_anything(reader):
    good = (reader.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for event in EVENTS:
        forged = [json.dumps({**event, name: value}) + "\n" for name in event for value in HOSTILE]
        write_lines(reader.run, [*(f"{line}\n" for line in good), *forged])
        reader.read(f"{event['event']} with anything")
    for name in train(1, 3.0):
        forged = [
            json.dumps({**train(step, 3.0), name: value}) + "\n"
            for step, value in enumerate(HOSTILE, 1)
        ]
        write_lines(reader.run, [*forged, f"{good[-1]}\n"])
        reader.read(f"{name} of training lines")


@pytest.mark.parametrize("kind", ["eval", "final_eval"])
def test_evaluations_that_hold_anything(kind, reader):
    *before, last = (reader.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    whole = {**json.loads(last), "event": kind, "of_tokens": 5000}
    accepted = []
    for name in whole:
        for value in (..., *HOSTILE):
            line = json.dumps(altered(whole, [name], value))
            event = lines.parse(line.encode())
            if event is not None and contradiction(event) is None:
                accepted.append((line, f"{name} = {value} in an eval line"))
    for line, where in accepted[::SAMPLED_EVALUATIONS]:
        write_lines(reader.run, [*(f"{other}\n" for other in before), f"{line}\n"])
        reader.read(where)


def test_joined_evaluations_that_hold_anything(reader):
    config = reader.config()
    result = {
        "split": "test",
        "documents": "2" * 64,
        "step": 12,
        "seq_len": 32,
        "last_n": 16,
        "of_tokens": 5000,
        **quantities(20000.0, 5000, 20000.0, 5000, 20000),
        "top1": 0.25,
        "languini": {"normalised_ppl": 2.0},
        "run": {
            "name": "x",
            "step": 12,
            "curve": evaluations.digest_with_seed(config),
            "checkpoint": "c",
        },
    }
    path = evaluations.file_of(reader.run, "test", 12)
    path.parent.mkdir()
    path.write_text(json.dumps(result), encoding="utf-8")
    assert evaluations.read(reader.run, config, "test", 12) == result
    accepted = []
    for place in places_in(result):
        for value in (..., *HOSTILE):
            text = json.dumps(altered(result, place, value))
            path.write_text(text, encoding="utf-8")
            try:
                evaluations.read(reader.run, config, "test", 12)
            except UserError:
                continue  # which costs a notice
            accepted.append((text, f"{'.'.join(place)} = {value} in a joined evaluation"))
    for text, where in accepted[::SAMPLED_EVALUATIONS]:
        path.write_text(text, encoding="utf-8")
        reader.read(where)
    for text in ("", "[]", "[" * 100_000, json.dumps(result)[:99], "\0"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="is not what eval.py --join writes"):
            evaluations.read(reader.run, config, "test", 12)


@pytest.mark.parametrize(
    "value", ["2020-13-45", "1" + "0" * 5000, "!!bool x", "!!int ''", "&a [*a]"]
)
def test_yaml_that_holds_anything(value, reader):
    path = reader.run / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8") + f"more: {value}\n", encoding="utf-8")
    reader.read(value)


CONTRADICTIONS = {
    "batch/global_size": (4, "batch.global_size is 4, and run.train_batch_size is 8"),
    "model/seq_len": (64, "model.seq_len is 64, and run.gpt.seq_len is 32"),
}


@pytest.mark.parametrize("place", CONTRADICTIONS)
def test_a_config_that_contradicts_itself(place, tmp_path):
    value, sentence = CONTRADICTIONS[place]
    amend(identified_run(tmp_path / "run"), {place: value})
    with pytest.raises(UserError) as error:
        runs.read_runs([tmp_path / "run"])
    assert str(error.value) == (
        f"{tmp_path}/run/config.yaml contradicts itself: {sentence}: use the file that training"
        " wrote"
    )


OWN_CODE = {
    "a file that was taken out": (
        {"model_file": None},
        " does not tell the name and the hash of run.gpt.model_file",
    ),
    "a setting that was taken out": (
        {"run/gpt/model_file": None},
        " has the block model_file, and no run.gpt.model_file",
    ),
    "another hash": (
        {"model_file/hash": "0" * 12},
        " contradicts itself: model_file.hash is not that of model_file.files",
    ),
    "another file": (
        {"model_file/name": "other.py"},
        ": model_file.files does not tell model_file.name",
    ),
    "a file elsewhere": (
        {"model_file/files/..": "0" * 64},
        ": model_file.files has '..', which is no name of a .py file",
    ),
    "no hash of a file": (
        {"model_file/files/rope.py": "x"},
        ": model_file.files.rope.py is 'x', not a sha256",
    ),
    "no FLOPs": (
        {"model_file/flops_per_token": 0},
        ": model_file.flops_per_token is 0, must be at least 1",
    ),
}


@pytest.mark.parametrize("case", OWN_CODE)
def test_a_config_whose_own_code_was_edited(case, tmp_path):
    changes, problem = OWN_CODE[case]
    amend(give_own_code(identified_run(tmp_path / "run"), "a"), changes)
    with pytest.raises(UserError) as error:
        runs.read_runs([tmp_path / "run"])
    assert str(error.value) == (
        f"{tmp_path}/run/config.yaml{problem}: use the file that training wrote"
    )


def test_a_run_that_is_not_what_its_config_plans_is_not_finished(tmp_path):
    run = synthetic_run(tmp_path / "run", 12)
    amend(run, {"run/gpt/max_train_steps": 6})
    (beyond,) = runs.read_runs([run])
    assert not beyond.finished and beyond.state == (
        "at step 12, and its config.yaml ends at 6: one of the two is not as training wrote it"
    )
    amend(run, {"run/gpt/max_train_steps": 12})
    write_lines(run, [evaluation(0, 5.0), evaluation(12, 3.0)])
    (untrained,) = runs.read_runs([run])
    assert not untrained.finished and untrained.state == (
        "evaluated at step 12, and its metrics.jsonl has no line of training"
    )
    amend(run, {"run/gpt/log_metrics_every": 0})
    (silent,) = runs.read_runs([run])
    assert silent.finished
    write_lines(synthetic_run(tmp_path / "first", 0), [evaluation(0, 5.0)])
    (of_no_step,) = runs.read_runs([tmp_path / "first"])
    assert of_no_step.finished

"""Whether an entry is a fair comparison of models and optimizers that keep to their contracts, and
what its sides differ in."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpt.config.identity import MODEL_FILE, OPTIMIZER_FILE, code_in_words
from gpt.config.saved import as_dict
from gpt.config.shape import ModelConfig, load_presets
from gpt.errors import UserError
from gpt.referee import entry as entries
from gpt.referee import fairness, measured_file, tuning
from gpt.referee.fairness import Pair, Side
from gpt.referee.measurement import doubts

OK = "ok  "
FAIL = "FAIL"
NOTE = "note"
PRESET = "nano"  # whose shape a model file is checked in, unless its own is smaller
VOCAB_SIZE = 2048  # the sample's
SEQ_LEN = 64


class Report:
    """Lines on what was checked, each printed when it is known."""

    def __init__(self) -> None:
        self._checks = 0
        self._failed = 0

    def tell(self, state: str, name: str, sentence: str) -> None:
        self._checks += state != NOTE
        self._failed += state == FAIL
        print(f"{state}  {name:15}{sentence}", flush=True)

    def look(self, name: str, check: Callable[[], str]) -> bool:
        """Print what a check returns, or the UserError that it raises; whether all is right."""
        try:
            seen = check()
        except UserError as error:
            self.tell(FAIL, name, str(error))
            return False
        self.tell(OK, name, seen)
        return True

    def conclude(self) -> int:
        """Print what all came to; returns the exit code."""
        if self._failed:
            print(f"{self._failed} of {self._checks} checks failed")
            return 2
        print(f"all {self._checks} checks passed")
        return 0


def report(path: Path, with_runs: bool, own_gradient: bool = False) -> int:
    """Print a line for each check, and what the sides differ in; returns the exit code.

    with_runs: whether a model file makes short runs on two ranks. own_gradient: whether its
    gradient is meant to be another than the derivative of the loss.
    """
    entry = entries.read_unsealed(path)
    lines = Report()
    try:
        pair = fairness.settle(entry, has_budget=False)
    except UserError as error:
        lines.tell(FAIL, "configuration", str(error))
        return lines.conclude()
    pair = _with_budget(pair, lines)
    _tell_baseline(pair, lines)
    for name, check in fairness.CHECKS:
        lines.look(name, partial(check, pair))
    _tell_trials(pair, lines)
    for side in _distinct(pair, MODEL_FILE):
        _check_model(side, lines, with_runs, own_gradient)
    for side in _distinct(pair, OPTIMIZER_FILE):
        lines.look("optimizer file", partial(_check_optimizer, side))
    code = lines.conclude()
    print(differences_in_words(pair))
    return code


def _with_budget(pair: Pair, lines: Report) -> Pair:
    """The sides with the steps that equal compute gives them, where those are known."""
    entry = pair.entry
    if fairness.awaits_measurement(entry):
        lines.tell(
            NOTE,
            "budget",
            "the throughputs, by which the steps of equal hours follow, are not measured yet:"
            f" python tools/referee.py measure {entry.path}",
        )
        return pair
    try:
        pair = fairness.settle(entry)
    except UserError as error:
        lines.tell(FAIL, "budget", str(error))
        return pair
    steps = [f"{side.config.options.max_train_steps:,} of the {side.name}" for side in pair.sides]
    lines.tell(OK, "budget", f"equal {entry.claim.over} are the steps {' and '.join(steps)}")
    if entry.claim.over == entries.HOURS:
        for doubt in doubts(measured_file.read(entry)):
            lines.tell(NOTE, "budget", doubt)
    return pair


def _tell_baseline(pair: Pair, lines: Report) -> None:
    """Whether the baseline is the run whose name the claim has."""
    differences = fairness.differences_from_class(pair.entry)
    if differences is None:
        return
    file = f"ds_configs/{pair.entry.claim.baseline}.json"
    if not differences:
        lines.tell(OK, "baseline", f"as {file} has it")
        return
    changes = ", ".join(f"{path} {shipped} -> {own}" for path, shipped, own in differences)
    lines.tell(NOTE, "baseline", f"is not {file}, but another run: {changes}")


def _tell_trials(pair: Pair, lines: Report) -> None:
    """What the trials came to, once they have begun."""
    if not pair.has_budget or not pair.entry.tuning_runs.exists():
        return
    for side in pair.sides:
        try:
            lines.tell(NOTE, "trials", tuning.in_words(pair.entry, side.name))
        except UserError as error:
            lines.tell(NOTE, "trials", str(error))


def _distinct(pair: Pair, file: str) -> list[Side]:
    """The sides that have a file of the user's own, without a second one of the same code and
    arguments."""
    sides: list[Side] = []
    for side in pair.sides:
        if _own(side, file) is None:
            continue
        if not any(_own(side, file) == _own(other, file) for other in sides):
            sides.append(side)
    return sides


def _own(side: Side, file: str) -> Any:
    config = side.config
    if file == MODEL_FILE:
        return config.model_code and (config.model_code.hash, config.options.model_options)
    return config.optimizer_code and (config.optimizer_code.hash, config.options.optimizer_options)


def _check_model(side: Side, lines: Report, with_runs: bool, own_gradient: bool) -> None:
    """As tools/check_model.py."""
    import torch

    from gpt.architecture.architecture import Architecture
    from gpt.contract import checks
    from gpt.contract.subject import Subject
    from gpt.training import contract_runs

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in so small a shape more of them wait longer than they compute
    shape, name = _shape_for_checks(side)
    own = Architecture.of(side.config)
    lines.tell(NOTE, "model file", f"{own}, of the {side.name}, in {name}")
    subject = Subject(dataclasses.replace(own, shape=shape), side.config.options.seed)
    chosen = [check for check in checks.CHECKS if not (own_gradient and check.name == "derivative")]

    def tell(result: checks.Result) -> None:
        lines.tell(OK if result.is_right else FAIL, result.name, result.seen)

    results = checks.run(subject, chosen, tell)
    if not all(result.is_right for result in results):
        lines.tell(NOTE, "model file", "the checks behind it, and the runs on two ranks, need it")
    elif with_runs:
        contract_runs.look_on_sample(subject, tell)
    else:
        lines.tell(NOTE, "model file", "the runs on two ranks are left out (--skip_runs)")
    torch.set_num_threads(threads)


def _shape_for_checks(side: Side) -> tuple[ModelConfig, str]:
    """(a small shape, what it is called)."""
    own = side.config.model
    small = dataclasses.replace(own, vocab_size=VOCAB_SIZE, seq_len=min(SEQ_LEN, own.seq_len))
    nano = dataclasses.replace(small, **load_presets()[PRESET])
    if small.parameters() <= nano.parameters():
        return small, f"its own shape with a context of {small.seq_len}"
    return nano, f"the shape of the preset {PRESET} with a context of {nano.seq_len}"


def _check_optimizer(side: Side) -> str:
    from gpt.optimizers.trial import require_optimizer

    require_optimizer(side.config)
    return f"{side.config.optimizer_code} of the {side.name} steps, and keeps its state"


def differences_in_words(pair: Pair) -> str:
    """What the sides differ in, a line for each path."""
    own = {side.name: as_dict(side.config) for side in pair.sides}
    lines = []
    for path, *values in fairness.differences(pair):
        if path in (MODEL_FILE, OPTIMIZER_FILE):
            values = [code_in_words(own[side.name].get(path)) for side in pair.sides]
        lines.append(_difference(path, *values))
    lines = ["what differs, baseline -> contender:", *(lines or ["  nothing: a null entry"])]
    of_speed = [_difference(*difference) for difference in fairness.differences_of_speed(pair)]
    if of_speed:
        lines += ["and what makes no other curve, but another speed:", *of_speed]
    return "\n".join(lines)


def _difference(path: str, *values: Any) -> str:
    baseline, contender = ("-" if value is None else str(value) for value in values)
    return f"  {path}: {baseline} -> {contender}"

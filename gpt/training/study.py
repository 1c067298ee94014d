"""A study: methods at equal compute, each tuned by as many trials, then trained with several seeds.

A method is a name and options of train.py, which are laid over one run's JSON. Every run of it gets
the optimiser steps that the same FLOPs buy. Its learning rate is the best of a few, which are
multiples of the method's own, under a seed that the final runs do not have: so what is reported was
not chosen for being good.

    OUT/tuning/METHOD-lrRATE-seedN
    OUT/runs/METHOD-lrRATE-seedN
"""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gpt.compute.costs import costs_of
from gpt.config.command_line import parse_command_line
from gpt.config.identity import SCORING
from gpt.config.keys import block_of
from gpt.config.optimizer_keys import OWN_SCHEDULERS
from gpt.config.option_names import option_of
from gpt.config.resolve import read
from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.escaping import markdown_cell
from gpt.metrics.events import FAILED
from gpt.metrics.runs import read_run
from gpt.parsing import parse_json
from gpt.reading import read_text
from gpt.results.intervals import mean, welch
from gpt.training import sweep
from gpt.training.run_data import RunData

AnyTrial = TypeVar("AnyTrial")
# what a method may not set
OF_THE_STUDY = (
    "gpt.run_dir",
    "gpt.seed",
    "gpt.init_from",
    "gpt.branch_from",
    "gpt.max_train_steps",
    "scheduler.params.decay_steps",
)
HEAD = (
    "method",
    "options",
    "parameters",
    "MFLOPs/token",
    "steps",
    "max_lr",
    "loss",
    "against the first",
)


@dataclass(frozen=True)
class Method:
    """One of those that are compared."""

    name: str
    words: tuple[str, ...]  # options of train.py


@dataclass(frozen=True)
class Trial:
    """A method at one learning rate, as far as it follows from the study's settings."""

    method: Method
    settings: dict[str, Any]  # {dotted path: value}, the method's and the study's
    flops_per_token: int

    @property
    def rate(self) -> float:
        return self.settings["scheduler.params.max_lr"]

    @property
    def steps(self) -> int:
        return self.settings["gpt.max_train_steps"]


@dataclass(frozen=True)
class Outcome:
    """What a study knows of a method: the rate that was best, and the losses of the final runs in
    nats per token."""

    trial: Trial
    rates: tuple[float, ...]  # that were tried
    losses: tuple[float, ...]
    diverged: int  # of the final runs
    parameters: int

    @property
    def is_at_the_edge(self) -> bool:
        """Whether a rate beyond those that were tried may be better still."""
        return len(self.rates) > 1 and self.trial.rate in (min(self.rates), max(self.rates))


def read_methods(path: Path) -> list[Method]:
    """The methods in a JSON file, {name: options of train.py as one text}. Raises UserError."""
    mend = 'give {"baseline": "", "rope": "--model_file modern --model_options.rope 10000"}'
    try:
        tree = parse_json(read_text(path), partial(block_of, place=f"--methods {path}"))
    except (OSError, ValueError) as error:
        raise UserError(f"--methods {path}: {error}", mend=mend) from error
    are_texts = isinstance(tree, dict) and all(isinstance(words, str) for words in tree.values())
    if not are_texts or not tree:
        raise UserError(f"--methods {path}: not a block of names and options", mend=mend)
    methods: list[Method] = []
    for name, text in tree.items():
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UserError(f"--methods {path}: the options of {name!r}: {error}") from error
        if not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(
                f"--methods {path}: the name {name!r}", mend="give letters, digits, - and _"
            )
        for other in methods:
            if other.words == words:
                raise UserError(
                    f"--methods {path}: {other.name} and {name} have the same options",
                    mend="leave one out",
                )
        methods.append(Method(name, words))
    return methods


def plan(
    file: Path, methods: Sequence[Method], factors: Sequence[float], flops: float
) -> list[list[Trial]]:
    """The trials of each method. Raises UserError where methods would not be scored alike; else as
    `_trials_of`.

    file: the JSON that the methods' options are laid over.
    """
    configs = [_config(file, method) for method in methods]
    measure = _measure(configs[0])
    for method, config in zip(methods, configs):
        for name, value in _measure(config).items():
            if value != measure[name]:
                raise UserError(
                    f"{method.name} is scored otherwise than {methods[0].name}: {name} is {value}"
                    f" there and {measure[name]} here",
                    mend="give all methods the same",
                )
    return [_trials_of(method, config, factors, flops) for method, config in zip(methods, configs)]


def _measure(config: Config) -> dict[str, Any]:
    """{name: value} of what a final loss is measured by."""
    options = config.options
    measure = {name: getattr(options, name) for name in (*SCORING, "final_eval", "data_root")}
    return {**measure, "vocab_size": config.model.vocab_size, "seq_len": config.model.seq_len}


def _config(file: Path, method: Method) -> Config:
    draft = read(file, 1, _overrides(method))
    draft.add(RunData(draft, may_be_absent=False).mistakes())
    config = draft.settle()
    if not config.options.final_eval and config.options.eval_every <= 0:
        raise UserError(
            f"{method.name}: neither final_eval nor eval_every asks for a last evaluation, which"
            " the study compares",
            mend="give --final_eval true",
        )
    return config


def _trials_of(
    method: Method, config: Config, factors: Sequence[float], flops: float
) -> list[Trial]:
    """A method at each multiple of its own learning rate, for as many steps as the FLOPs buy.
    Raises UserError."""
    schedule = config.schedule
    if schedule is None:
        raise UserError(
            f"{method.name} has no schedule of the trainer's own, whose length and rate the study"
            " would set",
            mend=f"give it one of {', '.join(OWN_SCHEDULERS)}",
        )
    tokens_per_step = config.batch.train_batch_size * config.model.seq_len
    flops_per_token = costs_of(config).flops_per_token
    steps = round(flops / (flops_per_token * tokens_per_step))
    if steps < 1:
        raise UserError(
            f"--flops {flops:g} are less than a step of {method.name}"
            f" ({flops_per_token * tokens_per_step:.3g})",
            mend="give more",
        )
    trials = []
    for factor in factors:
        settings = {
            "gpt.max_train_steps": steps,
            "scheduler.params.decay_steps": steps,
            "scheduler.params.max_lr": schedule.max_lr * factor,
            "scheduler.params.min_lr": schedule.min_lr * factor,
        }
        trials.append(Trial(method, {**_overrides(method), **settings}, flops_per_token))
    return trials


def run_of(file: Path, trial: Trial, seed: int, out: Path) -> sweep.SweptRun:
    """A trial under a seed, kept in out/METHOD-lrRATE-seedN."""
    name = f"{trial.method.name}-lr{trial.rate:g}"
    return sweep.SweptRun(file, name, seed, out, {}, trial.settings)


def _overrides(method: Method) -> dict[str, Any]:
    """{dotted path: value} of a method's options. Raises UserError as `options_of_method`."""
    mend = "the study sets folder, seed and length, and each run begins with drawn weights"
    return options_of_method(method.words, method.name, mend)


def options_of_method(
    words: Sequence[str], name: str, mend: str, tool_options: Iterable[str] = ()
) -> dict[str, Any]:
    """{dotted path: value} of options of train.py. Raises UserError for those that are not a
    method's to set. name: what messages call it. mend: why others set them. tool_options: as of
    `parse_command_line`."""
    no_options = ["--ds_config", ""]
    parsed = parse_command_line([*no_options, *words], tool_options)
    usual = parse_command_line(no_options)
    for flag, value in vars(usual).items():
        if flag != "overrides" and getattr(parsed, flag) != value:
            raise UserError(f"{name}: --{flag} is not for a method", mend="leave it out")
    for path in OF_THE_STUDY:
        if path in parsed.overrides:
            raise UserError(f"{name}: {option_of(path)} is not for a method", mend=mend)
    return parsed.overrides


def best(trials: Sequence[AnyTrial], losses: Sequence[float]) -> AnyTrial | None:
    """The trial of the lowest loss; None where none has one. losses: nats per token, NaN of what
    diverged."""
    finite = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        return None
    return trials[min(finite, key=lambda index: losses[index])]


def final_loss(run: sweep.SweptRun) -> float:
    """Nats per token of a trained run's last evaluation; NaN where it has none to show."""
    return run.final_evaluation["loss"] if run.status == sweep.FINISHED else math.nan


def is_over(run: sweep.SweptRun) -> bool:
    """Whether training it again would find the same: it is finished, has diverged, or gave up at a
    gradient that is not finite."""
    if run.status in (sweep.FINISHED, sweep.DIVERGED):
        return True
    if run.status != sweep.FAILED:
        return False
    failures = read_run(run.config.run_dir).events.get(FAILED, [])
    return bool(failures) and failures[-1]["step"] >= run.step


def outcome(
    trials: Sequence[Trial], chosen: Trial | None, runs: Sequence[sweep.SweptRun]
) -> Outcome:
    """What is known of a method. runs: the final ones of the chosen trial, or, where none was good
    enough to be chosen, those of all trials."""
    losses = [final_loss(run) for run in runs]
    finite = tuple(loss for loss in losses if math.isfinite(loss))
    return Outcome(
        trials[0] if chosen is None else chosen,
        tuple(trial.rate for trial in trials),
        finite,
        len(losses) - len(finite),
        costs_of(runs[0].config).parameters,
    )


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A row of texts for each method, the first of which the others are held against."""
    first = outcomes[0]
    table = []
    for outcome in outcomes:
        trial = outcome.trial
        edge = " (at the edge)" if outcome.is_at_the_edge else ""
        loss = mean(outcome.losses).in_words() if outcome.losses else "diverges"
        if outcome.diverged and outcome.losses:
            loss += f" ({outcome.diverged} diverged)"
        against = ""
        if outcome is not first and outcome.losses and first.losses:
            against = welch(outcome.losses, first.losses).estimate.in_words()
        table.append(
            [
                trial.method.name,
                " ".join(trial.method.words),
                f"{outcome.parameters:,}",
                f"{trial.flops_per_token / 1e6:.3f}",
                f"{trial.steps:,}",
                f"{trial.rate:g}{edge}",
                loss,
                against,
            ]
        )
    return table


def as_text(outcomes: Sequence[Outcome]) -> str:
    lines = [list(HEAD), *rows(outcomes)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    escaped = [[markdown_cell(cell) for cell in row] for row in rows(outcomes)]
    lines = [HEAD, ["---"] * len(HEAD), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

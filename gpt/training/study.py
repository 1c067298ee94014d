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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.escaping import markdown_cell
from gpt.parsing import parse_json
from gpt.reading import read_text
from gpt.results.intervals import difference, mean

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
    config: Config
    rate: float  # max_lr
    steps: int
    flops_per_token: int
    words: tuple[str, ...]  # options of train.py, the method's and the study's


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
    mend = 'give {"baseline": "", "rope": "--model_file modern --model_options.rope true"}'
    try:
        tree = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--methods {path}: {error}", mend=mend) from error
    are_texts = isinstance(tree, dict) and all(isinstance(words, str) for words in tree.values())
    if not are_texts or not tree:
        raise UserError(f"--methods {path}: not a block of names and options", mend=mend)
    methods = []
    for name, text in tree.items():
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UserError(f"--methods {path}: the options of {name!r}: {error}") from error
        if not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(
                f"--methods {path}: the name {name!r}", mend="give letters, digits, - and _"
            )
        methods.append(Method(name, words))
    return methods


def trials_of(file: Path, method: Method, factors: Sequence[float], flops: float) -> list[Trial]:
    """A method at each multiple of its own learning rate, for as many steps as the FLOPs buy.
    file: the JSON that the method's options are laid over. Raises UserError."""
    raise NotImplementedError


def best(trials: Sequence[Trial], losses: Sequence[float]) -> Trial:
    """The trial of the lowest loss. losses: nats per token, NaN of what diverged. Raises UserError
    where all did."""
    finite = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        raise UserError(
            f"{trials[0].method.name} diverges at every rate: "
            + ", ".join(f"{trial.rate:g}" for trial in trials),
            mend="give smaller --factors, or a smaller --max_lr to the method",
        )
    return trials[min(finite, key=lambda index: losses[index])]


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A row of texts for each method, the first of which the others are held against."""
    first = outcomes[0]
    table = []
    for outcome in outcomes:
        trial = outcome.trial
        edge = " (at the edge)" if outcome.is_at_the_edge else ""
        loss = mean(outcome.losses).in_words() if outcome.losses else "-"
        if outcome.diverged:
            loss += f" ({outcome.diverged} diverged)"
        against = ""
        if outcome is not first and outcome.losses and first.losses:
            against = difference(outcome.losses, first.losses).in_words()
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

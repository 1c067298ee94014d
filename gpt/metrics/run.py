"""A run as readers know it, and the numbers in its events. Made by `gpt.metrics.runs`, without
torch."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config.identity import (
    MODEL_FILE,
    MODEL_OPTIONS,
    changes_of,
    identity,
    sequences_until,
)
from gpt.config.saved import CONFIG
from gpt.config.shape import ModelConfig, family
from gpt.metrics import events
from gpt.metrics.events import AXES, METRICS
from gpt.wording import listed

# axes that follow exactly from a run's config.yaml
COMPUTE = ("tokens", "flops", "reference_hours")


@dataclass
class Run:
    """A run's folder as it is now. Made by `read_runs`.

    events: {kind: [event]}, in the order of the course; lines of abandoned courses are left out of
    CURVES.
    """

    path: Path
    config: dict
    name: str = ""  # as short as it is distinct among the runs read together
    events: dict = field(default_factory=dict)
    notices: list = field(default_factory=list)  # sentences on what could not be read
    last_event: dict = field(default_factory=dict)

    @property
    def options(self) -> dict:
        return self.config["run"]["gpt"]

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(**self.config["model"])

    @property
    def fingerprint(self) -> str | None:
        """sha256 of the dataset's manifest."""
        return (self.config.get("dataset") or {}).get("fingerprint")

    @property
    def family(self) -> str:
        """What figures and tables call its model: its shape, after the name of its own file."""
        shape = family(self.config)
        name = (self.config.get(MODEL_FILE) or {}).get("name")
        return shape if name is None else f"{name.removesuffix('.py')} {shape}"

    @property
    def variant(self) -> str | None:
        """The free name that its method was given."""
        return self.options.get("variant")

    @property
    def identity(self) -> dict[str, Any]:
        """{path: value} of all that seeds of it have in common."""
        return identity(self.config)

    @property
    def code(self) -> str | None:
        """The hash of the code that made its curve; None where it does not tell."""
        return (self.config.get("code") or {}).get("hash")

    @property
    def parameters(self) -> int:
        """The module's, where config.yaml tells them; else those that the shape has."""
        return self.config.get("parameters") or self.model.parameters()

    @property
    def own_model(self) -> str | None:
        """The model file's hash and options; None of the GPT."""
        own_code = self.config.get(MODEL_FILE)
        if own_code is None:
            return None
        return json.dumps([own_code.get("hash"), self.options.get(MODEL_OPTIONS)], sort_keys=True)

    @property
    def flops_per_token(self) -> int | None:
        """Of its model; None where its config.yaml does not tell that of a model file."""
        own_code = self.config.get(MODEL_FILE)
        if own_code is None:
            return self.model.matmul_flops_per_token()
        return own_code.get("flops_per_token")

    def tokens_until(self, step: int) -> int:
        """Training tokens of the steps up to `step`, each at the batch that it had."""
        batch_size = self.config["batch"]["global_size"]
        sequences = sequences_until(step, batch_size, changes_of(self.config))
        return sequences * self.model.seq_len

    @property
    def tokens_per_step(self) -> int:
        return self.config["batch"]["global_size"] * self.config["model"]["seq_len"]

    @property
    def first_step(self) -> int:
        """Optimiser steps before its own, which the trunk made that it branched off from."""
        began_from = self.config.get("began_from") or {}
        return began_from.get("step", 0) if "branch" in began_from else 0

    @property
    def last_step(self) -> int:
        """Optimiser steps completed, as far as the lines tell."""
        kinds = (events.TRAIN, events.EVAL, events.FINAL_EVAL)
        lines = [event for kind in kinds for event in self.events.get(kind, [])]
        return max((event["step"] for event in lines), default=self.first_step)

    @property
    def finished(self) -> bool:
        """Whether the last of its steps is done, and evaluated where evaluation is on; on the whole
        split where `final_eval` asks for that."""
        planned = self.options["max_train_steps"]
        if self.last_step != planned or self._lacks_training:
            return False
        if self.options.get("final_eval"):
            whole = self.whole()
            return whole is not None and whole["step"] == planned
        if (self.options.get("eval_every") or 0) <= 0:
            return True
        last_evaluation = self.final()
        return last_evaluation is not None and last_evaluation["step"] == planned

    @property
    def diverged_at(self) -> int | None:
        """The step from which on its losses are not finite, or after which training found its
        weights to be no numbers; None where the last loss is finite, and where one batch in the
        middle of training may be all that is wrong."""
        split = self.options.get("eval_data_split")
        # at one step the evaluation comes last
        losses = [*self.curve(events.TRAIN), *self.curve(events.EVAL, split)]
        losses += self.events.get(events.FINAL_EVAL, [])
        by_step = sorted(filter(_is_scored, losses), key=lambda event: event["step"])
        diverged = []
        for event in reversed(by_step):
            if math.isfinite(values([event], "loss")[0]):
                break
            diverged.append(event)
        is_certain = len(diverged) > 1 or self.last_step >= self.options["max_train_steps"]
        if diverged and (is_certain or self._ended_diverged):
            return diverged[-1]["step"]
        return self.last_event["step"] if self._ended_diverged else None

    @property
    def has_ended_diverged(self) -> bool:
        """Whether the same command would find no more than that it diverged."""
        is_over = self._ended_diverged or self.last_step >= self.options["max_train_steps"]
        return is_over and self.diverged_at is not None

    @property
    def _ended_diverged(self) -> bool:
        """Whether training ended for that reason, and did not go on since."""
        is_failure = self.last_event.get("event") == events.FAILED
        return is_failure and self.last_event.get("diverged") is True

    @property
    def state(self) -> str:
        """In words: finished, or how far it is."""
        planned = self.options["max_train_steps"]
        if self.diverged_at is not None:
            return f"diverged at step {self.diverged_at:,}"
        if self.finished:
            is_evaluated = self.final() is not None or self.whole() is not None
            return "finished" if is_evaluated else "finished, and never evaluated"
        if self.last_step > planned:
            return (
                f"at step {self.last_step:,}, and its {CONFIG} ends at {planned:,}: one of the two"
                " is not as training wrote it"
            )
        if self.last_step == planned and self._lacks_training:
            return f"evaluated at step {planned:,}, and its {METRICS} has no line of training"
        if self.last_step == planned:
            return (
                f"at its last step, {planned:,}, and its evaluation is missing: the command that"
                " trained it makes up for it"
            )
        return f"at step {self.last_step:,} of {planned:,}"

    @property
    def _lacks_training(self) -> bool:
        """Whether there is no line of training, where its options make some."""
        every = self.options.get("log_metrics_every", 1)
        if every is None or every <= 0:
            return False
        is_due = self.options["max_train_steps"] // every > self.first_step // every
        return is_due and not self.events.get(events.TRAIN)

    def planned(self, axis: str) -> float | None:
        """Its compute class: what the whole run takes, over "tokens", "flops" or
        "reference_hours"; None where it has no hours of a reference accelerator."""
        return self._compute(axis, self.options["max_train_steps"])

    @property
    def reference_speed(self) -> float | None:
        """Tokens per second of the reference accelerator with this model; None where the run tells
        none, or one that was measured for another model or precision."""
        flops = self.options.get("reference_flops_per_token")
        precision = self.options.get("reference_precision")
        if flops not in (None, self.flops_per_token):
            return None
        if precision not in (None, self.config.get("precision")):
            return None
        return self.options.get("tokens_per_second")

    @property
    def tells_reference(self) -> bool:
        """Whether its file says which model its throughput was measured for."""
        told = (self.options.get(f"reference_{name}") for name in ("flops_per_token", "model"))
        return any(fact is not None for fact in told)

    def curve(self, kind: str, split: str | None = None) -> list:
        """Events of one of CURVES by rising step; those of `split` where they are evaluations."""
        curve = self.events.get(kind, [])
        if kind != events.EVAL:
            return curve
        return [event for event in curve if event.get("split") == split]

    def splits(self) -> list:
        """Splits that were evaluated, the one that the configuration names first."""
        splits = {event.get("split") for event in self.events.get(events.EVAL, [])}
        own = self.options.get("eval_data_split")
        return sorted(splits, key=lambda split: (split != own, str(split)))

    def final(self) -> dict | None:
        """The last evaluation of the configuration's split."""
        evaluations = self.curve(events.EVAL, self.options.get("eval_data_split"))
        return evaluations[-1] if evaluations else None

    def whole(self) -> dict | None:
        """The last evaluation of the whole split that training made (final_eval)."""
        split = self.options.get("eval_data_split")
        of_split = [
            event for event in self.events.get(events.FINAL_EVAL, []) if event.get("split") == split
        ]
        return of_split[-1] if of_split else None

    def over(self, axis: str, curve: list) -> np.ndarray | None:
        """Where a curve's events lie on one of AXES, float64; None where that is not to be had.

        Lines of older runs hold no axes: all but the measured hours follow exactly from
        config.yaml.
        """
        if axis == "reference_hours" and self.reference_speed is None:
            return None
        key = AXES[axis].key
        places: list[Any]
        if all(key in event for event in curve):
            places = [event[key] for event in curve]
        elif axis in COMPUTE:
            places = [self._compute(axis, event["step"]) for event in curve]
        else:
            return None
        return None if None in places else np.array([_number(place) for place in places])

    def _compute(self, axis: str, step: int) -> float | None:
        """What the steps up to `step` take, over one of COMPUTE."""
        tokens = self.tokens_until(step)
        if axis == "tokens":
            return tokens
        if axis == "flops":
            flops = self.flops_per_token
            return None if flops is None else tokens * flops
        speed = self.reference_speed
        return tokens / speed / 3600 if speed else None


def _is_scored(event: dict) -> bool:
    """Whether its loss is one of some tokens."""
    return event.get("tokens") != 0


def missing_axis(axis: str, runs: Sequence[Run]) -> str:
    """A sentence on runs for which an axis is not to be had."""
    names = listed([run.name for run in runs], shown=3)
    if axis == "reference_hours":
        return (
            f"no reference accelerator-hours for {names}: config.yaml has no gpt.tokens_per_second"
            " that was measured for its model, which tools/throughput.py --write_config writes into"
            " a class's file"
        )
    return f"no {AXES[axis].label} for {names}: {METRICS} does not hold them"


def values(curve: Iterable[dict], name: str | Callable[[dict], Any]) -> np.ndarray:
    """A number of every event, float64; NaN where it is absent, null or no number. name: "loss",
    "seconds/data" for one inside a block, or a function that makes a number of an event."""
    numbers = []
    for event in curve:
        value = _computed(event, name) if callable(name) else _nested(event, name)
        numbers.append(_number(value))
    return np.array(numbers)


def _computed(event: dict, function: Callable[[dict], Any]) -> Any:
    try:
        return function(event)
    # of an event that lacks a number, or has one that no float can hold
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None


def _nested(event: dict, name: str) -> Any:
    value: Any = event
    for part in name.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf

"""The throughput of both sides of an entry on one device, and how sure their ratio is. Imports no
torch.

Both sides took turns, contender and baseline in the order ABBA, so that what drifts meets both
alike: turn i of the one is the neighbour of turn i of the other. The ratio is the mean of the
neighbours' log ratios, with Student's 95% interval. All figures follow from the seconds of the
steps.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gpt.config.resolve import read
from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.quantities import is_number
from gpt.referee.entry import BASELINE, CONTENDER, Entry
from gpt.results.intervals import LEVEL, mean, welch
from gpt.training.run_data import look_up_vocabulary
from gpt.training.throughput import rounded

FORMAT = 1
# of a side's JSON, what a throughput does not depend on
IDLE = ("seed", "run_dir", "data_root")
LEAST_TURNS = 2
MOST_TURNS = 10_000
# half the width of the ratio's interval, beyond which equal compute over hours would be a guess
MOST_UNCERTAIN = 0.03
# of the machine, that other processes may take
MOST_LOAD = 0.1
MOST_EARLIER = 1000  # measurements that are kept beside the last one
SHOWN_EARLIER = 5
SHORT = 12  # characters of a declaration that was measured earlier

Turns = tuple[tuple[float, ...], ...]  # seconds of each step of each turn


class Ratio(NamedTuple):
    """Of throughputs, contender over baseline, with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def used(self) -> float:
        """What equal compute goes by: two sides that cannot be told apart train as many tokens."""
        return 1.0 if self.low <= 1 <= self.high else self.value

    @property
    def uncertainty(self) -> float:
        """By which part the value may be off, half the width of the interval."""
        return math.sqrt(self.high / self.low) - 1

    def as_dict(self) -> dict[str, float]:
        return {**self._asdict(), "used": self.used}

    def in_words(self) -> str:
        return f"{self.value:.4f} (95% interval {self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Speed:
    """How one side trains on the device."""

    fingerprint: str  # of its configuration
    model: str  # in words
    model_digest: str | None  # None: the GPT
    precision: str
    kernels: str  # triton or torch
    micro_batch: int
    tokens_per_step: int
    parameters: int
    flops_per_token: int
    turns: Turns

    @property
    def tokens_per_second(self) -> float:
        steps = sum(map(len, self.turns))
        return self.tokens_per_step * steps / sum(map(sum, self.turns))

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each turn."""
        return [self.tokens_per_step * len(turn) / sum(turn) for turn in self.turns]

    def as_dict(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if name != "turns"}
        return {
            **facts,
            "tokens_per_second": self.tokens_per_second,
            "step_seconds": [list(turn) for turn in self.turns],
        }


@dataclass(frozen=True)
class Earlier:
    """What is kept of a measurement that another one has replaced."""

    time: str
    declaration: str  # the first 12 characters
    device: str
    value: float
    low: float
    high: float
    used: float


@dataclass(frozen=True)
class Measurement:
    """Both sides, as they took turns."""

    declaration: str  # of the entry as it was
    time: str
    speeds: Mapping[str, Speed]  # by side
    # the same with both on plain torch, where the baseline trains with kernels that the contender's
    # model file takes none of
    without_kernels: Mapping[str, Speed] | None
    # tokens per second that the baseline's class was made for, in the precision that it has here
    published: float | None
    together: bool  # whether both lived in one process
    machine: Mapping[str, Any]
    earlier: tuple[Earlier, ...] = ()  # from the first on

    @cached_property
    def ratio(self) -> Ratio:
        return ratio_of(self.speeds)

    @property
    def method_ratio(self) -> Ratio | None:
        """The ratio with both sides on plain torch."""
        return None if self.without_kernels is None else ratio_of(self.without_kernels)

    @property
    def reference_speed(self) -> float:
        """Tokens per second of the class's reference device with the baseline: this device where
        none is published."""
        return self.published or rounded(self.speeds[BASELINE].tokens_per_second)

    @property
    def off(self) -> float | None:
        """By which part the baseline is faster here than published."""
        if self.published is None:
            return None
        return self.speeds[BASELINE].tokens_per_second / self.published - 1

    @property
    def history(self) -> tuple[Earlier, ...]:
        """The measurements that another one would replace: the earlier ones, and this."""
        device = str(self.machine.get("device"))
        declaration = self.declaration[:SHORT]
        this = Earlier(self.time, declaration, device, **self.ratio.as_dict())
        return (*self.earlier, this)

    def as_dict(self) -> dict[str, Any]:
        """The content of measured.json."""
        return {
            "format": FORMAT,
            "declaration": self.declaration,
            "time": self.time,
            "ratio": self.ratio.as_dict(),
            "reference": {"tokens_per_second": self.published, "off": self.off},
            "together": self.together,
            "sides": {side: speed.as_dict() for side, speed in self.speeds.items()},
            "without_kernels": self._without_kernels_as_dict(),
            "machine": dict(self.machine),
            "earlier": [asdict(measurement) for measurement in self.earlier],
        }

    def _without_kernels_as_dict(self) -> dict[str, Any] | None:
        ratio = self.method_ratio
        if self.without_kernels is None or ratio is None:
            return None
        sides = {side: speed.as_dict() for side, speed in self.without_kernels.items()}
        return {"ratio": ratio.as_dict(), "sides": sides}

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(self.as_dict(), indent=1) + "\n")


def ratio_of(speeds: Mapping[str, Speed]) -> Ratio:
    """From turns that were neighbours."""
    estimate = mean(log_ratios(speeds))
    value, half_width = estimate.value, estimate.half_width
    return Ratio(*map(math.exp, (value, value - half_width, value + half_width)))


def log_ratios(speeds: Mapping[str, Speed]) -> list[float]:
    """Of the throughputs of neighbouring turns."""
    pairs = zip(speeds[CONTENDER].rates, speeds[BASELINE].rates, strict=True)
    return [math.log(contender / baseline) for contender, baseline in pairs]


def halves_disagree(speeds: Mapping[str, Speed]) -> bool:
    """Whether the first and the second half of the turns give ratios that differ beyond chance, as
    one in twenty quiet measurements does."""
    ratios = log_ratios(speeds)
    middle = len(ratios) // 2
    return welch(ratios[:middle], ratios[middle:]).p < 1 - LEVEL


def doubts(measurement: Measurement) -> list[str]:
    """Why the ratio may be another on a quiet machine, or by another choice, a sentence each."""
    machine = measurement.machine
    sentences = []
    for name, when in (("load_before", "before"), ("load_during", "while")):
        load = machine.get(name)
        if is_number(load) and load > MOST_LOAD:
            sentences.append(
                f"doubtful: other processes took {load:.0%} of this machine's cores {when} it was"
                " measured"
            )
    processes = machine.get("gpu_processes")
    if is_number(processes) and processes > 0:
        sentences.append(f"doubtful: other processes ({processes}) computed on this machine's GPUs")
    if halves_disagree(measurement.speeds):
        sentences.append(
            "doubtful: the first half of the turns gives another ratio than the second, beyond"
            " chance"
        )
    if measurement.earlier:
        sentences.append(_measured_before(measurement.earlier))
    return sentences


def _measured_before(earlier: Sequence[Earlier]) -> str:
    """That the ratio may have been chosen among several."""
    last = earlier[-SHOWN_EARLIER:]
    ratios = ", ".join(f"{measurement.value:.4f}" for measurement in last)
    times = "once" if len(earlier) == 1 else f"{len(earlier):,} times"
    which = f", the last {len(last)}" if len(earlier) > len(last) else ""
    return f"measured {times} before{which}: {ratios}"


# ---- What was measured


def configuration(entry: Entry, side: str) -> Config:
    """A side as its JSON has it, for one rank. Raises UserError with its mistakes."""
    draft = read(entry.config_file(side), 1, entry.overrides(side))
    look_up_vocabulary(draft)
    return draft.settle()


def fingerprint(entry: Entry, side: str, config: Config) -> str:
    """12 characters that are the same for sides that train alike, but for seed and folders."""
    tree = entry.tree(side)
    tree["gpt"] = {name: value for name, value in tree["gpt"].items() if name not in IDLE}
    codes = [code.hash for code in config.own_code]
    text = json.dumps([tree, codes, config.model.vocab_size], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def published_rate(baseline: Config, precision: str) -> float | None:
    """Tokens per second that a baseline's class was made for; None where it names none, or one in
    another precision than it is measured in."""
    return baseline.options.tokens_per_second if baseline.precision == precision else None


def require_of_entry(measurement: Measurement, entry: Entry, configs: Mapping[str, Config]) -> None:
    """Raise UserError where a side was another when it was measured. configs: by side."""
    published = published_rate(configs[BASELINE], measurement.speeds[BASELINE].precision)
    if measurement.published != published:
        raise UserError(
            f"{entry.measured} has the class's throughput as {measurement.published}, and"
            f" {entry.config_file(BASELINE)} as {published}",
            mend=f"run `python tools/referee.py measure {entry.path}` again",
        )
    for side, config in configs.items():
        speed = measurement.speeds[side]
        expected = (
            fingerprint(entry, side, config),
            config.model_digest,
            config.batch.micro_size,
            config.batch.train_batch_size * config.model.seq_len,
        )
        measured = (
            speed.fingerprint,
            speed.model_digest,
            speed.micro_batch,
            speed.tokens_per_step,
        )
        if measured != expected:
            raise UserError(
                f"{entry.measured} is of another {side} than {entry.config_file(side)} is now",
                mend=f"run `python tools/referee.py measure {entry.path}` again",
            )


def require_certain(measurement: Measurement, entry: Entry) -> None:
    """Raise UserError where the ratio is too uncertain to tell what is equal compute: a contender
    that is slower by less than the noise would train as many tokens."""
    ratio = measurement.ratio
    if ratio.uncertainty <= MOST_UNCERTAIN:
        return
    turns = len(measurement.speeds[BASELINE].turns)
    shortfall = math.log1p(ratio.uncertainty) / math.log1p(MOST_UNCERTAIN)
    raise UserError(
        f"{entry.measured}: the contender's throughput over the baseline's is {ratio.in_words()},"
        f" known to {ratio.uncertainty:.1%}, and equal compute over hours needs"
        f" {MOST_UNCERTAIN:.0%}",
        mend="measure again on a quieter machine, or with --rounds"
        f" {math.ceil(turns * shortfall**2)}",
    )

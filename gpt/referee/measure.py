"""The throughput of contender and baseline, which take turns on one device."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.referee import budget, measured_file
from gpt.referee import entry as entries
from gpt.referee.budget import Budget
from gpt.referee.entry import BASELINE, CONTENDER, HOURS, SIDES, Entry
from gpt.referee.machine import facts_before
from gpt.referee.measurement import (
    LEAST_TURNS,
    MOST_EARLIER,
    MOST_TURNS,
    Earlier,
    Measurement,
    Speed,
    configuration,
    doubts,
    fingerprint,
    published_rate,
)
from gpt.referee.turns import in_turns
from gpt.training.measuring import OUT_OF_MEMORY, in_child
from gpt.training.throughput import model_in_words, rounded
from gpt.wording import timespan

HEAD = (
    "side",
    "model",
    "parameters",
    "MFLOPs/token",
    "kernels",
    "micro batch",
    "tokens/s",
    "steps",
    "tokens",
)
# by which a model file takes kernels of the trainer's own
KERNELS = b"gpt.kernels"
TRITON = "triton"
# by which a baseline may be off its published rate before that is worth a word
SAME_RATE = 0.03


class Outcome(NamedTuple):
    """What processes found."""

    facts: dict[str, dict[str, Any]]  # by side
    seconds: dict[str, list[list[float]]]  # by side: of the steps of each turn
    machine: dict[str, Any]
    together: bool


def measure_entry(path: Path, rounds: int) -> str:
    """Measure, keep measured.json, and tell it in words. Raises UserError."""
    entry = entries.read_unsealed(path)
    if not LEAST_TURNS <= rounds <= MOST_TURNS:
        raise UserError(
            f"--rounds {rounds}: an interval needs {LEAST_TURNS} turns or more of each side",
            mend=f"give {LEAST_TURNS} to {MOST_TURNS:,}",
        )
    _require_not_begun(entry)
    configs = {side: configuration(entry, side) for side in SIDES}
    budget.require_schedules(entry, configs)
    earlier = _earlier(entry)
    measurement = replace(_measure(entry, configs, rounds), earlier=earlier)
    measurement.write(entry.measured)
    flops_per_token = {side: speed.flops_per_token for side, speed in measurement.speeds.items()}
    return in_words(entry, measurement, budget.of(entry, flops_per_token))


def _require_not_begun(entry: Entry) -> None:
    """Raise UserError where training has begun: what is measured stands before it, like all that is
    declared."""
    if entry.starts.is_file() and entry.starts.stat().st_size > 0:
        raise UserError(
            f"{entry.path} has been trained already ({entry.starts}), and what is measured stands"
            " before training",
            mend=f"to begin anew, move {entry.starts.name}, {entry.tuning_runs.name} and"
            f" {entry.runs.name} away",
        )


def _earlier(entry: Entry) -> tuple[Earlier, ...]:
    """What was measured before, which the next measurement keeps. Raises UserError where it cannot
    be read, or is too much."""
    if not entry.measured.exists():
        return ()
    earlier = measured_file.read(entry).history
    if len(earlier) > MOST_EARLIER:
        raise UserError(
            f"{entry.measured} holds {len(earlier):,} measurements, the most that are kept",
            mend="go by the last one, or begin with another entry",
        )
    return earlier


def _measure(entry: Entry, configs: Mapping[str, Config], rounds: int) -> Measurement:
    before = facts_before()
    trees = {side: config.tree() for side, config in configs.items()}
    outcome = _take_turns(entry, trees, rounds, not must_be_apart(configs.values()))
    without_kernels = None
    if favours_baseline(configs, outcome.facts):
        for tree in trees.values():
            tree["gpt"]["kernels"] = "torch"
        on_torch = _take_turns(entry, trees, rounds, outcome.together)
        without_kernels = _speeds(entry, configs, on_torch)
    return Measurement(
        entry.declaration,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        _speeds(entry, configs, outcome),
        without_kernels,
        published_rate(configs[BASELINE], outcome.facts[BASELINE]["precision"]),
        outcome.together,
        {**before, **outcome.machine},
    )


def favours_baseline(configs: Mapping[str, Config], facts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a part of the ratio is due to kernels of the trainer's, which make the baseline
    faster, and which the contender's model file takes none of."""
    if facts[BASELINE]["kernels"] != TRITON:
        return False
    code = configs[CONTENDER].model_code
    if code is None:
        return facts[CONTENDER]["kernels"] != TRITON
    return not any(KERNELS in text for text in code.files.values())


def _speeds(entry: Entry, configs: Mapping[str, Config], outcome: Outcome) -> dict[str, Speed]:
    speeds = {}
    for side, config in configs.items():
        facts = outcome.facts[side]
        speeds[side] = Speed(
            fingerprint(entry, side, config),
            model_in_words(config),
            config.model_digest,
            facts["precision"],
            facts["kernels"],
            config.batch.micro_size,
            config.batch.train_batch_size * config.model.seq_len,
            facts["parameters"],
            facts["flops_per_token"],
            tuple(tuple(turn) for turn in outcome.seconds[side]),
        )
    return speeds


# ---- Processes


def must_be_apart(configs: Iterable[Config]) -> bool:
    """Whether an engine would change how another one in its process computes: DeepSpeed's ZeRO 3
    multiplies matrices by a function of its own ever after, and what torch.compile has compiled
    once it compiles for other shapes in a more general way."""
    return any(config.zero_stage == 3 or config.options.compile != "none" for config in configs)


def _take_turns(entry: Entry, trees: Mapping[str, dict], rounds: int, together: bool) -> Outcome:
    """All turns in one process, where that can be; else each in one of its own."""
    order = in_turns(BASELINE, CONTENDER, rounds)
    if together:
        result = in_child("gpt.referee.turns", {"sides": trees, "order": order})
        if result["status"] != OUT_OF_MEMORY:
            return _joined([_required(entry, result)], together=True)
    results = []
    for side in order:
        task = {"sides": {side: trees[side]}, "order": [side]}
        result = in_child("gpt.referee.turns", task)
        if result["status"] == OUT_OF_MEMORY:
            raise UserError(
                f"{entry.config_file(side)} takes more memory than there is on this device",
                mend="give it a smaller train_micro_batch_size_per_gpu",
            )
        results.append(_required(entry, result))
    return _joined(results, together=False)


def _required(entry: Entry, result: dict[str, Any]) -> dict[str, Any]:
    if result["status"] != "ok":
        raise UserError(f"{entry.path} could not be measured ({result['status']})")
    return result


def _joined(results: Sequence[Mapping[str, Any]], together: bool) -> Outcome:
    """What several processes found, each of some turns."""
    facts: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for result in results:
        facts |= result["sides"]
        for side, turn in result["turns"]:
            seconds[side].append(turn)
    machine = dict(results[-1]["machine"])
    machine["load_during"] = fmean(result["machine"]["load_during"] for result in results)
    return Outcome(facts, seconds, machine, together)


# ---- In words


def in_words(entry: Entry, measurement: Measurement, budgets: Mapping[str, Budget]) -> str:
    """Both sides as a table, their ratio, and what is to be known of it."""
    lines = [f"{entry.name} on {measurement.machine['device']}"]
    lines += _table(measurement, budgets)
    lines.append(f"throughput of the contender over the baseline's: {_ratio(measurement)}")
    lines += _notices(entry, measurement, budgets)
    lines.append(f"kept in {entry.measured}")
    return "\n".join(lines)


def _table(measurement: Measurement, budgets: Mapping[str, Budget]) -> list[str]:
    rows = [HEAD]
    for side in SIDES:
        speed = measurement.speeds[side]
        rows.append(
            (
                side,
                speed.model,
                f"{speed.parameters:,}",
                f"{speed.flops_per_token / 1e6:.3f}",
                speed.kernels,
                str(speed.micro_batch),
                f"{rounded(speed.tokens_per_second):,}",
                f"{budgets[side].steps:,}",
                f"{budgets[side].tokens:,}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]


def _ratio(measurement: Measurement) -> str:
    words = measurement.ratio.in_words()
    if measurement.ratio.used == 1:
        words += ", which holds 1: the two cannot be told apart"
    return words


def _notices(entry: Entry, measurement: Measurement, budgets: Mapping[str, Budget]) -> list[str]:
    notices = doubts(measurement)
    if not measurement.together:
        notices.append(
            "each turn was in a process of its own, since both engines cannot live in one as they"
            " would alone (ZeRO 3, torch.compile, memory)"
        )
    method = measurement.method_ratio
    if method is not None:
        kernels = method.value / measurement.ratio.value
        notices.append(
            f"with both sides on plain torch it is {method.in_words()}: that is the method's, and"
            f" the rest Triton's kernels, which bring the baseline {kernels:.4f} times as much"
        )
    if entry.claim.over != HOURS:
        notices.append(f"the steps are equal over {entry.claim.over}, whatever the throughput")
    elif measurement.off is None:
        precision = measurement.speeds[BASELINE].precision
        notices.append(
            f"no throughput in {precision} is published for the baseline's class: this device is"
            " the reference"
        )
    elif abs(measurement.off) > SAME_RATE:
        notices.append(_scaled(measurement, budgets[BASELINE]))
    return notices


def _scaled(measurement: Measurement, baseline: Budget) -> str:
    """That the baseline trains at another rate than its class was made for, and what follows."""
    assert measurement.published is not None and measurement.off is not None
    speed = measurement.speeds[BASELINE].tokens_per_second
    where = "above" if measurement.off > 0 else "below"
    reference_hours = baseline.tokens / measurement.published / 3600
    return (
        f"the baseline trains at {rounded(speed):,} tokens/s here, {abs(measurement.off):.1%}"
        f" {where} the {measurement.published:,} that its class was made for: the class stays"
        f" {timespan(reference_hours)} of the reference, which are"
        f" {timespan(baseline.tokens / speed / 3600)} of this device"
    )

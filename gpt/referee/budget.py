"""The steps that equal compute gives to each side of an entry.

The baseline trains as its JSON says. The contender trains as many tokens as cost the same: over
hours of one device by the measured ratio of throughputs, over FLOPs by both models' FLOPs per
token, over tokens as many. Its whole steps are at most half a step off that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt.compute.costs import costs_of
from gpt.config.optimizer_keys import OWN_SCHEDULERS
from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.referee.entry import BASELINE, CONTENDER, FLOPS, HOURS, SIDES, Entry
from gpt.referee.measured_file import read
from gpt.referee.measurement import configuration, require_certain, require_of_entry
from gpt.training.throughput import rounded


@dataclass(frozen=True)
class Budget:
    """What one side trains. reference_speed: tokens per second of the class's reference device
    with its model, as far as it was measured; None: its JSON's own, where that has one."""

    steps: int
    tokens_per_step: int
    reference_speed: float | None

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def settings(self) -> dict[str, Any]:
        """{dotted path: value} to lay over the side's JSON."""
        settings: dict[str, Any] = {
            "gpt.max_train_steps": self.steps,
            "scheduler.params.decay_steps": self.steps,
        }
        if self.reference_speed is not None:
            # what it was measured for follows: a throughput that is laid over a JSON is the run's
            settings["gpt.tokens_per_second"] = self.reference_speed
        return settings


def settings(
    entry: Entry, side: str, flops_per_token: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """{dotted path: value} to lay over a side's JSON: steps, decay, and the throughput of the
    reference with this model. Else as `of`."""
    return of(entry, flops_per_token)[side].settings


def of(entry: Entry, flops_per_token: Mapping[str, int] | None = None) -> dict[str, Budget]:
    """Of both sides.

    flops_per_token: by side, where they are known; else, over FLOPs, model files are run for them.
    Raises UserError where throughputs are needed and not measured, too uncertain, or measured of
    other configurations; where a schedule cannot follow the steps; where there is less than one.
    """
    configs = {side: configuration(entry, side) for side in SIDES}
    require_schedules(entry, configs)
    baseline = configs[BASELINE]
    tokens: float = baseline.options.max_train_steps * _tokens_per_step(baseline)
    speeds: dict[str, float | None] = dict.fromkeys(SIDES)
    if entry.claim.over == HOURS:
        measurement = read(entry)
        require_of_entry(measurement, entry, configs)
        require_certain(measurement, entry)
        used = measurement.ratio.used
        tokens *= used
        speeds[BASELINE] = measurement.reference_speed
        speeds[CONTENDER] = rounded(measurement.reference_speed * used)
    elif entry.claim.over == FLOPS:
        costs = _costs(configs) if flops_per_token is None else flops_per_token
        _require_costs(entry, costs)
        tokens *= costs[BASELINE] / costs[CONTENDER]
    steps = {
        BASELINE: baseline.options.max_train_steps,
        CONTENDER: round(tokens / _tokens_per_step(configs[CONTENDER])),
    }
    if steps[CONTENDER] < 1:
        raise UserError(
            f"equal compute over {entry.claim.over} is {tokens:,.0f} tokens for the contender of"
            f" {entry.path}, less than one of its steps"
            f" ({_tokens_per_step(configs[CONTENDER]):,} tokens)",
            mend="give it a smaller train_batch_size, or the baseline more steps",
        )
    return {
        side: Budget(steps[side], _tokens_per_step(configs[side]), speeds[side]) for side in SIDES
    }


def _costs(configs: Mapping[str, Config]) -> dict[str, int]:
    """FLOPs per token by side; of a model file by running it."""
    return {side: costs_of(config).flops_per_token for side, config in configs.items()}


def _require_costs(entry: Entry, costs: Mapping[str, int]) -> None:
    for side in SIDES:
        if not costs.get(side, 0) > 0:
            raise UserError(
                f"{entry.path}: the FLOPs per token of the {side}'s model are not known, and equal"
                " FLOPs follow from them"
            )


def require_schedules(entry: Entry, configs: Mapping[str, Config]) -> None:
    """Raise UserError where a side's learning rate does not follow its steps."""
    for side, config in configs.items():
        if config.schedule is None:
            raise UserError(
                f"{entry.config_file(side)} has no schedule of the trainer's own, whose decay_steps"
                " follow the steps",
                mend=f"give it one of {', '.join(OWN_SCHEDULERS)}",
            )


def _tokens_per_step(config: Config) -> int:
    return config.batch.train_batch_size * config.model.seq_len

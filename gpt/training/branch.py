"""A run that goes on from a checkpoint of another run, its trunk, under a schedule and length of
its own: `branch_from`.

All that makes the curve until there is the trunk's, so it must be set alike. Where the branch's
schedule has other rates on the way than the trunk's, these are changes at the branch's first step;
where it has the same, the branch is the run that would have been trained straight.
"""

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.config.identity import REFERENCE_SPEED, SCORING, change, changes_of, first_weights_of
from gpt.config.optimizer_keys import OWN_SCHEDULERS
from gpt.config.run_config import Config
from gpt.config.saved import RUN, as_dict
from gpt.config.schedule import OwnSchedule, own_schedule
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.training.changes import compare, difference_in_words, how_to_allow, setting_called

OPTION = "--branch_from"
SCHEDULER = "scheduler"
# what a branch has for itself: its schedule, how it is measured, and where it is from
OWN = (SCHEDULER, *SCORING, "dataset.scored", REFERENCE_SPEED, "init_from", "branch_from")


class Branch(NamedTuple):
    """Where a run branches off."""

    checkpoint: Checkpoint  # of the trunk
    changes: list[dict]  # of the trunk's settings, then and before, as in config.yaml
    began_from: dict[str, Any]  # for config.yaml


def branch(
    config: Config,
    resolved: dict,
    allowed: Iterable[str],
    notices: list[str],
    own: Collection[str] = OWN,
) -> Branch:
    """Where `config` branches off. `notices` gets what a user should know.

    resolved: its config.yaml, or as much of it as is known. allowed: settings that may differ from
    the trunk's, besides its `own`. Raises UserError where the checkpoint is not whole, or is of a
    run with other settings.
    """
    checkpoint = find(config)
    trunk = checkpoint.config
    run_dir = checkpoint.path.parent.parent
    schedule = _schedule_of_trunk(checkpoint)
    differences, refused = compare(trunk, resolved, allowed, run_dir, own)
    if refused:
        words = [
            difference_in_words(path, differences[path], trunk, resolved, run_dir)
            for path in refused
        ]
        raise UserError(
            f"{OPTION}: {checkpoint.path} is of a run with other settings ({'; '.join(words)})",
            mend="a branch has a schedule and a length of its own, and all else as its trunk"
            + how_to_allow(refused),
        )
    changes = [*changes_of(trunk)]
    for path, values in differences.items():
        changes.append(change(checkpoint.step, path, *values))
        sentence = difference_in_words(path, values, trunk, resolved, run_dir)
        notices.append(f"changed on branching off: {sentence}")
    assert config.schedule is not None, "a contradiction without one"
    if _differ(schedule, config.schedule, checkpoint.step):
        changes += _changes_of_schedule(trunk, resolved, checkpoint.step)
    notices += _leap(schedule, config.schedule, checkpoint.step)
    return Branch(checkpoint, changes, _origin(checkpoint))


def on_paper(config: Config, dataset: Dataset | None, allowed: Iterable[str]) -> Config:
    """The same with notices of what a branch changes, and of the part that it trains itself.
    dataset: None where it is not there yet. Raises UserError as `branch` does."""
    notices = [*config.notices]
    allowed = [setting_called(key) for key in allowed]
    resolved = as_dict(config)
    if dataset is not None:
        resolved["dataset"] = dataset.facts(config.options.eval_data_split)
    own = OWN if dataset is not None else (*OWN, "dataset")
    step = branch(config, resolved, allowed, notices, own).checkpoint.step
    steps = config.options.max_train_steps
    tokens = (steps - step) * config.batch.train_batch_size * config.model.seq_len
    notices.append(
        f"it begins after step {step:,} of {config.options.branch_from}, and trains"
        f" {steps - step:,} of the {steps:,} steps itself: {tokens:,} tokens,"
        f" {1 - step / steps:.0%} of the figures for the whole run"
    )
    return dataclasses.replace(config, notices=tuple(notices))


def require_other_run(config: Config) -> None:
    """Raise UserError where a run would branch off from itself."""
    path = Path(config.options.branch_from or "").resolve()
    if config.run_dir.resolve() in (path, *path.parents):
        raise UserError(
            f"{OPTION}: {config.options.branch_from} is in {config.run_dir}, the run's own folder",
            mend="name another --run_dir for the branch, or leave the option out to go on with"
            " that run",
        )


def find(config: Config) -> Checkpoint:
    """The checkpoint that a run branches off from, whole. Raises UserError."""
    require_other_run(config)
    text = config.options.branch_from
    assert text is not None
    try:
        path = folders.find(text)
        checkpoint = Checkpoint.open(path).verify()
        checkpoint.require_facts()
    except UserError as error:
        raise UserError(f"{OPTION}: {error.what}", mend=error.mend) from error
    last_step = config.options.max_train_steps
    if checkpoint.step >= last_step:
        raise UserError(
            f"{OPTION}: {checkpoint.path} is of step {checkpoint.step}, and the branch ends at step"
            f" {last_step}",
            mend="give more --max_train_steps, or an earlier checkpoint",
        )
    return checkpoint


def _schedule_of_trunk(checkpoint: Checkpoint) -> OwnSchedule:
    block = checkpoint.config[RUN].get(SCHEDULER)
    schedule = own_schedule(block)
    if schedule is None:
        kind = block["type"] if block else "none"
        raise UserError(
            f"{OPTION}: the scheduler of {checkpoint.path} is {kind}",
            mend=f"train a trunk with {' or '.join(OWN_SCHEDULERS)}",
        )
    return schedule


def _differ(trunk: OwnSchedule, own: OwnSchedule, until: int) -> bool:
    """Whether the rates of two schedules differ at any step up to `until`."""
    return any(trunk.lr(step) != own.lr(step) for step in range(1, until + 1))


def _changes_of_schedule(trunk: dict, resolved: dict, step: int) -> list[dict]:
    was, now = trunk[RUN][SCHEDULER], resolved[RUN][SCHEDULER]
    changes = []
    if was["type"] != now["type"]:
        changes.append(change(step, f"{SCHEDULER}.type", was["type"], now["type"]))
    for name in {**was["params"], **now["params"]}:
        values = was["params"].get(name), now["params"].get(name)
        if values[0] != values[1]:
            changes.append(change(step, f"{SCHEDULER}.params.{name}", *values))
    return changes


def _leap(trunk: OwnSchedule, own: OwnSchedule, step: int) -> list[str]:
    """What is unusual about the learning rate where a run branches off."""
    rate, own_rate = trunk.lr(step), own.lr(step)
    if rate != own_rate:
        return [
            f"the learning rate leaps where the branch begins: the trunk's step {step} was made at"
            f" {rate:.3g}, where the branch's schedule has {own_rate:.3g}"
        ]
    if rate != trunk.max_lr:
        return [
            f"at step {step} the trunk's learning rate is {rate:.3g}, on its way from or to max_lr"
            f" {trunk.max_lr:g}: a cooldown usually begins at the constant rate"
        ]
    return []


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """{"branch", "step", "sha256"} of where a run branches off, and the "first_weights" that its
    trunk began from, where they were not drawn."""
    origin: dict[str, Any] = {
        "branch": str(checkpoint.path),
        "step": checkpoint.step,
        "sha256": checkpoint.manifest.files_sha256,
    }
    first_weights = first_weights_of(checkpoint.config)
    return {**origin, "first_weights": first_weights} if first_weights else origin


def same_branch(earlier: dict, config: Config) -> bool:
    """Whether a run's branch_from names the checkpoint that its earlier config.yaml tells, in
    another place perhaps."""
    try:
        path = folders.find(Path(config.options.branch_from or ""))
        sha256 = Checkpoint.open(path).manifest.files_sha256
    except UserError:
        return False
    return sha256 == (earlier.get("began_from") or {}).get("sha256")

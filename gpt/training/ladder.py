"""A ladder of runs on one trunk: what all of them have in common, the steps at the constant rate,
is trained once.

The trunk goes as far as the longest class's cooldown, and keeps a checkpoint where the cooldown of
each class begins. Each class branches off there, and trains its cooldown alone.
"""

from pathlib import Path
from typing import Any

from gpt.config.identity import differences_of
from gpt.config.saved import as_dict
from gpt.config.schedule import CooldownSchedule
from gpt.errors import UserError
from gpt.training.branch import OWN
from gpt.training.changes import in_words
from gpt.training.sweep import SweptRun, checkpoint_of, plan

TRUNK = "trunk"
# where trunks are kept in a sweep's folder: a level below the runs, which readers take for a ladder
TRUNKS = "trunks"
# what the schedules of classes of one trunk have in common
IN_COMMON = ("max_lr", "warmup_steps")


def plan_on_trunks(
    class_names: list[str], seeds: list[int] | None, out: Path, overrides: dict[str, Any]
) -> list[SweptRun]:
    """As gpt.training.sweep.plan, each seed's trunk before its classes. Raises UserError where the
    classes cannot have one trunk."""
    straight = plan(class_names, seeds, out, overrides)
    for run in straight:
        _require_cooldown(run)
        _require_alike(straight[0], run)
    runs = []
    # None: the classes' own
    seeds_of_trunks: list[int | None] = [*seeds] if seeds else [None]
    for seed in seeds_of_trunks:
        classes = [run for run in straight if run.seed == seed]
        trunk = _trunk_of(classes, seed, out, overrides)
        runs.append(trunk)
        for run in classes:
            step = _cooldown_start(run)
            origin = str(checkpoint_of(trunk.config.run_dir, step))
            own = {"gpt.branch_from": origin}
            runs.append(SweptRun(run.file, run.class_name, seed, out, overrides, own, trunk, step))
    return runs


def _trunk_of(
    classes: list[SweptRun], seed: int | None, out: Path, overrides: dict[str, Any]
) -> SweptRun:
    steps = sorted({_cooldown_start(run) for run in classes})
    longest = max(classes, key=_cooldown_start)
    name = TRUNK if seed is None else f"{TRUNK}-seed{seed}"
    own = {
        "gpt.run_dir": str(out / TRUNKS / name),
        "gpt.max_train_steps": steps[-1],
        "gpt.keep_steps": steps,
        "gpt.final_eval": False,
        "scheduler.params.cooldown_share": 0.0,
    }
    return SweptRun(longest.file, TRUNK, seed, out, overrides, own)


def _cooldown_start(run: SweptRun) -> int:
    schedule = run.config.schedule
    assert isinstance(schedule, CooldownSchedule)
    return schedule.cooldown_start


def _require_cooldown(run: SweptRun) -> None:
    """Raise UserError where a class has nothing that a trunk could train for it."""
    schedule = run.config.schedule
    mend = (
        f"give classes with {CooldownSchedule.kind} and a cooldown_share, or --scheduler.type"
        f" {CooldownSchedule.kind} for all"
    )
    if not isinstance(schedule, CooldownSchedule):
        raise UserError(f"--trunk: {run.file} has another schedule", mend=mend)
    if run.config.options.branch_from or run.config.options.init_from:
        raise UserError(
            f"--trunk: {run.file} begins with the weights of another run",
            mend="leave --trunk out",
        )
    start = schedule.cooldown_start
    if schedule.cooldown_share == 0 or not 0 < start < run.last_step:
        raise UserError(
            f"--trunk: of the {run.last_step} steps of {run.file} none come before a cooldown, or"
            " none in it",
            mend=mend,
        )


def _require_alike(first: SweptRun, other: SweptRun) -> None:
    """Raise UserError where two classes differ by more than their lengths."""
    before, now = (as_dict(run.config) for run in (first, other))
    differences = differences_of(before, now)
    if first.config.options.data_root != other.config.options.data_root:
        roots = first.config.options.data_root, other.config.options.data_root
        differences["data_root"] = roots
    words = []
    for path, values in differences.items():
        is_own = path.startswith(OWN) and path.rpartition(".")[2] not in IN_COMMON
        if not is_own and path != "seed":
            words.append(in_words(path, values))
    if words:
        raise UserError(
            f"--trunk: {first.file} and {other.file} differ by more than their lengths"
            f" ({'; '.join(words)})",
            mend="classes of one trunk differ in decay_steps, max_train_steps and cooldown_share"
            " alone; give the others to a sweep of their own",
        )


def savings(runs: list[SweptRun]) -> str:
    """What the trunks spare, as a line of text."""
    once = sum(run.last_step for run in runs if run.class_name == TRUNK)
    classes = [run for run in runs if run.trunk is not None]
    own = sum(run.last_step - run.first_step for run in classes)
    straight = sum(run.last_step for run in classes)
    share = 1 - (once + own) / straight
    return (
        f"trained once: {once:,} steps; for each class its cooldown, {own:,} steps in all: together"
        f" {once + own:,} of the {straight:,} steps of runs without a trunk, {share:.0%} spared"
    )

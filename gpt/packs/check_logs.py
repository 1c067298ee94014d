"""Checks of the runs' metrics: whole, unbroken, and of a run as its config.yaml tells it."""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from gpt.config.identity import digest
from gpt.config.schedule import own_schedule
from gpt.errors import UserError, in_brief
from gpt.metrics import chain, events
from gpt.metrics.events import METRICS
from gpt.metrics.run import Run
from gpt.packs.evidence import Declared, Evidence, of_each
from gpt.quantities import is_number
from gpt.referee.tuning import has_diverged
from gpt.wording import first_of, plural

SHOWN = 3  # steps that lack a line
# relative, of a learning rate that another machine's cosine has made
SAME_RATE = 1e-6


def are_unbroken(evidence: Evidence, problems: list[str]) -> str:
    """Each line follows from the one before it, the last one is that which was packed, and no line
    is missing up to the last step."""

    def look(run: Declared) -> Iterator[str]:
        broken = list(_broken(evidence, run))
        yield from broken
        if not broken:
            yield from _missing(evidence.run(run.name))

    of_each([*evidence.present, *evidence.trials], problems, look)
    logs = plural(len(evidence.present) + len(evidence.trials), "log")
    return f"{logs}, each unbroken up to its last step"


def _broken(evidence: Evidence, run: Declared) -> Iterator[str]:
    path = evidence.folder(run.name) / METRICS
    try:
        number, head = chain.first_break(path), chain.head(path)
    except OSError as error:
        raise UserError(in_brief(error, path)) from error
    if number is not None:
        yield (
            f"{path}:{number} does not follow from the line before it: a line was changed, added or"
            " removed"
        )
        return
    sealed = evidence.pack.runs.get(run.name)
    if sealed is not None and sealed.chain != head:
        yield f"{path} ends with {head}, and ended with {sealed.chain} when it was packed"


def _missing(run: Run) -> Iterator[str]:
    """What training of these options would have written, and is not there."""
    path = run.path / METRICS
    options = run.options
    last_step = options["max_train_steps"]
    if run.last_step > last_step:
        yield (
            f"{path} goes on to step {run.last_step}, and the run's config.yaml ends at {last_step}"
        )
    is_cut_short = has_diverged(run)
    if is_cut_short:
        last_step = run.last_step
    every = options.get("log_metrics_every") or 0
    if every <= 0:
        yield f"{path} has no lines of training: log_metrics_every is {every}"
    else:
        due = range(run.first_step // every * every + every, last_step + 1, every)
        yield from _absent(run, "line of training", due, run.curve(events.TRAIN))
    every = options.get("eval_every") or 0
    due_evaluations = [] if every <= 0 else [*range(0, last_step, every)]
    if every > 0 and not is_cut_short:  # what is not finite may end a run before its evaluation
        due_evaluations.append(last_step)
    evaluations = run.curve(events.EVAL, options["eval_data_split"])
    yield from _absent(run, "evaluation", due_evaluations, evaluations)
    if options.get("final_eval") and run.whole() is None and not is_cut_short:
        yield f"{path} has no evaluation of the whole split after step {last_step}"


def _absent(run: Run, what: str, due: Any, lines: list[dict]) -> Iterator[str]:
    steps = {line["step"] for line in lines}
    missing = [step for step in due if step not in steps]
    if missing:
        noun = "step" if len(missing) == 1 else "steps"
        yield f"{run.path / METRICS} has no {what} at {noun} {first_of(missing, SHOWN)}"


def follow_from_the_settings(evidence: Evidence, problems: list[str]) -> str:
    """The lines are of this run: its seed, its settings, its schedule and its tokens; and no two
    runs have the same losses."""

    def look(run: Declared) -> Iterator[str]:
        metrics = evidence.run(run.name)
        yield from _of_another(metrics)
        yield from _off_schedule(metrics)
        yield from _off_compute(metrics)

    of_each([*evidence.present, *evidence.trials], problems, look)
    runs = []
    for run in evidence.present:
        try:
            runs.append((run, evidence.run(run.name)))
        except UserError:
            continue  # of_each has told it
    for (first, metrics), (second, metrics_of_second) in combinations(runs, 2):
        problems += _same_log(evidence, first, metrics, second, metrics_of_second)
    return "seed, settings, learning rate and tokens of every line are its run's"


def _of_another(run: Run) -> Iterator[str]:
    """Starts of another run."""
    path = run.path / METRICS
    starts = run.events.get(events.START, [])
    if not starts:
        yield f"{path} does not tell what was started"
    own = {"seed": run.options.get("seed"), "identity": digest(run.config), "code": run.code}
    for start in starts:
        code = start.get("code")
        actual = {**start, "code": code.get("hash") if isinstance(code, dict) else code}
        for name, value in own.items():
            if actual.get(name) != value:
                yield (
                    f"{path} is the log of another run: its start of step {start['step']} has the"
                    f" {name} {actual.get(name)}, and config.yaml has {value}"
                )
                return


def _off_schedule(run: Run) -> Iterator[str]:
    """The first step that was made at another learning rate than the schedule's."""
    schedule = own_schedule(run.config["run"].get("scheduler"))
    if schedule is None:
        return
    for line in run.curve(events.TRAIN):
        rate = schedule.lr(line["step"])
        if not _is_near(line.get("lr"), rate, SAME_RATE):
            yield (
                f"{run.path / METRICS}: step {line['step']} was made at a learning rate of"
                f" {line.get('lr')}, and the schedule in config.yaml has {rate:.9g} there"
            )
            return


def _off_compute(run: Run) -> Iterator[str]:
    """The first line that tells other compute than the run's steps take."""
    flops = run.flops_per_token
    for kind in (events.TRAIN, events.EVAL, events.FINAL_EVAL):
        for line in run.events.get(kind, []):
            tokens = run.tokens_until(line["step"])
            expected = {"train_tokens": tokens, "flops": None if flops is None else tokens * flops}
            for name, value in expected.items():
                if value is not None and not _is_near(line.get(name), value, 1e-9):
                    yield (
                        f"{run.path / METRICS}: {kind} at step {line['step']} tells {name}"
                        f" {line.get(name)}, and so many steps take {value}"
                    )
                    return


def _is_near(value: Any, expected: float, tolerance: float) -> bool:
    return is_number(value) and math.isclose(value, expected, rel_tol=tolerance)


def _same_log(
    evidence: Evidence, first: Declared, metrics: Run, second: Declared, metrics_of_second: Run
) -> Iterator[str]:
    """Two runs whose losses are the same to the last bit, where they cannot be: seeds of one side,
    or sides whose final weights score differently."""
    losses = [_losses(run) for run in (metrics, metrics_of_second)]
    if not losses[0] or losses[0] != losses[1]:
        return
    words = f"{first.name} and {second.name} have the same losses at all {len(losses[0])} steps"
    if first.seed != second.seed:
        yield f"{words}, and other seeds: one is the log of the other"
        return
    finals = [evidence.evaluation(run.name)["total_loss"] for run in (first, second)]
    if finals[0] != finals[1]:
        yield f"{words}, and other final evaluations: one is the log of the other"


def _losses(run: Run) -> list[tuple[int, Any]]:
    return [(line["step"], line.get("loss")) for line in run.curve(events.TRAIN)]

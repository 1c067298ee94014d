"""Whether a pack is what it says."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gpt.errors import UserError, in_words
from gpt.escaping import in_one_line
from gpt.packs import (
    check_declaration,
    check_figures,
    check_logs,
    check_rules,
    check_settings,
    check_weights,
    replay,
)
from gpt.packs.evidence import Check, Evidence, LeftOut
from gpt.packs.seal import FILE
from gpt.referee import entry
from gpt.wording import plural

SHOWN = 10  # problems of one check
OK = "ok"
FAILED = "FAIL"
LEFT_OUT = "left out"
EVALUATION = "evaluation"  # the check without which figures rest on the author's word


class Result(NamedTuple):
    """Of a check. lines: what is right in one, or each thing that is wrong."""

    name: str
    state: str  # OK, FAILED or LEFT_OUT
    lines: list[str]


def checks(steps: int) -> dict[str, Check]:
    """{name: check}, in their order. steps: of each run that are trained again; 0: none."""
    return {
        "seal": check_declaration.seal_is_whole,
        "declaration": check_declaration.is_as_declared,
        "seeds": check_declaration.all_seeds_are_there,
        "starts": check_declaration.every_start_is_told,
        "settings": check_settings.follow_from_the_entry,
        "rules": check_rules.are_kept,
        "data": check_settings.one_text_for_all,
        "dataset": check_settings.dataset_is_the_same,
        "vocabulary": check_settings.vocabulary_is_whole,
        "code": check_settings.own_code_is_as_told,
        "metrics": check_logs.are_unbroken,
        "curves": check_logs.follow_from_the_settings,
        "sums": check_figures.sums_agree,
        "judgement": check_figures.judgement_follows,
        "weights": check_weights.are_of_the_runs,
        "probe": check_weights.give_the_kept_loss,
        EVALUATION: check_weights.score_the_same,
        "trainer": check_settings.trainer_is_the_same,
        "replay": partial(replay.gives_the_same_steps, steps=steps),
    }


def report(path: Path, data_root: Path | None, steps: int, trusted: bool) -> int:
    """Print a line for each check; returns the exit code. Raises UserError where there is no
    pack.

    data_root: of the dataset; None for the one that the runs name. steps: of each run that are
    trained again. trusted: whether code that came with the pack may be run.
    """
    for file in (FILE, entry.FILE):
        if not (path / file).is_file():
            reason = f"holds no pack (no {file})" if path.exists() else "does not exist"
            raise UserError(
                f"{path} {reason}",
                mend="make one with `python tools/referee.py pack ENTRY --out FOLDER`",
            )
    if steps < 0:
        raise UserError(f"command line: --replay {steps}", mend="give a number of steps")
    evidence = Evidence(path, data_root, trusted)
    results = make(evidence, checks(steps), tell)
    print(in_brief(results))
    return 2 if any(result.state == FAILED for result in results) else 0


def make(
    evidence: Evidence, checks: dict[str, Check], tell: Callable[[Result], object]
) -> list[Result]:
    """Make checks, each of which is told at once; one that fails hides no other."""
    results = []
    for name, check in checks.items():
        begin(name)
        result = _result(name, check, evidence)
        tell(result)
        results.append(result)
    return results


def _result(name: str, check: Check, evidence: Evidence) -> Result:
    problems: list[str] = []
    try:
        seen = check(evidence, problems)
    except (UserError, OSError) as error:
        problems.append(str(in_words(error)))
    except LeftOut as lack:
        if not problems:
            return Result(name, LEFT_OUT, [str(lack)])
    # what is wrong with the dataset is wrong with it for every run
    problems = list(dict.fromkeys(problems))
    return Result(name, FAILED, problems) if problems else Result(name, OK, [seen])


def begin(name: str) -> None:
    """Name the check that is under way, where a terminal can put its result in that place."""
    if sys.stdout.isatty():
        print(f"{'…':10}{name}", end="\r", flush=True)


def tell(result: Result) -> None:
    for line in result.lines[:SHOWN]:
        print(f"{result.state:10}{result.name:13}{in_one_line(line)}", flush=True)
    if len(result.lines) > SHOWN:
        print(f"{result.state:10}{result.name:13}and {len(result.lines) - SHOWN} more of the kind")


def in_brief(results: list[Result]) -> str:
    """What all came to."""
    failed = [result.name for result in results if result.state == FAILED]
    left_out = [result.name for result in results if result.state == LEFT_OUT]
    count = len(results) - len(left_out)
    rest = f", {len(left_out)} left out ({', '.join(left_out)})" if left_out else ""
    if EVALUATION in left_out:
        rest += ": not all figures were held against weights"
    if failed:
        return f"{len(failed)} of {plural(count, 'check')} failed: {', '.join(failed)}{rest}"
    return f"all {plural(count, 'check')} passed{rest}"

"""measured.json, which others may have written: read with every figure computed anew from the
seconds of the steps."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from gpt.config.keys import block_of
from gpt.config.run_config import value_at
from gpt.errors import UserError, in_brief
from gpt.parsing import parse_json
from gpt.quantities import is_number
from gpt.reading import read_text
from gpt.referee.entry import SIDES, Entry
from gpt.referee.measurement import (
    FORMAT,
    LEAST_TURNS,
    MOST_EARLIER,
    MOST_TURNS,
    Earlier,
    Measurement,
    Speed,
)

# of figures that were computed twice
SAME_FIGURE = 1e-9
TEXTS = ("fingerprint", "model", "precision", "kernels")
EARLIER_TEXTS = ("time", "declaration", "device")
RATIOS = ("value", "low", "high", "used")
COUNTS = ("micro_batch", "tokens_per_step", "parameters", "flops_per_token")


def read(entry: Entry) -> Measurement:
    """An entry's measurement, as its measured.json has it. Raises UserError where there is none, or
    where it contradicts itself."""
    path = entry.measured
    if not path.is_file():
        raise UserError(
            f"the throughputs of {entry.path} are not measured yet (no {path.name})",
            mend=f"run `python tools/referee.py measure {entry.path}`",
        )
    mend = "move it away, and measure again"
    try:
        tree = parse_json(read_text(path), partial(block_of, place=str(path)))
    except (OSError, ValueError) as error:
        raise UserError(in_brief(error, path), mend=mend) from error
    problem = _problem(tree)
    if problem:
        raise UserError(f"{path}: {problem}", mend=mend)
    without_kernels = tree["without_kernels"]
    measurement = Measurement(
        tree["declaration"],
        tree["time"],
        _speeds(tree["sides"]),
        None if without_kernels is None else _speeds(without_kernels["sides"]),
        tree["reference"]["tokens_per_second"],
        tree["together"],
        tree["machine"],
        tuple(Earlier(**facts) for facts in tree.get("earlier", [])),
    )
    contradiction = _contradiction(tree, measurement.as_dict())
    if contradiction:
        raise UserError(f"{path}: {contradiction}", mend=mend)
    return measurement


def _speeds(sides: Mapping[str, Any]) -> dict[str, Speed]:
    speeds = {}
    for side in SIDES:
        facts = sides[side]
        own = {name: facts[name] for name in (*TEXTS, *COUNTS, "model_digest")}
        turns = tuple(tuple(map(float, turn)) for turn in facts["step_seconds"])
        speeds[side] = Speed(**own, turns=turns)
    return speeds


def _problem(tree: Any) -> str | None:
    """What is wrong with the content of a measured.json."""
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        return f"it is no measurement of the format {FORMAT}"
    for name in ("declaration", "time"):
        if not isinstance(tree.get(name), str):
            return f"{name} must be a text"
    if not isinstance(tree.get("together"), bool):
        return "together must be true or false"
    for name in ("machine", "reference", "ratio"):
        if not isinstance(tree.get(name), dict):
            return f"{name} must be a block"
    published = tree["reference"].get("tokens_per_second")
    if published is not None and (not is_number(published) or published <= 0):
        return "reference.tokens_per_second must be above 0, or null"
    problem = _problem_of_earlier(tree.get("earlier", []))
    if problem:
        return problem
    without_kernels = tree.get("without_kernels")
    if without_kernels is None:
        return _problem_of_sides(tree.get("sides"), "sides")
    if not isinstance(without_kernels, dict):
        return "without_kernels must be a block, or null"
    return _problem_of_sides(tree.get("sides"), "sides") or _problem_of_sides(
        without_kernels.get("sides"), "without_kernels.sides"
    )


def _problem_of_earlier(earlier: Any) -> str | None:
    if not isinstance(earlier, list) or len(earlier) > MOST_EARLIER:
        return f"earlier must be a list of {MOST_EARLIER:,} measurements or fewer"
    for number, facts in enumerate(earlier):
        place = f"earlier.{number}"
        if not isinstance(facts, dict) or facts.keys() != {*EARLIER_TEXTS, *RATIOS}:
            return f"{place} must be a block of {', '.join((*EARLIER_TEXTS, *RATIOS))}"
        for name in EARLIER_TEXTS:
            if not isinstance(facts[name], str):
                return f"{place}.{name} must be a text"
        for name in RATIOS:
            if not is_number(facts[name]) or facts[name] <= 0:
                return f"{place}.{name} must be above 0"
    return None


def _problem_of_sides(sides: Any, place: str) -> str | None:
    if not isinstance(sides, dict) or sides.keys() != set(SIDES):
        return f"{place} must be a block of {' and '.join(SIDES)}"
    for side, facts in sides.items():
        problem = _problem_of_speed(facts)
        if problem:
            return f"{place}.{side}{problem}"
    if len({len(facts["step_seconds"]) for facts in sides.values()}) > 1:
        return f"{place}: one side has more turns than the other"
    return None


def _problem_of_speed(facts: Any) -> str | None:
    if not isinstance(facts, dict):
        return " must be a block"
    for name in TEXTS:
        if not isinstance(facts.get(name), str):
            return f".{name} must be a text"
    for name in COUNTS:
        if type(facts.get(name)) is not int or not is_number(facts[name]) or facts[name] < 1:
            return f".{name} must be a whole number above 0"
    if not isinstance(facts.get("model_digest"), (str, type(None))):
        return ".model_digest must be a text, or null"
    turns = facts.get("step_seconds")
    if not isinstance(turns, list) or not LEAST_TURNS <= len(turns) <= MOST_TURNS:
        return f".step_seconds must be a list of {LEAST_TURNS} turns or more"
    for turn in turns:
        if not isinstance(turn, list) or not turn:
            return ".step_seconds must hold lists of seconds"
        if not all(is_number(seconds) and 1e-6 < seconds < 1e6 for seconds in turn):
            return ".step_seconds must hold seconds, above a millionth"
    return None


def _contradiction(tree: Any, computed: Mapping[str, Any]) -> str | None:
    """Which figure is not what follows from the steps' seconds."""
    paths = ["reference.off", *(f"ratio.{name}" for name in computed["ratio"])]
    paths += [f"sides.{side}.tokens_per_second" for side in SIDES]
    if computed["without_kernels"] is not None:
        paths += [f"without_kernels.ratio.{name}" for name in computed["ratio"]]
    for path in paths:
        figure, value = value_at(tree, path), value_at(computed, path)
        is_absent = figure is None and value is None
        if not is_absent and not _is_same(figure, value):
            return f"{path} is {figure}, and from its steps' seconds follows {value}"
    return None


def _is_same(figure: Any, value: Any) -> bool:
    if not is_number(figure) or value is None:
        return False
    return math.isclose(figure, value, rel_tol=SAME_FIGURE, abs_tol=SAME_FIGURE)

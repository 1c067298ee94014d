"""Which runs are of one method, and what tells methods apart, in words.

A method is all that makes a curve but the seed and the length of training: runs of one method at
several compute classes lie on one law. What is scored is no part of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt.config.identity import (
    ARGUMENTS_OF,
    BATCH_SETTING,
    CHANGES,
    CODE,
    MODEL_FILE,
    MODEL_OPTIONS,
    OPTIMIZER_FILE,
    SCORING,
    differing,
    identity,
    is_code,
)
from gpt.config.shape import PRESET_KEYS
from gpt.errors import Parser, UserError
from gpt.metrics.run import Run

Settings = Mapping[str, Any]

STEPS = "max_train_steps"
SCHEDULE = "scheduler.params."
# lengths of schedules after which the learning rate stays as it is
ENDS = (f"{SCHEDULE}decay_steps", f"{SCHEDULE}total_num_steps")
# what may grow along a ladder: it parts methods only where runs of one length differ in it
GROWING = (
    BATCH_SETTING,
    *ENDS,
    f"{SCHEDULE}warmup_steps",
    f"{SCHEDULE}warmup_num_steps",
    f"{SCHEDULE}cycle_first_step_size",
    f"{SCHEDULE}cycle_second_step_size",
    f"{SCHEDULE}decay_step_size",
    f"{SCHEDULE}lr_range_test_step_size",
)
SCORED = "dataset.scored"
MODEL = "model"
OPTIMIZER = "optimizer.type"
SAME_LENGTH = 1.02  # ratio of training tokens up to which two runs are of one length
SHOWN_SETTINGS = 3  # in a method's name
SHORT_HASH = 7
# settings whose values are hashes
HASHES = ("dataset", "dataset.tokenizer", "dataset.train", SCORED, CODE, *ARGUMENTS_OF)
LABELS = {
    "dataset": "dataset",
    "dataset.train": "training text",
    SCORED: "held-out text",
    CHANGES: "changed",
}


# ---- Code that is the same on purpose


def add_same_code(parser: Parser) -> None:
    """The option of every command that puts runs side by side."""
    parser.add_argument(
        "--same_code",
        nargs="+",
        default=[],
        metavar="HASH",
        help="versions of the code (config.yaml: code.hash, or its beginning) that make the same"
        " curve: their runs are taken for runs of one version",
    )


def same_code(runs: Sequence[Run], beginnings: Sequence[str], notices: list[str]) -> frozenset[str]:
    """The hashes that --same_code names by their beginnings, of which a notice tells. Raises
    UserError where one names no version of the runs, or several."""
    known = sorted({run.code for run in runs if run.code})
    hashes = set()
    for beginning in beginnings:
        versions = [version for version in known if version.startswith(beginning)]
        if len(versions) != 1:
            number = "no version" if not versions else f"{len(versions)} versions"
            raise UserError(
                f"--same_code {beginning} names {number} of the code of these runs",
                mend=f"give some of {', '.join(known)}" if known else "no run tells its code",
            )
        hashes.add(versions[0])
    if beginnings and len(hashes) < 2:
        raise UserError("--same_code names one version", mend="give two at least")
    if hashes:
        names = " and ".join(version[:SHORT_HASH] for version in sorted(hashes))
        notices.append(f"the versions {names} of the code count as one (--same_code)")
    return frozenset(hashes)


def settings_of(run: Run, equal_code: frozenset[str] = frozenset()) -> dict[str, Any]:
    """{path: value} of all that seeds of a run have in common. equal_code: versions of the code
    that count as one, of `same_code`."""
    return identity(run.config, equal_code)


# ---- Methods


def method_keys(settings: Sequence[Settings], tokens: Sequence[int]) -> list[str]:
    """A text for each group of seeds, the same for groups of one method.

    settings: of the groups, of `settings_of`. tokens: that each trains on.
    """
    cores = [_text(_core(group)) for group in settings]
    keys = []
    for index, core in enumerate(cores):
        relatives = [other for other, other_core in enumerate(cores) if other_core == core]
        parting = _parting(
            [_grown(settings[other]) for other in relatives], [tokens[other] for other in relatives]
        )
        grown = _grown(settings[index])
        keys.append(_text([core, {path: grown[path] for path in parting}]))
    return keys


def _core(settings: Settings) -> dict[str, Any]:
    """What makes a method, whatever the length of training. Whether the schedule comes to its end
    with the run is a part of it."""
    beside = (STEPS, *GROWING, *SCORING, SCORED)
    core = {path: value for path, value in settings.items() if path not in beside}
    core |= {path: settings[path] == settings.get(STEPS) for path in ENDS if path in settings}
    return core


def _grown(settings: Settings) -> dict[str, Any]:
    """{path: value} of GROWING; a schedule that ends with the run has no length of its own."""
    grown = {path: settings.get(path) for path in GROWING}
    for path in ENDS:
        if grown[path] == settings.get(STEPS):
            grown[path] = None
    return grown


def _parting(grown: Sequence[Settings], tokens: Sequence[int]) -> list[str]:
    """The settings of GROWING in which groups of one length differ."""
    paths = set()
    for first, tokens_of_first in zip(grown, tokens):
        for second, tokens_of_second in zip(grown, tokens):
            if tokens_of_first <= tokens_of_second <= tokens_of_first * SAME_LENGTH:
                paths |= {path for path in GROWING if first[path] != second[path]}
    return [path for path in GROWING if path in paths]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# ---- In words


def in_words(run: Run, settings: Settings) -> dict[str, Any]:
    """Settings as a reader tells them apart: a shape by its name, the code by one hash, an
    optimizer's file by its name, arguments as one text, a schedule that ends with the run by no
    number."""
    words: dict[str, Any] = {MODEL: run.family}
    if OPTIMIZER_FILE in settings:
        words[OPTIMIZER] = run.config[OPTIMIZER_FILE]["name"]
    for arguments in ARGUMENTS_OF.values():
        values = {path: settings[path] for path in settings if path.startswith(f"{arguments}.")}
        if values:
            words[arguments] = arguments_in_words(values)
    for path, value in settings.items():
        if path.partition(".")[0] in ARGUMENTS_OF.values():
            continue
        if is_code(path):
            words[CODE] = settings.get(CODE, run.code)
        elif path.removeprefix(f"{MODEL}.") not in PRESET_KEYS:
            words[path] = value
    for path in ENDS:
        if path in words and words[path] == settings.get(STEPS):
            del words[path]
    return words


def arguments_in_words(values: Settings) -> str:
    """{"model_options.base": 500, "model_options.qk_norm": True} as base=500 qk_norm."""
    texts = []
    for path in sorted(values):
        name = path.partition(".")[2]
        value = values[path]
        is_word = isinstance(value, str) and value.isidentifier()
        # a text that reads like another value keeps its quotes
        if is_word and value not in ("true", "false", "null"):
            texts.append(f"{name}={value}")
        elif value is True:
            texts.append(name)
        else:
            texts.append(f"{name}={json.dumps(value, ensure_ascii=False)}")
    return " ".join(texts)


def method_names(bases: Sequence[str], words: Sequence[Settings]) -> list[str]:
    """A name for each of several methods, no two alike: its base, and where several methods have
    that base, the settings that tell it from those.

    bases: a method's variant, or the name of its shape. words: of `in_words`.
    """
    names = []
    for base, settings in zip(bases, words):
        relatives = [other for other_base, other in zip(bases, words) if other_base == base]
        paths = telling(relatives)
        parts = [base, *[_part(path, settings[path]) for path in paths if path in settings]]
        names.append(", ".join(parts))
    repeats: dict[str, int] = {}
    for index, name in enumerate(names):
        repeats[name] = repeats.get(name, 0) + 1
        if repeats[name] > 1:
            names[index] = f"{name} ({repeats[name]})"
    return names


def telling(words: Sequence[Settings]) -> list[str]:
    """The settings that tell methods apart: all if they are few, else those that suffice."""
    beside = ("variant", "parameters", STEPS, *SCORING, SCORED)
    paths = _readable([path for path in differing(words) if path not in beside], words)
    if len(paths) <= SHOWN_SETTINGS:
        return paths
    chosen: list[str] = []
    while _kinds(words, chosen) < _kinds(words, paths):
        best = max(paths, key=lambda path: _kinds(words, [*chosen, path]))
        chosen.append(best)
    return [path for path in paths if path in chosen]


def _readable(paths: Sequence[str], words: Sequence[Settings]) -> list[str]:
    """The paths without the hashes of files that are told apart by their names."""
    names = [path for path in paths if path not in ARGUMENTS_OF]
    return names if _kinds(words, names) == _kinds(words, paths) else list(paths)


def _kinds(words: Sequence[Settings], paths: Sequence[str]) -> int:
    """How many kinds of methods some settings tell apart."""
    return len({_text([settings.get(path) for path in paths]) for settings in words})


# settings that a table shows in columns of their own, or that do not bear on a curve
IN_TABLES = (MODEL, "variant", "parameters", STEPS, BATCH_SETTING, SCORED)
# what a reader asks for first
FIRST = (CHANGES, CODE, MODEL_FILE, MODEL_OPTIONS, "dataset", "optimizer", "scheduler", "precision")


def table_settings(words: Sequence[Settings]) -> list[str]:
    """The settings in which the rows of a table differ, and changes on resuming in any case, the
    weightiest first."""
    beside = (*IN_TABLES, *(path for path in SCORING if path != "last_n"))
    paths = [path for path in _readable(differing(words), words) if path not in beside]
    paths = [path for path in paths if not _goes_with_a_type(path, words)]
    if any(CHANGES in settings for settings in words) and CHANGES not in paths:
        paths.append(CHANGES)
    return sorted(paths, key=lambda path: _weight(path, words))


def _goes_with_a_type(path: str, words: Sequence[Settings]) -> bool:
    """Whether a parameter of an optimizer or a schedule is the same for all of the types that have
    it, and no other type has it."""
    block, _, name = path.partition(".params.")
    if not name:
        return False
    kind = f"{block}.type"
    having = [settings for settings in words if path in settings]
    types = {settings.get(kind) for settings in having}
    lacking = {settings.get(kind) for settings in words if path not in settings}
    return not types & lacking and _kinds(having, [path]) == 1


def _weight(path: str, words: Sequence[Settings]) -> tuple:
    """By its block, in which types come first, and last what only some of the rows have."""
    block = path.partition(".")[0]
    place = FIRST.index(block) if block in FIRST else len(FIRST)
    is_everywhere = all(path in settings for settings in words)
    return place, not path.endswith(".type"), not is_everywhere


def _part(path: str, value: Any) -> str:
    speaks_for_itself = path in (MODEL, MODEL_OPTIONS)
    return str(value) if speaks_for_itself else f"{label(path)} {shown(path, value)}"


def label(path: str) -> str:
    """A setting's name as its user knows it."""
    if path in LABELS:
        return LABELS[path]
    parent, _, name = path.rpartition(".")
    return parent if name == "type" else name


def labels(paths: Iterable[str]) -> dict[str, str]:
    """{path: label}, with the whole path where two have one label."""
    paths = list(paths)
    names = [label(path) for path in paths]
    return {path: path if names.count(name) > 1 else name for path, name in zip(paths, names)}


def shown(path: str, value: Any) -> str:
    """A setting's value for a person."""
    if value is None:
        return "-"
    if path in HASHES:
        return str(value)[:SHORT_HASH]
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return str(value)


def code_parts(settings: Sequence[Settings]) -> list[str]:
    """The parts of the code in which groups differ, such as "model"."""
    paths = [path for path in differing(settings) if path.startswith(f"{CODE}.")]
    told = [path for path in paths if sum(path in group for group in settings) > 1]
    unlike = []
    for path in told:
        if len({group[path] for group in settings if path in group}) > 1:
            unlike.append(path.partition(".")[2])
    return unlike

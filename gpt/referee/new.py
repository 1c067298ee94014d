"""A new entry's folder."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt.checkpoint.code_files import write_code
from gpt.config.draft import Draft
from gpt.config.options import OPTION_KEYS, SAMPLE
from gpt.config.own_code import OwnCode, read_own_code, variant_called
from gpt.config.reference import FLOPS, MODEL, PRECISION, SPEED
from gpt.config.resolve import override, read
from gpt.config.run_config import Config
from gpt.config.run_file import read_file
from gpt.errors import UserError
from gpt.files import built_aside, require_new_folder
from gpt.referee.entry import (
    BASELINE,
    CONTENDER,
    OWN_FILES,
    Claim,
    Entry,
    Tuning,
    problem_of,
)
from gpt.referee.fairness import require_trainable
from gpt.training import study
from gpt.training.run_data import RunData
from gpt.training.sweep import CLASSES, class_file

# of a run's JSON, what the referee sets for each run
OF_THE_REFEREE = ("gpt.run_dir", "gpt.seed")
# {what a problem of the new entry begins with: what to do about it}
MENDS = {
    "name": "give --name",
    "claim.class": "give --class",
    "claim.baseline": "rename the JSON of --from",
    "seeds": "give each of --seeds once",
    "a seed": "give whole numbers from 0 on",
    "the seed": "give another --tuning_seed",
    "tuning.factors": "give --factors above 0, each once, or none",
}
OF_A_THROUGHPUT = (SPEED, FLOPS, MODEL, PRECISION)


def create(args: argparse.Namespace, train_args: Sequence[str]) -> Entry:
    """Make the folder. train_args: options of train.py, which the contender gets. Raises UserError,
    and writes nothing, where the folder is there, or a side is mistaken."""
    file = class_file(args.source)
    if not file.is_file():
        classes = ", ".join(sorted(path.stem for path in CLASSES.glob("*.json")))
        raise UserError(
            f"--from {args.source}: there is no such file, and no class of that name",
            mend=f"give a run's JSON, or one of {classes}",
        )
    overrides = _options_of_contender(args, train_args)
    require_new_folder(args.entry)
    trees = {BASELINE: _tree(file, {}), CONTENDER: _tree(file, overrides)}
    entry = _entry(args, file.stem)
    if not overrides:
        print("notice: the contender is the baseline under another name, a null entry")
    _set_evaluations(trees)
    codes = _take_code(trees)
    with built_aside(args.entry) as folder:
        unborn = replace(entry, path=folder)
        unborn.write()
        for side, tree in trees.items():
            text = json.dumps(tree, indent=2) + "\n"
            unborn.config_file(side).write_text(text, encoding="utf-8")
        write_code(folder, codes)
    return entry


def _options_of_contender(args: argparse.Namespace, train_args: Sequence[str]) -> dict[str, Any]:
    overrides = study.options_of_method(
        train_args,
        "command line",
        "seeds are given by --seeds, the length by a JSON of your own for --from; each run begins"
        " with drawn weights, in the entry's folder",
        tool_options=vars(args),
    )
    for setting in OWN_FILES:
        name = getattr(args, setting)
        if name is not None:
            overrides[f"gpt.{setting}"] = name
    return overrides


def _entry(args: argparse.Namespace, class_name: str) -> Entry:
    """As the command line declares it. Raises UserError."""
    entry = Entry(
        path=args.entry,
        name=args.name or args.entry.resolve().name,
        author=args.author,
        claim=Claim(args.class_name or class_name, class_name, args.over, args.direction),
        seeds=tuple(args.seeds),
        tuning=Tuning(tuple(args.factors), args.tuning_seed),
    )
    problem = problem_of(entry.as_dict())
    if problem:
        mends = [mend for beginning, mend in MENDS.items() if problem.startswith(beginning)]
        raise UserError(f"command line: {problem}", mends[0] if mends else "see --help")
    return entry


def _tree(file: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A run's JSON with options laid over it, and the dataset's place, wherever the entry is used
    from, and its vocabulary size; without its folder and seed, and without a throughput that is
    another model's. Raises UserError with all mistakes of such a run."""
    config = _resolved(file, overrides)
    tree, name, lines = read_file(file, overrides)
    draft = Draft(tree, name, 1, file.name, lines)
    override(draft, dict(overrides))
    for sentence in draft.notices:
        print(f"notice: {sentence}")
    for path in OF_THE_REFEREE:
        draft.remove(path)
    if config.options.tokens_per_second is None:
        for path in OF_A_THROUGHPUT:
            draft.remove(path)
    draft.put("gpt.vocab_size", config.model.vocab_size, "the dataset")
    if config.options.data_root != SAMPLE:  # which is built wherever it is absent
        draft.put("gpt.data_root", str(Path(config.options.data_root).absolute()), "the dataset")
    return draft.tree


def _resolved(file: Path, overrides: Mapping[str, Any]) -> Config:
    draft = read(file, 1, dict(overrides))
    draft.add(RunData(draft, may_be_absent=False).mistakes())
    config = draft.settle()
    require_trainable(config)
    return config


def _set_evaluations(trees: Mapping[str, dict[str, Any]]) -> None:
    """Have both sides score the whole split at the end, and a part of it before training."""
    blocks = [tree["gpt"] for tree in trees.values()]
    if not all(block.get("final_eval") for block in blocks):
        print("notice: final_eval is set to true for both: the whole split counts")
    usual = OPTION_KEYS["eval_every"].default
    is_off = any(block.get("eval_every", usual) <= 0 for block in blocks)
    if is_off:
        print(
            f"notice: eval_every is set to {usual} for both: what is scored before training tells"
            " whether both begin with the same weights"
        )
    for block in blocks:
        block["final_eval"] = True
        if is_off:
            block["eval_every"] = usual


def _take_code(trees: Mapping[str, dict[str, Any]]) -> list[OwnCode]:
    """The files of the user's own that the sides name, which trees name from now on as the entry's
    folder has them. Raises UserError where two of them have one name."""
    codes = []
    texts: dict[str, bytes] = {}
    for tree in trees.values():
        for setting in OWN_FILES:
            name = tree["gpt"].get(setting)
            if name is None or variant_called(name) is not None:
                continue
            code = read_own_code(name, setting)
            for file, text in code.files.items():
                if texts.setdefault(file, text) != text:
                    raise UserError(
                        f"{code.path.with_name(file)}: the baseline has another file of that name",
                        mend="rename one: both lie in the entry's folder",
                    )
            tree["gpt"][setting] = code.name
            codes.append(code)
    return codes

"""README.md of a pack: what it is, and how anyone can check it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.config.own_code import TRUST
from gpt.escaping import markdown_cell
from gpt.referee.entry import SIDES, Entry
from gpt.referee.judgement import Judgement
from gpt.wording import listed, plural

PRIVATE = (
    "the names of hosts, the command lines and the paths of the machines that trained are in"
    " config.yaml, metrics.jsonl and pack.json"
)


def text(entry: Entry, verdict: Judgement, trainer: Mapping[str, Any], with_weights: bool) -> str:
    """with_weights: whether the pack holds them."""
    return "\n\n".join(
        [
            f"# {markdown_cell(entry.name)}",
            markdown_cell(verdict.sentence),
            _facts(entry, verdict),
            "## Verify",
            _how_to_verify(entry, trainer),
            "## Files",
            _files(entry, with_weights),
            f"{PRIVATE[0].upper()}{PRIVATE[1:]}.\n",
        ]
    )


def _facts(entry: Entry, verdict: Judgement) -> str:
    seeds = listed(list(entry.seeds), shown=20)
    lines = [
        f"- class {markdown_cell(entry.claim.class_name)}, against"
        f" {markdown_cell(entry.claim.baseline)}, at equal {entry.claim.over}",
        f"- claimed: {entry.claim.direction}",
        f"- seeds {seeds}, declared before training by the record of its starts",
    ]
    if entry.tuning.trials:
        lines.append(f"- tuned by {plural(entry.tuning.trials, 'trial')} of each side")
    lines += [f"- {markdown_cell(notice)}" for notice in verdict.notices]
    if entry.author:
        lines.append(f"- by {markdown_cell(entry.author)}")
    lines.append(f"- packed on {time.strftime('%Y-%m-%d', time.gmtime())}")
    return "\n".join(lines)


def _how_to_verify(entry: Entry, trainer: Mapping[str, Any]) -> str:
    options = "--replay 50"
    own_files = own_code(entry)
    if own_files:
        options += f" {TRUST}"
    checkout = "a checkout of the trainer"
    if trainer["commit"]:
        checkout += f" at the commit {trainer['commit']}"
    lines = [
        f"In {checkout}, with the dataset that the runs name in config.yaml:",
        "",
        "```sh",
        f"python tools/referee.py verify PACK --data_root DATASET {options}",
        "```",
    ]
    if own_files:
        names = ", ".join(map(markdown_cell, own_files))
        lines += ["", f"Read {names} before: {TRUST} has such code run."]
    return "\n".join(lines)


def own_code(entry: Entry) -> list[str]:
    """The names of an entry's own files of code."""
    names = (Path(path).name for side in SIDES for path in entry.overrides(side).values())
    return sorted(set(names))


def _files(entry: Entry, with_weights: bool) -> str:
    weights = "weights" if with_weights else "facts about the weights, which are not in the pack"
    rows = {
        "entry.json": "what was claimed, the seeds and the tuning, before training",
        "baseline.json, contender.json": "both configurations",
        "starts.jsonl": "every start of a run, each line chained to the one before it",
        "runs/": f"of each run its config.yaml, its log, its {weights}, and its evaluation of the"
        " whole split, document by document",
        "judgement.json": "what follows from the evaluations",
        "pack.json": "sums, hashes and environment of each run, and the sha256 of every file",
    }
    if entry.measured.exists():
        rows["measured.json"] = "both throughputs on one device"
    if entry.tuning.trials:
        rows["tuning/"] = "the trials by which the learning rates were chosen"
    if entry.ladder.is_dir():
        rows["ladder/"] = "the baseline at other compute"
    return "\n".join(f"- `{name}`: {purpose}" for name, purpose in rows.items())

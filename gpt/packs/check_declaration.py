"""Checks of what was declared before training, and of what was started since."""

from collections import Counter
from pathlib import Path

from gpt.errors import UserError
from gpt.files import hash_file
from gpt.metrics import events
from gpt.packs import seal
from gpt.packs.evidence import Declared, Evidence, of_each
from gpt.referee import starts
from gpt.referee.entry import Entry
from gpt.wording import listed, plural


def seal_is_whole(evidence: Evidence, problems: list[str]) -> str:
    """Every file is as it was when the pack was made, and there is no other."""
    problems += seal.problems(evidence.pack)
    sha256 = hash_file(evidence.path / seal.FILE)["sha256"]
    return f"{plural(len(evidence.pack.files), 'file')} as pack.json of sha256 {sha256} has them"


def is_as_declared(evidence: Evidence, problems: list[str]) -> str:
    """What was declared is what every start was made under."""
    entry = evidence.entry
    record = starts.read(entry)
    if not record:
        problems.append(f"{entry.starts} tells of no start: nobody knows when this was declared")
    try:
        starts.require_unchanged(entry, record)
    except UserError as change:
        problems.append(change.what)
    return f"declared before the first of {plural(len(record), 'start')}: {_in_words(entry)}"


def _in_words(entry: Entry) -> str:
    words = f"seeds {listed(list(entry.seeds), shown=10)}"
    if entry.tuning.trials:
        words += f", and {plural(entry.tuning.trials, 'trial')} of tuning for each side"
    return words


def all_seeds_are_there(evidence: Evidence, problems: list[str]) -> str:
    """Every declared run is in the pack, and no other."""
    declared = {run.name: run for run in evidence.declared}
    problems += [
        f"{evidence.folder(name)} is missing: the entry declares it"
        for name in declared
        if not evidence.is_there(name)
    ]
    for path in _entries_of(evidence.entry.runs):
        if path.name not in declared:
            problems.append(f"{path} is no run that the entry declares")
    sealed = evidence.pack.runs
    for name, run in declared.items():
        if name not in sealed:
            problems.append(f"pack.json tells nothing of {name}, which the entry declares")
        elif (sealed[name].side, sealed[name].seed) != (run.side, run.seed):
            problems.append(f"pack.json tells another side or seed of {name}")
    for name in sealed:
        if name not in declared:
            problems.append(f"pack.json tells of {name}, which the entry does not declare")

    def look(run: Declared) -> list[str]:
        seed = evidence.options(run.name).get("seed")
        if seed == run.seed:
            return []
        return [f"{evidence.folder(run.name)} was trained with the seed {seed}, says its config"]

    of_each(evidence.present, problems, look)
    return f"{plural(len(evidence.entry.seeds), 'seed')} of both sides, and no other"


def _entries_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def every_start_is_told(evidence: Evidence, problems: list[str]) -> str:
    """starts.jsonl tells of every start that the runs' own metrics tell of, and of no run that is
    not in the pack."""
    entry = evidence.entry
    record = starts.read(entry)
    begun = Counter(start.run for start in record)
    for place in begun:
        if not (entry.path / place).is_dir():
            problems.append(f"{entry.path / place} is missing, and {entry.starts} tells of it")

    def look(run: Declared) -> list[str]:
        place = evidence.folder(run.name).relative_to(entry.path).as_posix()
        seen = len(evidence.run(run.name).events.get(events.START, []))
        if begun[place] and seen <= begun[place]:
            return []
        return [
            f"{entry.starts} tells of {plural(begun[place], 'start')} of {place}, and the run's own"
            f" metrics of {seen}"
        ]

    of_each([*evidence.present, *evidence.trials], problems, look)
    words = f"{plural(len(record), 'start')} of {plural(len(begun), 'run')}"
    failed = [start.run for start in record if start.exit_code]
    abandoned = [start.run for start in record if start.is_abandoned]
    for what, runs in (("failed", failed), ("abandoned", abandoned)):
        if runs:
            words += f", {len(runs)} {what} ({listed(sorted(set(runs)), shown=3)})"
    return words

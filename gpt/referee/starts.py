"""starts.jsonl: every start of an entry's runs, each line chained to the one before it.

    {"previous": sha256 of the line before, without its newline, 64 zeros in the first line,
     "time": seconds since 1970, "event": "start" or "end", "run": "runs/baseline-seed0",
     "side": "baseline", "seed": 0, "declaration": of the entry, "step": where the run stands,
     of a start "files": {name: sha256} of what is declared, and of measured.json,
     of an end "exit_code": of what trained, "status": what became of the run}

An end stands right behind its start. A start without one was abandoned: what ran it was killed.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt.config.keys import LARGEST, block_of
from gpt.errors import UserError, in_brief
from gpt.files import hash_file, open_own, sync
from gpt.parsing import parse_json
from gpt.quantities import is_number
from gpt.reading import read_bytes
from gpt.referee.entry import FILE, SIDES, Entry
from gpt.wording import plural

BEGINNING = 64 * "0"  # the hash before the first line
START = "start"
END = "end"
STATUSES = ("finished", "unfinished", "waiting", "failed", "diverged")
COMMON = ("previous", "time", "event", "run", "side", "seed", "declaration", "step")
FIELDS = {START: {*COMMON, "files"}, END: {*COMMON, "exit_code", "status"}}
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Start:
    """A start of a run, and its end as far as there was one."""

    run: str  # its folder below the entry
    side: str
    seed: int
    time: float  # seconds since 1970
    step: int  # that it went on from
    declaration: str
    files: Mapping[str, str]  # {name: sha256} of what was declared and measured
    last_step: int | None = None
    exit_code: int | None = None
    status: str | None = None

    @property
    def is_abandoned(self) -> bool:
        return self.status is None


def begin(entry: Entry, run: str, side: str, seed: int, step: int) -> None:
    """Note that a run is about to start. Raises UserError as `read` does."""
    _append(entry, START, run, side, seed, step, {"files": files_of(entry)})


def files_of(entry: Entry) -> dict[str, str]:
    """{name: sha256} of what must not change once training has begun."""
    files = dict(entry.declared_files)
    if entry.measured.exists():
        files[entry.measured.name] = str(hash_file(entry.measured)["sha256"])
    return files


def end(
    entry: Entry, run: str, side: str, seed: int, step: int, exit_code: int, status: str
) -> None:
    """Note what became of the start that was noted last. Raises UserError as `read` does."""
    _append(entry, END, run, side, seed, step, {"exit_code": exit_code, "status": status})


def _append(
    entry: Entry,
    event: str,
    run: str,
    side: str,
    seed: int,
    step: int,
    more: Mapping[str, Any],
) -> None:
    read(entry)  # nothing is chained to what is broken
    lines = _lines(entry.starts)
    fields = {
        "previous": _hash(lines[-1]) if lines else BEGINNING,
        "time": time.time(),
        "event": event,
        "run": run,
        "side": side,
        "seed": seed,
        "declaration": entry.declaration,
        "step": step,
        **more,
    }
    line = json.dumps(fields).encode() + b"\n"
    descriptor = open_own(entry.starts, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(entry.starts)) from error
        if written < len(line):  # the disk is full
            os.ftruncate(descriptor, size)
            raise UserError(f"{entry.starts} does not fit on its disk", mend="make room")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync(entry.path)


def read(entry: Entry) -> list[Start]:
    """All starts on record, oldest first; none where there is no file. Raises UserError where a
    line is not what was written, or not of a run that the entry declares."""
    declared = declared_runs(entry)
    starts: list[Start] = []
    previous = BEGINNING
    is_open = False
    for number, line in enumerate(_lines(entry.starts), 1):
        fields = _fields(line)
        problem = _problem(fields, declared)
        if problem is None and fields["previous"] != previous:
            problem = "is not chained to the line before it"
        if problem is None and fields["event"] == END:
            is_own = is_open and fields["run"] == starts[-1].run
            if not is_own or fields["declaration"] != starts[-1].declaration:
                problem = "ends a run that the line before it did not start"
        if problem:
            raise UserError(
                f"{entry.starts}:{number} {problem}: the record of starts was changed",
                mend="bring the file back as it was written",
            )
        previous = _hash(line)
        is_open = fields["event"] == START
        if is_open:
            names = ("run", "side", "seed", "time", "step", "declaration", "files")
            starts.append(Start(**{name: fields[name] for name in names}))
        else:
            starts[-1] = replace(
                starts[-1],
                last_step=fields["step"],
                exit_code=fields["exit_code"],
                status=fields["status"],
            )
    return starts


def require_unchanged(entry: Entry, starts: list[Start]) -> None:
    """Raise UserError where something that was declared or measured is another than when training
    began."""
    files = files_of(entry)
    for start in starts:
        names = [*start.files, *(name for name in files if name not in start.files)]
        changed = [name for name in names if start.files.get(name) != files.get(name)]
        if not changed and start.declaration == entry.declaration:
            continue
        raise UserError(
            f"{entry.path}: {', '.join(changed) or 'the declaration'} changed since"
            f" {start.run} was started, and what is declared stands before training",
            mend="put it back, or move starts.jsonl, tuning and runs away to begin anew",
        )


def require_record(entry: Entry) -> list[str]:
    """Sentences on the starts of an entry's runs. Raises UserError where the record and the folder
    do not tell the same, or where what is declared changed since training began."""
    record = read(entry)
    require_unchanged(entry, record)
    started = {start.run for start in record}
    declared = declared_runs(entry)
    folders = sorted(path for path in entry.runs.glob("*") if path.is_dir())
    for folder in folders:
        run = f"{entry.runs.name}/{folder.name}"
        if run not in declared:
            raise UserError(
                f"{folder} is of no seed that {entry.path / FILE} declares",
                mend="a run more is no verdict: move it out of the entry",
            )
        if run not in started:
            raise UserError(
                f"{entry.starts} has no start of {run}, so nothing tells that its seed was declared"
                " before training",
                mend="train it with `python tools/referee.py run`",
            )
    if not record:
        return []
    abandoned = sum(start.is_abandoned for start in record)
    failed = sum(start.status == "failed" for start in record)
    facts = f"{plural(len(record), 'start')} of {plural(len(started), 'run')}"
    return [f"{facts}: {failed} failed, {abandoned} abandoned"]


def _lines(path: Path) -> list[bytes]:
    """Without their newlines."""
    try:
        content = read_bytes(path, MOST_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(in_brief(error, path), mend="bring it back as it was written") from error
    if content and not content.endswith(b"\n"):
        raise UserError(
            f"{path} ends in the middle of a line", mend="remove that half line, or bring it back"
        )
    return content.split(b"\n")[:-1]


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _fields(line: bytes) -> Any:
    try:
        return parse_json(line, partial(block_of, place="a line"))
    except (ValueError, UserError):
        return None


def _problem(fields: Any, declared: Mapping[str, tuple[str, int]]) -> str | None:
    """Why a line is none of starts.jsonl, whatever stands before it. declared: of
    `declared_runs`."""
    if not isinstance(fields, dict) or fields.get("event") not in FIELDS:
        return "is neither a start nor an end"
    if fields.keys() != FIELDS[fields["event"]]:
        return "has other fields than such a line"
    for name in ("seed", "step"):
        if type(fields[name]) is not int or not 0 <= fields[name] <= LARGEST:
            return f"has a {name} that is no whole number"
    is_text = all(isinstance(fields[name], str) for name in ("previous", "run", "declaration"))
    if not is_text or not is_number(fields["time"]) or fields["side"] not in SIDES:
        return "has a field of another type"
    if fields["run"] not in declared:
        return f"is of {fields['run']}, which the entry does not declare"
    if declared[fields["run"]] != (fields["side"], fields["seed"]):
        return f"has another side or seed than {fields['run']}"
    if fields["event"] == START:
        files = fields["files"]
        is_right = isinstance(files, dict) and all(
            isinstance(sha256, str) for sha256 in files.values()
        )
        return None if is_right else "has a field of another type"
    is_right = type(fields["exit_code"]) is int and fields["status"] in STATUSES
    return None if is_right else "has a field of another type"


def declared_runs(entry: Entry) -> dict[str, tuple[str, int]]:
    """{folder below the entry: (side, seed)} of all runs that an entry declares."""
    runs = {
        f"{entry.tuning_runs.name}/{name}": (side, entry.tuning.seed)
        for name, (side, _) in entry.trial_names.items()
    }
    for seed in entry.seeds:
        for side in SIDES:
            runs[f"{entry.runs.name}/{entry.run_name(side, seed)}"] = (side, seed)
    return runs

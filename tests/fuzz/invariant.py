"""What holds of every command, whatever it is handed."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from .server import GIB, Command, Outcome
from .workspace import Entry, changed, may_change

# beyond what the server holds itself
MOST_MEMORY = 2 * GIB
# What is none of the command's own: the report of what nobody foresaw, which is a failure already,
# torch's cache, and what the package wandb keeps.
ALLOWED = re.compile(r"tmp/(gpt-error-|torchinductor_)|(tmp|home)/.*wandb|home/\.cache$")
CODES = (0, 1, 2)
# what moves a terminal's cursor, changes its settings, or turns the direction of text
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
ERROR = re.compile(r"^(\[rank \d+\] )?error: ", re.MULTILINE)
# stands in hostile values, for pages and tables to show as text
MARKUP = "<img src=x onerror=fuzz()>"
FORMULA = "=1+fuzz()"


class Failure(NamedTuple):
    """A broken rule: its name, and what broke it."""

    rule: str
    what: str


def failures(
    command: Command,
    outcome: Outcome,
    before: dict[str, Entry],
    after: dict[str, Entry],
    folder: Path,
    own_peak: int,
) -> list[Failure]:
    """The rules that a command broke. own_peak: bytes of memory that the server holds itself."""
    return [
        *_of_the_end(outcome, own_peak),
        *_of_what_was_printed(outcome),
        *_of_files(command, before, after),
        *_of_contents(before, after, folder),
    ]


def _of_the_end(outcome: Outcome, own_peak: int) -> list[Failure]:
    broken = []
    if outcome.timed_out:
        broken.append(Failure("hang", f"no end within {outcome.seconds:.0f} s"))
    elif outcome.code < 0:
        broken.append(Failure("signal", f"ended by signal {-outcome.code}"))
    elif outcome.code not in CODES:
        broken.append(Failure("exit code", str(outcome.code)))
    if outcome.peak > own_peak + MOST_MEMORY:
        broken.append(Failure("memory", f"{outcome.peak / GIB:.1f} GiB"))
    elif b"error: there is not enough memory" in outcome.stderr:
        broken.append(Failure("memory", "it ran out"))
    if outcome.left_children:
        broken.append(Failure("process", "processes of it are left"))
    return broken


def _of_what_was_printed(outcome: Outcome) -> list[Failure]:
    broken = []
    try:
        stdout, stderr = outcome.stdout.decode(), outcome.stderr.decode()
    except UnicodeDecodeError as error:
        return [Failure("control", f"bytes that are not UTF-8: {error}")]
    for name, text in (("stdout", stdout), ("stderr", stderr)):
        control = CONTROL.search(text)
        if control:
            broken.append(Failure("control", f"{control[0]!r} in {name}"))
        if "Traceback (most recent call last)" in text:
            broken.append(Failure("traceback", text.strip().rpartition("\n")[2][:300]))
        if re.search(r"^\S+\.py:\d+: \w*Warning: ", text, re.MULTILINE):
            broken.append(Failure("warning", text[-300:]))
    if "error: unforeseen at " in stderr:
        broken.append(Failure("unforeseen", stderr.partition("unforeseen at ")[2][:300]))
    sentences = len(ERROR.findall(stderr))
    if sentences > 1:
        broken.append(Failure("sentences", f"{sentences} errors are told"))
    # what looks at something and finds it bad says so on its standard output
    if outcome.code in (1, 2) and not sentences and not stdout.strip():
        broken.append(Failure("sentences", "it failed without a word"))
    if outcome.code == 0 and sentences:
        broken.append(Failure("sentences", "an error is told, and the exit code is 0"))
    return broken


def _of_files(command: Command, before: dict[str, Entry], after: dict[str, Entry]) -> list[Failure]:
    broken = []
    for path in changed(before, after):
        name = os.path.basename(path)
        if ALLOWED.match(path):
            continue
        if path.startswith("tmp" + os.sep):
            broken.append(Failure("left file", path))
        elif not may_change(path, command.changes):
            broken.append(Failure("outside", path))
        elif path not in before and name.startswith(".") and not _is_named(name, command):
            broken.append(Failure("left file", path))
    return broken


def _is_named(name: str, command: Command) -> bool:
    """Whether a hidden file is the folder's lock, or has a name that the user gave."""
    return name == ".lock" or any(name in word for word in command.argv)


def _of_contents(before: dict[str, Entry], after: dict[str, Entry], folder: Path) -> list[Failure]:
    """Files that the command wrote, for people and for programs."""
    broken = []
    for path in changed(before, after):
        if path not in after or after[path].kind != "-" or not os.access(folder / path, os.R_OK):
            continue
        ending = Path(path).suffix
        if ending not in (".html", ".md", ".csv", ".json"):
            continue
        text = (folder / path).read_text(encoding="utf-8", errors="replace")
        # in Markdown a backslash makes text of it
        if ending in (".html", ".md") and MARKUP in text.replace("\\<", ""):
            broken.append(Failure("markup", path))
        if ending == ".csv" and re.search(f'(^|,)"?{re.escape(FORMULA)}', text, re.MULTILINE):
            broken.append(Failure("formula", path))
        if ending == ".json" and not _is_json(text):
            broken.append(Failure("json", path))
    return broken


def _is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True

"""The two files that DeepSpeed's launcher reads for many hosts: the hostfile, and .deepspeed_env,
which it exports there."""

import re
from pathlib import Path

from gpt.errors import UserError, in_brief
from gpt.reading import read_text
from gpt.wording import plural

# a line for every host that there is
MOST_BYTES = 1 << 20
MOST_MISTAKES = 8
LINE = re.compile(r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:@-]*)\s+slots=(?P<slots>[1-9]\d{0,5})(\s|$)")
VARIABLE = re.compile(r"[A-Za-z_]\w*")


def read_hostfile(path: Path | str) -> dict[str, int]:
    """{host: ranks on it} in the file's order. Raises UserError with all that is wrong in it.

    A line is "node1 slots=8"; blank lines and those that begin with # do not count.
    """
    path = Path(path)
    hosts: dict[str, int] = {}
    mistakes = []
    text = _read(path, "the hostfile ", mend='write one line per host, such as "node1 slots=8"')
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.match(line)
        if match is None:
            mistakes.append(
                f"line {number} is {line[:80]!r}, not a host's name and its number of ranks, such"
                ' as "node1 slots=8"'
            )
        elif match["host"] in hosts:
            mistakes.append(
                f"line {number} names {match['host']} again: give each host one line with all its"
                " slots"
            )
        else:
            hosts[match["host"]] = int(match["slots"])
    if mistakes:
        beside = len(mistakes) - MOST_MISTAKES
        if beside > 0:
            mistakes[MOST_MISTAKES:] = [f"and {plural(beside, 'line')} more"]
        raise UserError(f"the hostfile {path}: {'; '.join(mistakes)}")
    if not hosts:
        raise UserError(f"the hostfile {path}: it names no host")
    return hosts


def read_environment(path: Path) -> dict[str, str]:
    """{name: value} of a .deepspeed_env; empty where there is no such file. Raises UserError where
    DeepSpeed would raise."""
    if not path.is_file():  # where DeepSpeed looks for nothing either
        return {}
    variables = {}
    text = _read(path, mend="write NAME=VALUE lines into it, or delete it")
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or not VARIABLE.fullmatch(name):
            raise UserError(
                f"{path}: line {number} is {line[:80]!r}, and DeepSpeed's launcher takes nothing"
                " but NAME=VALUE, not even a blank line",
                mend="mend or delete that line",
            )
        variables[name] = value.strip()
    return variables


def _read(path: Path, what: str = "", mend: str | None = None) -> str:
    try:
        return read_text(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{what}{path} does not exist", mend) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}{path} is not UTF-8 text", mend) from error
    except OSError as error:
        raise UserError(f"{what}{in_brief(error)}", mend) from error

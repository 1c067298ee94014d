"""The two files that DeepSpeed's launcher reads for many hosts: the hostfile, and .deepspeed_env,
which it exports there."""

import re
from pathlib import Path

from gpt.errors import UserError

LINE = re.compile(r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:@-]*)\s+slots=(?P<slots>[1-9]\d{0,5})(\s|$)")
VARIABLE = re.compile(r"[A-Za-z_]\w*")


def read_hostfile(path: Path | str) -> dict[str, int]:
    """{host: ranks on it} in the file's order. Raises UserError with all that is wrong in it.

    A line is "node1 slots=8"; blank lines and those that begin with # do not count.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"the hostfile {path} does not exist",
            mend='write one line per host, such as "node1 slots=8"',
        )
    hosts: dict[str, int] = {}
    mistakes = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.match(line)
        if match is None:
            mistakes.append(
                f"line {number} is {line!r}, not a host's name and its number of ranks, such as"
                ' "node1 slots=8"'
            )
        elif match["host"] in hosts:
            mistakes.append(
                f"line {number} names {match['host']} again: give each host one line with all its"
                " slots"
            )
        else:
            hosts[match["host"]] = int(match["slots"])
    if mistakes:
        raise UserError(f"the hostfile {path}: {'; '.join(mistakes)}")
    if not hosts:
        raise UserError(f"the hostfile {path}: it names no host")
    return hosts


def read_environment(path: Path) -> dict[str, str]:
    """{name: value} of a .deepspeed_env; empty where there is no such file. Raises UserError where
    DeepSpeed would raise."""
    if not path.is_file():
        return {}
    variables = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or not VARIABLE.fullmatch(name):
            raise UserError(
                f"{path}: line {number} is {line!r}, and DeepSpeed's launcher takes nothing but"
                " NAME=VALUE, not even a blank line",
                mend="mend or delete that line",
            )
        variables[name] = value.strip()
    return variables

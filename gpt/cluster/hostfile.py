"""The two files that DeepSpeed's launcher reads for many hosts: the hostfile, and .deepspeed_env,
which it exports there."""

import re
from pathlib import Path

from gpt.errors import UserError

LINE = re.compile(r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:@-]*)\s+slots=(?P<slots>[1-9]\d{0,5})(\s|$)")


def read_hostfile(path) -> dict:
    """{host: ranks on it} in the file's order. Raises UserError with all that is wrong in it.

    A line is "node1 slots=8"; blank lines and those that begin with # do not count.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f'the hostfile {path} does not exist: write one line per host, such as "node1 slots=8"'
        )
    hosts, wrong = {}, []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = LINE.match(line)
        if found is None:
            wrong.append(
                f"line {number} is {line!r}, not a host's name and its number of ranks, such as"
                ' "node1 slots=8"'
            )
        elif found["host"] in hosts:
            wrong.append(
                f"line {number} names {found['host']} again: give each host one line with all its"
                " slots"
            )
        else:
            hosts[found["host"]] = int(found["slots"])
    if wrong or not hosts:
        raise UserError(f"the hostfile {path}: {'; '.join(wrong) or 'it names no host'}")
    return hosts


def read_environment(path) -> dict:
    """{name: value} of a .deepspeed_env; empty where there is no such file. Raises UserError where
    DeepSpeed would raise."""
    path, found = Path(path), {}
    for number, line in enumerate(
        path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), 1
    ):
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name.strip()):
            raise UserError(
                f"{path}: line {number} is {line!r}, and DeepSpeed's launcher takes nothing but"
                " NAME=VALUE, not even a blank line: mend or delete that line"
            )
        found[name.strip()] = value.strip()
    return found

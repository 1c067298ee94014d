"""Write ds_configs/README.md, the reference of every key of a run's JSON, from the schema.

python tools/config_reference.py            writes it
python tools/config_reference.py --check    exit code 1 where it is not up to date
"""

import html
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from gpt.errors import Parser, command, explain_imports

explain_imports()

from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.keys import ARGUMENTS, COUNTS, PAIR, REQUIRED, TEXTS, Key
from gpt.config.option_names import DEEPSPEED_OPTIONS
from gpt.config.refused_keys import REFUSED

TARGET = ROOT / "ds_configs" / "README.md"
# what the types of keys are called
KINDS = {
    PAIR: "two numbers",
    TEXTS: "texts",
    COUNTS: "whole numbers",
    ARGUMENTS: "block",
    bool: "true, false",
    int: "whole number",
    float: "number",
    str: "text",
}
INTRODUCTION = """# Keys of a run's JSON

Written from `gpt/config/` by `python tools/config_reference.py`.
Precedence: defaults < JSON < command line. A key that is not listed here is an error.

Options of the command line are all keys of `gpt`, by their own names, and of DeepSpeed's keys
{own};
under the seed project's names also
{renamed}.
Every key is an option by its path too: `--optimizer.params.betas 0.9 0.95`, `--fp16.enabled false`.

An empty *default*: the key is not set, and a default that its meaning tells is DeepSpeed's, or
follows from other keys. *No effect*:
DeepSpeed accepts the key, and nothing in a run depends on it.
"""


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--check", action="store_true", help="only tell whether the file is up to date"
    )
    args = parser.parse_args()
    text = reference()
    name = TARGET.relative_to(ROOT)
    if not args.check:
        TARGET.write_text(text, encoding="utf-8")
        print(f"wrote {name}")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        print(f"{name} is up to date")
        return 0
    print(f"{name} is out of date: run this tool without --check")
    return 1


def reference() -> str:
    """The whole page, in Markdown."""
    single = {name: key for name, key in TOP_KEYS.items() if isinstance(key, Key)}
    blocks = {name: keys for name, keys in TOP_KEYS.items() if name not in single}
    parts = [introduction(), table("Top level", single)]
    for name, keys in blocks.items():
        parts += tables(name, keys)
    parts.append(refused())
    return "\n".join(parts)


def introduction() -> str:
    own, renamed = [], []
    for name, path in DEEPSPEED_OPTIONS.items():
        if name == path:
            own.append(f"`{name}`")
        else:
            renamed.append(f"`--{name}` (`{path}`)")
    return INTRODUCTION.format(own=",\n".join(own), renamed=",\n".join(renamed))


def refused() -> str:
    keys = "\n".join(f"- `{path}`: {reason}" for path, reason in REFUSED.items())
    return f"## Refused\n\nReal keys of DeepSpeed that have no place here, and why.\n\n{keys}\n"


def tables(name: str, keys: dict[str, Any]) -> Iterator[str]:
    """One table for a block's own keys, and one for each block inside it."""
    inner = {key: value for key, value in keys.items() if isinstance(value, dict)}
    own = {key: value for key, value in keys.items() if key not in inner}
    yield table(name, own)
    for block, value in inner.items():
        # parameters depend on the type beside them
        if block == "params":
            for kinds, params in by_parameters(value):
                yield table(f"{name}.params of {' and '.join(kinds)}", params)
        else:
            yield from tables(f"{name}.{block}", value)


def by_parameters(variants: dict[str, dict[str, Key]]) -> list[tuple[list[str], dict[str, Key]]]:
    """([type, …], their parameters) of types that have the same parameters."""
    groups: list[tuple[list[str], dict[str, Key]]] = []
    for kind, params in variants.items():
        for kinds, known in groups:
            if known == params:
                kinds.append(kind)
                break
        else:
            groups.append(([kind], params))
    return groups


def table(title: str, keys: dict[str, Key]) -> str:
    rows = "\n".join(row(name, key) for name, key in keys.items())
    return f"## {title}\n\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"


def row(name: str, key: Key) -> str:
    # <name> would be taken for a tag, and not shown
    meaning = html.escape(key.doc, quote=False)
    return f"| `{name}` | {kind_of(key)} | {default_of(key)} | {meaning} |"


def kind_of(key: Key) -> str:
    """A key's type and range, or its choices."""
    if key.choices:
        return " ".join(f"`{choice}`" for choice in key.choices)
    return f"{KINDS[key.kind]} {range_of(key)}".strip()


def range_of(key: Key) -> str:
    if key.above is not None:
        return f"> {key.above:,}"
    if key.minimum is None:
        return ""
    if key.maximum is None:
        return f"≥ {key.minimum:,}"
    return f"from {key.minimum:,} to {key.maximum:,}"


def default_of(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.default in (None, ""):
        return ""
    return f"`{json.dumps(key.default)}`"


if __name__ == "__main__":
    command(main)

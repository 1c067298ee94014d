"""Write ds_configs/README.md, the reference of every key of a run's JSON, from the schema.

python tools/config_reference.py            writes it
python tools/config_reference.py --check    exit code 1 where it is not up to date
"""

import html
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from gpt.errors import Parser, command

TARGET = ROOT / "ds_configs" / "README.md"
INTRODUCTION = """# Keys of a run's JSON

Written from `gpt/config/` by `python tools/config_reference.py`.
Precedence: defaults < JSON < command line. A key that is not listed here is an error.

Options of the command line are all keys of `gpt`, by their own names, and of DeepSpeed's keys
{own};
under the seed project's names also
{renamed}.

An empty *default*: the key is not set, and a default that its meaning tells is DeepSpeed's, or
follows from other keys. The type *DeepSpeed's*: a value that is passed on as it is. *No effect*:
DeepSpeed accepts the key, and nothing in a run depends on it.
"""


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "--check", action="store_true", help="only tell whether the file is up to date"
    )
    args = parser.parse_args()
    text = reference()
    if args.check:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        print(
            f"{TARGET.relative_to(ROOT)} is"
            f" {'up to date' if current else 'out of date: run this tool without --check'}"
        )
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET.relative_to(ROOT)}")


def reference() -> str:
    """The whole page, in Markdown."""
    from gpt.config import deepspeed_keys
    from gpt.config.command_line import DEEPSPEED_OPTIONS
    from gpt.config.keys import Key

    own = [f"`{name}`" for name, path in DEEPSPEED_OPTIONS.items() if name == path]
    renamed = [f"`--{name}` (`{path}`)" for name, path in DEEPSPEED_OPTIONS.items() if name != path]
    single = {name: key for name, key in deepspeed_keys.TOP_KEYS.items() if isinstance(key, Key)}
    blocks = {name: keys for name, keys in deepspeed_keys.TOP_KEYS.items() if name not in single}
    parts = [
        INTRODUCTION.format(own=",\n".join(own), renamed=",\n".join(renamed)),
        table("Top level", single),
    ]
    for name, keys in blocks.items():
        parts += tables(name, keys)
    refused = "\n".join(f"- `{path}`: {reason}" for path, reason in deepspeed_keys.REFUSED.items())
    parts.append(
        f"## Refused\n\nReal keys of DeepSpeed that have no place here, and why.\n\n{refused}\n"
    )
    return "\n".join(parts)


def tables(name, keys):
    """One table for a block's own keys, and one for each block inside it."""
    inner = {key: value for key, value in keys.items() if isinstance(value, dict)}
    own = {key: value for key, value in keys.items() if key not in inner}
    yield table(name, own)
    for block, value in inner.items():
        if block == "params":  # they depend on the type beside them
            for kinds, params in by_parameters(value):
                yield table(f"{name}.params of {' and '.join(kinds)}", params)
        else:
            yield from tables(f"{name}.{block}", value)


def by_parameters(variants):
    """([type, …], their parameters) of types that have the same parameters."""
    groups = []
    for kind, params in variants.items():
        kinds = next((kinds for kinds, known in groups if known == params), None)
        if kinds is None:
            groups.append(([kind], params))
        else:
            kinds.append(kind)
    return groups


def table(title, keys) -> str:
    rows = "\n".join(row(name, key) for name, key in keys.items())
    return f"## {title}\n\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"


def row(name, key) -> str:
    meaning = html.escape(key.doc, quote=False)  # <name> would be taken for a tag, and not shown
    return f"| `{name}` | {kind_of(key)} | {default_of(key)} | {meaning} |"


def kind_of(key) -> str:
    """A key's type and range, or its choices."""
    from gpt.config.keys import ANY

    if key.choices:
        return " ".join(f"`{choice}`" for choice in key.choices)
    kinds = {
        "pair": "two numbers",
        ANY: "DeepSpeed's",
        bool: "true, false",
        int: "whole number",
        float: "number",
        str: "text",
    }
    return f"{kinds[key.kind]} {range_of(key)}".strip()


def range_of(key) -> str:
    if key.above is not None:
        return f"> {key.above:,}"
    if key.minimum is None:
        return ""
    if key.maximum is None:
        return f"≥ {key.minimum:,}"
    return f"from {key.minimum:,} to {key.maximum:,}"


def default_of(key) -> str:
    from gpt.config.keys import REQUIRED

    if key.default is REQUIRED:
        return "required"
    if key.default in (None, ""):
        return ""
    return f"`{json.dumps(key.default)}`"


if __name__ == "__main__":
    command(main)

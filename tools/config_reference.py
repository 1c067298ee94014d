"""Write ds_configs/README.md, the reference of every key of a run's JSON, from the schema.

python tools/config_reference.py            writes it
python tools/config_reference.py --check    exit code 1 where it is not up to date
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from gpt.errors import Parser, run

TARGET = ROOT / "ds_configs" / "README.md"
INTRODUCTION = """# Keys of a run's JSON

Written from `gpt/config/` by `python tools/config_reference.py`. \
Precedence: defaults < JSON < command line.
Keys in `gpt` are command-line options of the same name; so are {own}, and, under the seed
project's names, {options}.
A key that is not listed here is an error.
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
    from gpt.config import deepspeed_keys
    from gpt.config.command_line import DEEPSPEED_OPTIONS
    from gpt.config.keys import Key

    options = ", ".join(
        f"`--{name}` (`{path}`)" for name, path in DEEPSPEED_OPTIONS.items() if name != path
    )
    own = ", ".join(f"`{name}`" for name, path in DEEPSPEED_OPTIONS.items() if name == path)
    parts = [INTRODUCTION.format(own=own, options=options)]
    single = {name: key for name, key in deepspeed_keys.TOP_KEYS.items() if isinstance(key, Key)}
    parts.append(table("Top level", single))
    for name, keys in deepspeed_keys.TOP_KEYS.items():
        if name in single:
            continue
        if "params" in keys:
            parts.append(table(name, {"type": keys["type"]}))
            parts += [
                table(f"{name}.params of {kind}", params) for kind, params in keys["params"].items()
            ]
        else:
            parts.append(table(name, keys))
    refused = "\n".join(f"- `{path}`: {reason}" for path, reason in deepspeed_keys.REFUSED.items())
    return "\n".join(
        [
            *parts,
            f"## Refused\nReal keys of DeepSpeed that have no place here, and why.\n\n{refused}\n",
        ]
    )


def table(title, keys) -> str:
    rows = "\n".join(row(name, key) for name, key in flat(keys))
    return f"## {title}\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"


def flat(keys, prefix=""):
    for name, key in keys.items():
        if isinstance(key, dict):
            yield from flat(key, f"{prefix}{name}.")
        else:
            yield prefix + name, key


def row(name, key) -> str:
    from gpt.config.keys import ANY, REQUIRED

    kinds = {
        "pair": "two numbers",
        ANY: "DeepSpeed's",
        bool: "true, false",
        int: "whole number",
        float: "number",
        str: "text",
    }
    kind = " ".join(f"`{choice}`" for choice in key.choices) if key.choices else kinds[key.kind]
    limits = [
        f"{word} {value}"
        for word, value in (
            ("at least", key.minimum),
            ("above", key.above),
            ("at most", key.maximum),
        )
        if value is not None and not key.choices
    ]
    default = (
        "required"
        if key.default is REQUIRED
        else ""
        if key.default in (None, "")
        else f"`{json.dumps(key.default)}`"
    )
    return f"| `{name}` | {', '.join([kind, *limits])} | {default} | {key.doc} |"


if __name__ == "__main__":
    run(main)

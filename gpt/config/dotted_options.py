"""Options that are called by the dotted path of a value of the run's JSON:

    --optimizer.params.weight_decay 0.1
    --optimizer.params.betas 0.9 0.95       or [0.9,0.95]
    --fp16.enabled false
    --zero_optimization.offload_optimizer.device cpu

Only their form is looked at here. Whether a run has such a key, and whether the value fits, is
asked when the whole configuration is checked.
"""

import json
from collections.abc import Sequence
from typing import Any

from gpt.config.keys import Key
from gpt.config.option_names import OVERRIDES, is_path, key_at
from gpt.errors import UserError


def take_dotted(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(what is left of a command line, {dotted path: value} of its dotted options). Raises
    UserError."""
    rest: list[str] = []
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, has_value, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not is_path(name):
            rest.append(word)
            continue
        texts = [text] if has_value else []
        while words and not has_value and not words[0].startswith("--"):
            texts.append(words.pop(0))
        if "" in name.split("."):
            raise UserError(f"command line: {word} is no path of a key, such as --optimizer.type")
        values[name] = _value(name, texts)
    return rest, values


def merge(named: dict[str, Any], dotted: dict[str, Any]) -> dict[str, Any]:
    """All values that a command line sets. Raises UserError where two of its options set the same
    one, or one a block and another a value in it."""
    options = {path: f"--{name}" for name, path in OVERRIDES.items() if path in named}
    for path in dotted:
        if path in named:
            raise UserError(
                f"command line: {options[path]} and --{path} set the same value",
                mend="give one of them",
            )
        options[path] = f"--{path}"
    for path, option in options.items():
        for block, whole in options.items():
            if path.startswith(f"{block}."):
                raise UserError(
                    f"command line: {whole} sets a whole block, and {option} a value in it",
                    mend="give one of them",
                )
    return {**named, **dotted}


def _value(path: str, texts: list[str]) -> Any:
    """What the words behind an option mean: a number, true or false, a list, or text."""
    if not texts:
        raise UserError(f"command line: --{path} needs a value")
    key = key_at(path)
    if isinstance(key, Key) and key.kind is str and len(texts) == 1:
        return texts[0]
    values = [_parsed(text) for text in texts]
    return values[0] if len(values) == 1 else values


def _parsed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float, json.loads):
        try:
            return read(text)
        except (ValueError, RecursionError):
            pass
    return text

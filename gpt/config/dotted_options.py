"""Options that set a value of a run, by its name or by its dotted path in the run's JSON:

    --max_lr 3e-4
    --optimizer.params.weight_decay 0.1
    --optimizer.params.betas 0.9 0.95       or [0.9, 0.95]
    --fp16.enabled false
    --scheduler null                        takes out what the file says, a value or a block

Only their form is looked at here. Whether a run has such a key, and whether the value fits, is
asked when the whole configuration is checked.
"""

import re
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from gpt.config.keys import COUNTS, PAIR, TEXTS, Key, block_of, number_in
from gpt.config.option_names import key_at, path_of
from gpt.config.synonyms import hint_for_block
from gpt.errors import UserError
from gpt.parsing import parse_json


def take_values(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(what is left of a command line, {dotted path: value} of its options that set one, None for
    null). Raises UserError."""
    rest: list[str] = []
    values: dict[str, Any] = {}
    options: dict[str, str] = {}
    words = deque(argv)
    while words:
        word = words.popleft()
        option, has_value, text = word.partition("=")
        path = path_of(option)
        if path is None:
            rest.append(word)
            continue
        if "" in path.split("."):
            raise UserError(f"command line: {word} is no path of a key, such as --optimizer.type")
        # of an option that is repeated the last one counts: scripts append what they vary
        if options.get(path, option) != option:
            raise UserError(
                f"command line: {options[path]} and {option} set the same value",
                mend="give one of them",
            )
        options[path] = option
        values[path] = _value(option, path, [text] if has_value else _take_words(path, words))
    _refuse_blocks_with_values(options)
    return rest, values


def _refuse_blocks_with_values(options: dict[str, str]) -> None:
    """options: {dotted path: option that sets it}."""
    for path, option in options.items():
        block = path.rpartition(".")[0]
        while block and block not in options:
            block = block.rpartition(".")[0]
        if block:
            raise UserError(
                f"command line: {options[block]} sets a whole block, and {option} a value in it",
                mend="give one of them",
            )


def _take_words(path: str, words: deque[str]) -> list[str]:
    """Take an option's value from the front of the words behind it: one word, or all up to the next
    option where it may be a list."""
    key = key_at(path)
    is_list = key is None or (isinstance(key, Key) and key.kind in (PAIR, TEXTS, COUNTS))
    taken: list[str] = []
    while words and not words[0].startswith("--") and (is_list or not taken):
        taken.append(words.popleft())
    return taken


def _value(option: str, path: str, texts: list[str]) -> Any:
    """What the words behind an option mean: a number, true or false, a list, a block, text, or
    null."""
    if not texts:
        raise UserError(f"command line: {option} needs a value{hint_for_block(path, '--')}")
    if texts == ["null"]:
        return None
    key = key_at(path)
    kind = key.kind if isinstance(key, Key) else None
    if kind is str:
        return texts[0]
    if kind in (PAIR, COUNTS):
        # brackets and commas as in JSON or not, and spaces around them or not
        texts = re.sub(r"[\[\](),]", " ", " ".join(texts)).split()
    values = [_parsed(text) for text in texts]
    if kind == TEXTS and not isinstance(values[0], list):
        return texts
    if kind == COUNTS:
        return values
    return values[0] if len(values) == 1 else values


def _parsed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    number = number_in(text)
    if number is not None:
        return number
    try:
        return parse_json(text, block_of=partial(block_of, place="command line"))
    except ValueError:
        return text

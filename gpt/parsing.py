"""JSON and YAML from outside, which build no more than they show."""

import json
from collections.abc import Callable
from typing import Any

import yaml

# bytes of YAML, whose reader is slow
MOST_YAML = 4 << 20
# blocks and lists within one another; a run's JSON has five
MOST_LEVELS = 20
# values that a file may show by referring to others, as YAML's aliases do
MOST_VALUES = 1_000_000
# digits of a whole number; the largest that means anything here has 19
MOST_DIGITS = 400


class ParseError(ValueError):
    """A text that is not what it should be, or would build more than it shows. The message says
    what."""


def parse_json(
    text: str | bytes, block_of: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """The value of a JSON text. block_of: makes a block of its (key, value) pairs, and may raise.

    Raises json.JSONDecodeError where it is no JSON, ParseError where it goes too deep or has a
    number of too many digits.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    decoder = _DECODER
    if block_of is not None:
        decoder = json.JSONDecoder(object_pairs_hook=block_of, parse_int=_whole_number)
    try:
        value = decoder.decode(text)
    except RecursionError as error:
        raise ParseError(_TOO_DEEP) from error
    if is_deeper_than(MOST_LEVELS, value):
        raise ParseError(_TOO_DEEP)
    return value


_TOO_DEEP = f"blocks within blocks, more than {MOST_LEVELS} deep"


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ParseError(f"a number of {len(digits)} digits")
    return int(digits)


# making one takes as long as reading a line of metrics.jsonl
_DECODER = json.JSONDecoder(parse_int=_whole_number)


def is_deeper_than(levels: int, tree: Any) -> bool:
    """Whether blocks and lists lie so deep in one another; looked at level by level."""
    level = [tree]
    for _ in range(levels):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        if not inner:
            return False
        level = inner
    return True


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Raises ParseError where it is none, and where its values refer to each other so that they would
    fill the memory.
    """
    if len(text) > MOST_YAML:
        raise ParseError(f"more than {MOST_YAML:,} characters of YAML")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _require_bounded(node)
        value = yaml.SafeLoader("").construct_document(node)
    except ParseError:
        raise
    except yaml.MarkedYAMLError as error:
        raise ParseError(_in_brief(error)) from error
    # of a date, a number or a tag that is none yaml raises what Python raises
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        words = "too deep" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise ParseError(words[:120] or type(error).__name__) from error
    return value


def _in_brief(error: yaml.MarkedYAMLError) -> str:
    place = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
    return f"{place}{error.problem or error.context}"


def _require_bounded(root: yaml.Node) -> None:
    """Raise ParseError where a document shows more values than MOST_VALUES, goes deeper than
    MOST_LEVELS, or holds itself. Counted once for each node, however often it is referred to."""
    values: dict[int, int] = {}
    above: set[int] = set()

    def count(node: yaml.Node, level: int) -> int:
        if id(node) in above:
            raise ParseError("a block that holds itself")
        if id(node) in values:
            return values[id(node)]
        if level > MOST_LEVELS:
            raise ParseError(_TOO_DEEP)
        above.add(id(node))
        total = 1
        for child in _children(node):
            total += count(child, level + 1)
        above.discard(id(node))
        values[id(node)] = total
        if total > MOST_VALUES:
            raise ParseError(f"more than {MOST_VALUES:,} values, by aliases of aliases")
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MOST_DIGITS:
            _require_text(node)
        return total

    count(root, 0)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _require_text(node: yaml.ScalarNode) -> None:
    """Raise ParseError where a long value is a number: reading one of n digits takes n * n
    steps."""
    if node.tag != "tag:yaml.org,2002:str":
        raise ParseError(f"a number of {len(node.value)} digits")

"""JSON and YAML from outside, which build no more than they show."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml

# bytes of YAML, whose reader is slow
MOST_YAML = 256 << 10
# blocks and lists within one another; a run's JSON has five
MOST_LEVELS = 20
# Values that a file may show by referring to others, as YAML's aliases do. A long text counts for
# several.
MOST_VALUES = 1_000_000
CHARACTERS_A_VALUE = 100
# digits of a whole number; the largest that means anything here has 19
MOST_DIGITS = 400


class ParseError(ValueError):
    """A text that is not what it should be, or would build more than it shows. The message says
    what."""


def parse_json(
    text: str | bytes,
    block_of: Callable[[list[tuple[str, Any]]], Any] | None = None,
    levels: int = MOST_LEVELS,
) -> Any:
    """The value of a JSON text. block_of: makes a block of its (key, value) pairs, and may raise.
    levels: of blocks and lists within one another, at most.

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
        raise _too_deep(levels) from error
    if is_deeper_than(levels, value):
        raise _too_deep(levels)
    return value


def _too_deep(levels: int) -> ParseError:
    return ParseError(f"blocks within blocks, more than {levels} deep")


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
    with _in_our_words():
        node = _bounded_node(text)
        return None if node is None else yaml.SafeLoader("").construct_document(node)


def lines_of_keys(text: str) -> dict[str, int]:
    """{dotted path: line} of every key of a text in YAML, which JSON is too. Raises ParseError as
    parse_yaml does."""
    with _in_our_words():
        return dict(_lines(_bounded_node(text), ""))


def _lines(node: yaml.Node | None, path: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            where = f"{path}.{key.value}" if path else key.value
            yield where, key.start_mark.line + 1
            yield from _lines(value, where)


def _bounded_node(text: str) -> yaml.Node | None:
    if len(text) > MOST_YAML:
        raise ParseError(f"more than {MOST_YAML:,} characters of YAML")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None:
        _require_bounded(node)
    return node


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Raise what is wrong with a YAML text as ParseError."""
    try:
        yield
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
            raise _too_deep(MOST_LEVELS)
        above.add(id(node))
        total = 1
        if isinstance(node, yaml.ScalarNode):
            total += len(node.value) // CHARACTERS_A_VALUE
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

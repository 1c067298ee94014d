"""JSON and YAML from outside that are none, or hold more than they show."""

import json

import pytest

from gpt.parsing import ParseError, parse_json, parse_yaml


def bomb(levels=9, width=9):
    """YAML whose last line stands for width ** levels values."""
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        "a: &a {k: 1}\n" + bomb().replace("[x", "[*a"),
        "&a [*a]",
        "a: &a\n  b: *a",
        "[" * 50,
        "[" * 100_000,
        "a: " + "7" * 100_000,
        "a: 2001-99-99",
        "a: !!int x",
        "a: !!python/object/apply:os.system [id]",
        "? [1, 2]\n: b",
        "? {a: b}\n: b",
        "a\x00: 1",
        "a: b: c",
        "--- a\n--- b",
        "a: 1\n" * 100_000,
        "a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 20_000 + "]",
        "<<: 5",
        "a: !!binary a",
        "a: !!timestamp x",
        "a: !!set 5",
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_is_none_or_shows_more_than_it_holds(text):
    with pytest.raises(ParseError) as caught:
        parse_yaml(text)
    assert str(caught.value) and "\n" not in str(caught.value)


def test_yaml_of_our_own_is_read():
    text = "a: &id001 [1, 2.5, null]\nb: *id001\nc: {d: text, e: 2001-01-01}\n"
    assert parse_yaml(text)["b"] == [1, 2.5, None]
    assert parse_yaml("") is None
    assert parse_yaml("a: " + "x" * 1000) == {"a": "x" * 1000}


@pytest.mark.parametrize(
    "text", ["[" * 50 + "]" * 50, "[" * 100_000, "9" * 5000, '{"a": -' + "1" * 401 + "}"]
)
def test_json_that_is_too_deep_or_too_long_a_number(text):
    with pytest.raises(ParseError):
        parse_json(text)


def test_json_that_is_none_says_where():
    with pytest.raises(json.JSONDecodeError, match="line 2 column 1"):
        parse_json("{\n")
